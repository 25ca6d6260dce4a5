#!/usr/bin/env bash
# Builds a Linux 6.1 whose udp_send_skb looks as on kernels where GCC's IPA-SRA has changed it: its name is
# udp_send_skb.isra.51, and it gets the members of its second argument instead of a pointer. GCC changes it only if the
# function reads the members before it writes anything, which is not so in Debian's kernels from 5.10 on. So split_flow.py
# makes the same change in the source.
#
#     build.sh SOURCE_TARBALL OUTDIR [PORT_ARGUMENT]
#
# SOURCE_TARBALL is usr/src/linux-source-6.1.tar.xz of Debian's package linux-source-6.1. OUTDIR gets vmlinuz, version (the
# kernel's release), config and build.log. PORT_ARGUMENT is the argument that has the destination port: 3 (the default) if
# both addresses share one argument, 4 if each address has its own, as GCC 12 would pass them.
#
# The kernel has no modules: the drivers of virtual machines and ext4 are built in. The source is unpacked into a temporary
# folder in TMPDIR, or in OUTDIR, which is removed at the end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
SPACE_MB=2500

say() { printf 'isra: %s\n' "$*" >&2; }
fail() {
	say "$*"
	exit 1
}

[ $# -ge 2 ] && [ $# -le 3 ] || fail "usage: build.sh SOURCE_TARBALL OUTDIR [PORT_ARGUMENT=3|4]"
tarball=$1
port_argument=${3:-3}
[[ $port_argument = [34] ]] || fail "PORT_ARGUMENT is $port_argument: the port can be argument 3 or 4"
[ -r "$tarball" ] || fail "$tarball cannot be read: give it usr/src/linux-source-6.1.tar.xz of the package linux-source-6.1"
[ "$(uname -m)" = x86_64 ] || fail "this is $(uname -m): the configuration is for x86_64"

# Each needed program or header, with the package that has it.
needs="gcc:gcc make:make flex:flex bison:bison bc:bc pahole:dwarves xz:xz-utils python3:python3 ld:binutils
	/usr/include/gelf.h:libelf-dev /usr/include/zlib.h:zlib1g-dev /usr/include/stdio.h:libc6-dev"
missing=()
for need in $needs; do
	command -v "${need%:*}" >/dev/null || [ -e "${need%:*}" ] || missing+=("${need#*:}")
done
[ ${#missing[@]} = 0 ] || fail "packages are missing to build a kernel: apt-get install --no-install-recommends ${missing[*]}"

mkdir -p "$2"
out=$(cd "$2" && pwd)
room=${TMPDIR:-$out}
free=$(df --output=avail -BM "$room" | tr -dc '0-9')
[ "$free" -ge "$SPACE_MB" ] || fail "$room has $free MB left, the build takes $SPACE_MB: point TMPDIR to a larger place"

folder=$(mktemp -d "$room/isra.XXXXXX")
job=
clean() {
	# make stops its compilers by itself.
	[ -z "$job" ] || kill "$job" 2>/dev/null || true
	wait
	rm -rf "$folder"
}
trap clean EXIT
trap 'say "interrupted"; exit 130' INT
trap 'say "ended by a signal"; exit 143' TERM HUP
log=$out/build.log
: >"$log"

# Runs a command in the background: bash acts on a signal only while it waits.
run() {
	"$@" >>"$log" 2>&1 </dev/null &
	job=$!
}
finish() {
	local status=0
	wait "$job" || status=$?
	job=
	[ "$status" = 0 ] && return
	tail -n 20 "$log" >&2
	fail "$1 failed with status $status; the whole log is $log"
}

tree=$folder/source
mkdir "$tree"
say "unpacking $tarball"
# Leave out what is not built, which is two files of three. The Kconfig files of all drivers stay: they are always read.
useless=('arch/[!x]*/*.[chS]' 'arch/[!x]*/*.dts*' 'Documentation/*/*' 'drivers/gpu/*.[ch]' 'drivers/media/*.[ch]'
	'drivers/net/ethernet/*.[ch]' 'drivers/net/wireless/*.[ch]' 'drivers/staging/*.[ch]' 'sound/*.[ch]' 'tools/perf'
	'tools/testing')
run tar -xf "$tarball" -C "$tree" --strip-components=1 --anchored "${useless[@]/#/--exclude=linux-source-6.1/}"
finish "unpacking $tarball"
release=$(make -s -C "$tree" kernelversion)
[[ $release = 6.1.* ]] || fail "$tarball holds Linux $release: it has to be 6.1"

say "Linux $release: splitting the flow of udp_send_skb, the port is argument $port_argument"
python3 "$here/split_flow.py" "$tree" "$port_argument"

# Most of the compiler's time goes into optimization and into debug information. So everything except arch/x86, which needs
# it, is optimized less, and only the folders whose types dnsprobe and the kernel's own BPF read get debug information.
untyped='block crypto drivers io_uring ipc kernel lib mm security'
for part in $untyped fs net; do
	echo 'subdir-ccflags-y += -O1' >>"$tree/$part/Makefile"
done
for part in $untyped arch/x86; do
	echo 'subdir-ccflags-y += -g0' >>"$tree/$part/Makefile"
done
for part in bpf cgroup trace; do # must follow the -g0 that covers all of kernel/
	echo 'subdir-ccflags-y += -gdwarf-4' >>"$tree/kernel/$part/Makefile"
done

# The same source gives the same kernel: it contains neither time nor host, user, folder or variables of the caller. pahole
# runs without -j, which would write the types in a different order each time.
pahole_flags=$(PAHOLE=pahole sh "$tree/scripts/pahole-flags.sh" | sed -E 's/(^| )-j( |$)/ /')
prefix="-fdebug-prefix-map=$tree=linux"
kernel_make() {
	run env -i PATH="$PATH" HOME="$folder" TMPDIR="$folder" LC_ALL=C make -C "$tree" ARCH=x86_64 \
		KBUILD_BUILD_USER=dnsprobe KBUILD_BUILD_HOST=isra KBUILD_BUILD_VERSION=1 KBUILD_BUILD_TIMESTAMP=2024-01-01 \
		KCFLAGS="$prefix" KAFLAGS="$prefix" PAHOLE_FLAGS="$pahole_flags" "$@"
}

say "configuring"
kernel_make KCONFIG_ALLCONFIG="$here/kernel.config" allnoconfig
finish "configuring"
untaken=$(grep -E '^(CONFIG_|# CONFIG_\w+ is not set)' "$here/kernel.config" | grep -vxFf "$tree/.config" || true)
[ -z "$untaken" ] || fail "Linux $release does not take these lines of kernel.config: ${untaken//$'\n'/, }"

say "compiling on $(nproc) processors"
kernel_make -j"$(nproc)" bzImage
started=$SECONDS said=$SECONDS
while kill -0 "$job" 2>/dev/null; do
	sleep 1
	if [ $((SECONDS - said)) -ge 30 ]; then
		said=$SECONDS
		say "$(grep -cE '^  (CC|AS) ' "$log" || true) objects in $((SECONDS - started)) s"
	fi
done
finish "compiling"

# A .cold is the unlikely half of a function, not a clone.
names=$(awk '$3 ~ /^udp_(v6_)?send_skb([.]|$)/ && $3 !~ /[.]cold$/ {print $3}' "$tree/System.map" | sort | tr '\n' ' ')
[ "$names" = "udp_send_skb.isra.51 udp_v6_send_skb " ] ||
	fail "the kernel has $names: expected udp_send_skb.isra.51 and udp_v6_send_skb; look at what the compiler did with net/ipv4/udp.c"

install -m 644 "$tree/arch/x86/boot/bzImage" "$out/vmlinuz"
install -m 644 "$tree/.config" "$out/config"
install -m 644 "$tree/include/config/kernel.release" "$out/version"
say "$(cat "$out/version") in $SECONDS s; the build took $(du -sm "$folder" | cut -f1) MB"
