#!/usr/bin/env bash
#
# Measures Cowshed beside its peers. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: bench.sh [btrfs|zfs|engines|containers|live] [-- OPTION...]

Builds the program in bench/, makes a loopback image, and measures Cowshed, moby, podman and containerd on it in one run.
Then it writes docs/benchmarks.md and plots, and deletes the image. OPTIONs are for the program; see bench/bin/bench -help.

With engines it measures the operations of clients: one containerd on btrfs, with Cowshed's snapshotter and containerd's
own ones. It writes the first part of docs/benchmarks.md and leaves the rest. scripts/daemons.sh builds the daemons. With the
OPTION -add it adds images to that part: FILES=10000 LARGE=0 LAYERS=60 bench.sh engines -- -add

With containers it measures Cowshed in both root styles beside those that use overlayfs, without quotas: one page cache or
many, starts, writes, diffs. An ext4 for one of them is in a second image. It writes a part of docs/benchmarks.md too.

With live it measures forks, snapshots, rollbacks, merges, promotions and streams of layers, without quotas, beside the bare calls
of the kernel and the commands that people use instead. It writes a part of docs/benchmarks.md too.

With zfs it measures Cowshed and moby, and writes docs/benchmarks-zfs.md. If the host has ZFS, the pool is in an image.
Otherwise all runs in the test machine (scripts/zfs-machine). As a rule this is emulated, and ten times slower for all.

Environment:
  QUICK=1            small bases and few rounds, in a few minutes; prints the tables and writes nothing
  FILES              numbers of files of the bases, default 50000,200000; for ZFS 2000; for engines 50000,10000, for
                     containers and live 50000
  LARGE              MiB of each of the four files of the base of large files, default 256; for ZFS 0; for engines 64;
                     0: no such base. For live: files of a larger image, of which forks alone are measured, default 500000
  LAYERS             layers that exist when a driver starts, default 5000, for ZFS 2000. As many exist while a snapshot of
                     containerd is measured, but 2000 at most. 0: neither is measured. For engines: numbers of layers of
                     images, default 10,60; 0: no such images. For live: forks that exist in the end, default 10000
  ROUNDS             number of times that everything is measured, default 3, for engines 5; with fewer rounds nothing is
                     written
  COWSHED_BENCH_DIR  directory for the image, default /var/tmp; a tmpfs leaves the disk out of the figures
  COWSHED_CACHE      directory of the ZFS test machine, default /var/cache/cowshed

Needs root or sudo, and 24 GiB of free space for the full run. This takes more than an hour on two processors, and tens of
minutes for ZFS and for engines.
For a short run of one size: FILES=50000 LARGE=0 LAYERS=0 ROUNDS=2 bench.sh
Exit codes: 0 measured; 1 failed; 2 wrong usage.
END
}

root=()
[[ $(id -u) -eq 0 ]] || root=(sudo)

# options FILESYSTEM: sets the options of the program, and rounds.
options() {
	local files=50000,200000 large=256 layers=5000 repeat=1s
	rounds=3
	if [[ $1 == zfs ]]; then
		files=2000 large=0 layers=2000 repeat=500ms
		[[ ${QUICK:-} != 1 ]] || files=500 layers=200 repeat=200ms rounds=2
	elif [[ $1 == engines ]]; then
		files=50000,10000 large=64 layers=10,60 rounds=5
		[[ ${QUICK:-} != 1 ]] || files=1000 large=4 layers=5 rounds=1
	elif [[ ${QUICK:-} == 1 ]]; then
		files=2000,8000 large=16 layers=200 repeat=200ms rounds=2
	fi
	rounds=${ROUNDS:-$rounds}
	options=(-files "${FILES-$files}" -large "${LARGE:-$large}" -layers "${LAYERS:-$layers}" -rounds "$rounds")
	options+=(-revision "$(git describe --tags --always --dirty 2>/dev/null || echo unknown)")
	if [[ $1 == containers ]]; then
		files=50000
		[[ ${QUICK:-} != 1 ]] || files=1000 rounds=1
		options=(-files "${FILES-$files}" -rounds "$rounds" "${options[@]: -2}")
		return
	elif [[ $1 == live ]]; then
		files=50000 large=500000 layers=10000
		[[ ${QUICK:-} != 1 ]] || files=2000 large=0 layers=1200 rounds=1
		options=(-files "${FILES-$files}" -large "${LARGE:-$large}" -forks "${LAYERS:-$layers}" -rounds "$rounds" "${options[@]: -2}")
		return
	fi
	[[ $1 == engines ]] || options+=(-repeat "$repeat" -driver "$1")
}

# on_loop FILESYSTEM|engines OPTION...: runs the program on a new loopback image.
on_loop() {
	local what=$1 filesystem=$1 dir run
	shift
	[[ $what == zfs ]] || filesystem=btrfs
	dir=$("${root[@]}" mktemp -d "${COWSHED_BENCH_DIR:-/var/tmp}/cowshed-bench.XXXXXX")
	image=$dir/bench.img
	# shellcheck disable=SC2064 # expands the name here
	trap "cleanup '$dir'" EXIT
	"${root[@]}" scripts/mkfs-loop.sh create --fs "$filesystem" "$image" 24G
	"${root[@]}" scripts/mkfs-loop.sh mount "$image" "$dir/mnt"
	"${root[@]}" mkdir "$dir/work"
	run=("${root[@]}" env TMPDIR="$dir/work" "$program")
	if [[ $what == containers ]]; then
		"${root[@]}" truncate -s 8G "$dir/ext4.img"
		"${root[@]}" mkfs.ext4 -q "$dir/ext4.img"
		"${root[@]}" mkdir "$dir/ext4"
		"${root[@]}" mount -o loop,noatime "$dir/ext4.img" "$dir/ext4"
		"${root[@]}" mkdir "$dir/ext4/layers" # beside lost+found
		run+=(containers -ext4 "$dir/ext4/layers")
	fi
	[[ $what != live ]] || run+=(live)
	# This runs go to build cowshed. The sockets of its daemons are below TMPDIR, whose path has to be short.
	[[ $what != engines ]] || run=(scripts/as-root.sh "$program" engines)
	"${run[@]}" -root "$dir/mnt" -work "$dir/work" -image "a loopback image on $(stat -f -c %T "$dir")" "$@"
}

cleanup() {
	! mountpoint -q "$1/ext4" || "${root[@]}" umount "$1/ext4" || true
	"${root[@]}" scripts/mkfs-loop.sh unmount "$1/bench.img" || true
	"${root[@]}" scripts/mkfs-loop.sh delete "$1/bench.img" || true
	"${root[@]}" rm -rf --one-file-system -- "$1"
}

# in_machine OPTION...: runs the program on the pool of the ZFS test machine.
in_machine() {
	local dir before after
	dir=$(mktemp -d)
	# shellcheck disable=SC2064
	trap "rm -rf -- '$dir'" EXIT
	mkdir "$dir/work" "$dir/out"
	cp "$program" "$dir/work/bench"
	scripts/zfs-machine/zfs-machine.sh build
	before=$(load)
	# The value of @LOAD@ is known after the run.
	scripts/zfs-machine/zfs-machine.sh run --dir "$dir/work" --out "$dir/out" --mem 4096 --disk 24G --timeout 7200 -- \
		sh -c 'mkdir -p /out/docs && cd /out && exec /work/bench -root /tank -work /tmp "$@"' bench \
		-image 'a virtual disk' -note "$(machine_note)" "$@" | sed -u "s|@LOAD@|(see the report)|"
	after=$(load)
	if compgen -G "$dir/out/docs/*" >/dev/null; then
		sed -i "s|@LOAD@|$before before the run and $after after it|" "$dir"/out/docs/*.md
		cp "$dir"/out/docs/* docs/
	fi
}

load() { cut -d ' ' -f 1 /proc/loadavg; }

# machine_note: prints the description of the test machine for the report.
machine_note() {
	local how='emulated by QEMU, in software, so that it is many times slower than its host: only ratios count'
	if grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]; then how='virtual (QEMU with KVM)'; fi
	echo "The machine is $how. The host has $(nproc) CPUs and had a load average of @LOAD@."
}

main() {
	local what=btrfs output=docs/benchmarks.md least=3
	case ${1:-} in
	btrfs | zfs | engines | containers | live)
		what=$1
		shift
		;;
	-h | --help | help)
		usage
		exit
		;;
	'' | --) ;;
	*)
		usage >&2
		exit 2
		;;
	esac
	[[ ${1:-} != -- ]] || shift

	program=bench/bin/bench
	if [[ $what == btrfs || $what == containers || $what == live ]]; then
		(cd bench && go build -trimpath -o bin/bench .)
	else # static, for the test machine; without the calls of drivers for btrfs
		program=bench/bin/bench-static
		(cd bench && CGO_ENABLED=0 go build -trimpath -o bin/bench-static .)
	fi
	options "$what"
	case $what in
	zfs) output=docs/benchmarks-zfs.md ;;
	engines)
		least=5
		scripts/daemons.sh build >/dev/null
		;;
	esac
	[[ ${QUICK:-} == 1 || $rounds -lt $least ]] || options+=(-o "$output")
	if [[ $what == zfs && ! -c /dev/zfs ]]; then
		in_machine "${options[@]}" "$@"
	else
		on_loop "$what" "${options[@]}" "$@"
	fi
}

main "$@"
