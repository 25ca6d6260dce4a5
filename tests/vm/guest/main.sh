#!/usr/bin/env bash
# What a guest does: all tests of the first boot, a reboot, those of the second. Runs in the folder of the package.
set -uo pipefail
# Where several guests share few processors, systemd may answer later than in the 25 s that sd-bus waits.
export SYSTEMD_BUS_TIMEOUT=300
tests() {
	local junit=/mnt/out/junit-$VM_BOOT.xml
	(cd guest && exec /usr/bin/python3 -m pytest -p no:cacheprovider -p installed -v --tb=short --junitxml="$junit" "$@")
}
# What is a matter of systemd, journald and dpkg alone is tried once with those of each release.
desk=() web=() removal=()
case $(uname -r) in
*isra*) ;;
6.1.* | 6.12.*) desk=(test_vm_desk.py) web=(test_vm_web.py) removal=(test_vm_removal.py) ;;
esac
case $VM_BOOT in
0)
	# In an order in which dnsprobe is started as seldom as can be: an emulated processor takes half a minute for it.
	tests test_vm_install.py test_vm_queries.py test_vm_reload.py test_vm_identity.py "${desk[@]}" test_vm_ways.py \
		"${web[@]}" test_vm_life.py test_vm_journald.py test_vm_before_reboot.py
	exit 85 # whatever came of it is in the results
	;;
*) tests test_vm_after_reboot.py "${removal[@]}" ;;
esac
