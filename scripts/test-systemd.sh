#!/usr/bin/env bash
#
# Tests the package for Debian under a real systemd. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: test-systemd.sh [DEB]

Builds the package of the commit that is checked out, or takes DEB. It installs the package in a virtual machine with Debian,
its kernel and systemd. scripts/systemd-machine/checks.sh checks there that the units start and stop, and that a request
starts them. They are restarted and upgraded under load, survive a reboot, and go with the package. Data stays.

The machine is kept in COWSHED_CACHE, in systemd-machine. It is built again when its recipe or this host's release of Debian
changes. Without hardware acceleration a run takes some minutes.

Environment:
  COWSHED_CACHE  default /var/cache/cowshed
  TMPDIR         for the disks of the machine, default /var/tmp

Needs root, or sudo, to build the machine. Exit codes: 0 all checks passed; 1 a check or the machine failed; 2 wrong usage.
END
}

readonly limit=1500 # seconds for the machine, both boots included
here=scripts/systemd-machine
cache=${COWSHED_CACHE:-/var/cache/cowshed}/systemd-machine
readonly here cache

say() { printf 'test-systemd: %s\n' "$*" >&2; }

# machine: prints the directory of the machine. It builds the machine if that is missing.
machine() {
	local dir
	dir=$cache/$(cat "$here/build.sh" scripts/debian-root.sh /etc/os-release | sha256sum | cut -c 1-16)
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	if [[ ! -e $dir/root.img ]]; then
		say 'building the machine, which takes some minutes'
		scripts/as-root.sh "$here/build.sh" "$dir"
		find "$cache" -mindepth 1 -maxdepth 1 -type d ! -path "$dir" -mtime +14 -exec scripts/as-root.sh rm -rf -- {} +
	fi
	echo "$dir"
}

# disks MACHINE DEB: makes two disks: the files for the checks, and a btrfs for the volumes.
disks() {
	local deb=$2
	mkdir "$work/files"
	if [[ -z $deb ]]; then
		go -C scripts/internal/release run . -once -maintainer 'Tests <tests@example.org>' -arch amd64 -tree "$PWD" -out "$work/dist" >&2
		deb=$(echo "$work"/dist/*_amd64.deb)
	fi
	cp "$deb" "$here/checks.sh" "$work/files/"
	CGO_ENABLED=0 go build -o "$work/files/snapload" ./scripts/internal/snapload
	mke2fs -q -t ext4 -L work -E root_owner=0:0 -d "$work/files" "$work/work.img" "$(($(du -sm "$work/files" | cut -f 1) * 5 / 4 + 64))M" >/dev/null
	truncate -s 2G "$work/cowshed.img"
	mkfs.btrfs -q -L cowshed "$work/cowshed.img" >/dev/null
}

# boot MACHINE: runs the machine until it turns itself off, and prints the output of the checks meanwhile.
boot() {
	local accel=tcg,thread=multi code=0
	if grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]; then accel=kvm; fi
	: >"$work/checks"
	tail -n +1 -s 0.5 -f "$work/checks" &
	running+=($!)
	# The options for the kernel are explained in scripts/zfs-machine/zfs-machine.sh.
	TMPDIR=$work timeout --kill-after=10 "$limit" qemu-system-x86_64 -nodefaults -no-user-config -display none \
		-machine q35 -accel "$accel" -cpu max -smp 2 -m 2048 -kernel "$1/vmlinuz" \
		-append 'console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rw no_timer_check tsc=reliable clocksource=tsc norandmaps systemd.default_timeout_start_sec=600 systemd.show_status=1' \
		-drive "if=none,id=root,file=$1/root.img,format=raw,snapshot=on,cache=unsafe" -device nvme,drive=root,serial=root \
		-drive "if=none,id=work,file=$work/work.img,format=raw,cache=unsafe" -device virtio-blk-pci,drive=work \
		-drive "if=none,id=cowshed,file=$work/cowshed.img,format=raw,cache=unsafe" -device virtio-blk-pci,drive=cowshed \
		-chardev "file,id=console,path=$work/console" -serial chardev:console \
		-chardev "file,id=checks,path=$work/checks" -serial chardev:checks </dev/null &
	running+=($!)
	wait "${running[1]}" || code=$?
	sleep 1 # for the last lines of the checks
	return "$code"
}

clean_up() {
	[[ ${#running[@]} -eq 0 ]] || kill "${running[@]}" 2>/dev/null || true
	wait
	rm -rf -- "$work"
}

main() {
	case ${1:-} in
	-h | --help | help)
		usage
		exit
		;;
	esac
	[[ $# -le 1 ]] || {
		usage >&2
		exit 2
	}
	local dir deb=${1:-} code=0
	[[ -z $deb ]] || deb=$(readlink -f -- "$deb")
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/cowshed-systemd.XXXXXX")
	running=()
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	dir=$(machine)
	disks "$dir" "$deb"
	boot "$dir" || code=$?
	if tr -d '\r' <"$work/checks" | grep -qx 'RESULT 0'; then
		say "passed: $(grep -c '^ok: ' "$work/checks") checks in $SECONDS s"
		return
	fi
	say "failed (status of the machine: $code); the end of its console:"
	tail -n 60 "$work/console" >&2
	return 1
}

main "$@"
