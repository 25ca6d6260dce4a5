#!/usr/bin/env bash
# Runs the tests in a guest: most in the first boot, the rest after a reboot. Runs in the folder of the tree.
set -uo pipefail
# sd-bus waits 25 s for systemd. Where several guests share few processors, that is too short.
export SYSTEMD_BUS_TIMEOUT=300
tests() {
	local junit=/mnt/out/junit-$VM_BOOT.xml
	(cd guest && exec /usr/bin/python3 -m pytest -p no:cacheprovider -p installed -v --tb=short --junitxml="$junit" "$@")
}
# Some tests run only in the guests that kernels.py chooses for them.
commands=() web=() journald=() removal=() exactness=() servers=()
if grep -qw vm.systemd=1 /proc/cmdline; then
	export VM_SYSTEMD=1 # for test_vm_life.py
	# It starts the service six times. Both compilers are enough.
	servers=(test_vm_servers.py)
	commands=(test_vm_journal_commands.py) web=(test_vm_web.py) journald=(test_vm_journald.py) removal=(test_vm_removal.py)
fi
if grep -qw vm.preemption=1 /proc/cmdline; then
	exactness=(test_vm_exactness.py)
fi
if grep -qw vm.hooks=1 /proc/cmdline; then
	tests test_vm_install.py test_vm_queries.py test_vm_ways_to_send.py test_vm_recovery.py test_vm_protocols.py \
		test_vm_ways_out.py
	exit
fi
case $VM_BOOT in
0)
	# This order starts dnsprobe as seldom as possible, and compiles few programs twice: a start with a compilation takes an
	# emulated processor half a minute, a start without one ten seconds.
	tests test_vm_install.py test_vm_queries.py test_vm_reload.py test_vm_identity.py "${commands[@]}" \
		test_vm_ways_to_send.py test_vm_recovery.py test_vm_responses.py test_vm_resolver.py "${servers[@]}" \
		test_vm_protocols.py test_vm_ways_out.py "${exactness[@]}" "${web[@]}" test_vm_life.py "${journald[@]}" test_vm_before_reboot.py
	exit 85 # reboot, even if tests failed: the results have the failures
	;;
*) tests test_vm_after_reboot.py "${removal[@]}" ;;
esac
