#!/usr/bin/env bash
#
# Installs the Debian or Ubuntu packages that a task of the Makefile needs and that are missing, and says which.
# See usage below.

set -euo pipefail

usage() {
	cat <<'END'
Usage: deps.sh TASK...

Installs the packages that the tasks need, if they are missing, with apt-get; where it is not run by root, through
sudo. On other systems than Debian and Ubuntu it only says what is needed.

Tasks:
  build  what `make build` needs: nothing but Go and git
  test   what `make test` needs
  lint   what `make lint` needs
  gates  what `make gates` needs besides bench, and scripts/fresh-machine.sh
  demo   what `make demo` needs
  bench  what `make bench` needs
  daemons  what scripts/daemons.sh needs to build and run containerd and dockerd
  systemd  what `make test-systemd` needs

Exit codes: 0 all there; 1 installing failed; 2 wrong usage; 5 something is missing and cannot be installed here.
END
}

# Go itself comes first: without it nothing can be done, and distributions have it in versions that are too old.
check_go() {
	command -v go >/dev/null || {
		echo "deps.sh: go is not in PATH; install the version that go.mod names, or a later one" >&2
		exit 5
	}
}

# packages TASK: prints names of packages.
packages() {
	case $1 in
	build) echo git ;;
	# gcc and libc6-dev: the race detector. mount has losetup. qemu-system-x86 runs the test machine for ZFS, which may be in
	# the cache already, and brings qemu-storage-daemon. busybox-static is the content of roots, and must not need libraries.
	test)
		echo git gcc libc6-dev btrfs-progs e2fsprogs mount util-linux acl attr libcap2-bin bzip2 xz-utils qemu-system-x86 \
			busybox-static curl python3
		;;
	lint) echo git shellcheck ;;
	gates) echo git mount util-linux mmdebstrap ca-certificates ;;
	demo) echo git btrfs-progs mount util-linux mmdebstrap ca-certificates ;;
	bench) echo git gcc libc6-dev btrfs-progs mount util-linux libbtrfs-dev isal ;;
	systemd) echo git mount util-linux mmdebstrap ca-certificates e2fsprogs btrfs-progs qemu-system-x86 ;;
	# libgpgme11, libsubid4 and libglib2.0-0: skopeo, buildah and podman with its conmon.
	daemons)
		echo git gcc libc6-dev pkg-config libseccomp-dev libseccomp2 libdevmapper1.02.1 libsystemd0 libgpgme11 libsubid4 libglib2.0-0 \
			btrfs-progs mount util-linux
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
}

missing() {
	for package in "$@"; do
		dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
			echo "$package"
	done
}

main() {
	case ${1:-} in
	'' | -h | --help | help)
		usage
		[[ -n ${1:-} ]] || exit 2
		exit
		;;
	esac
	check_go

	local wanted=() absent=() root=() names
	for task in "$@"; do
		names=$(packages "$task") # ends the script if there is no such task
		read -ra names <<<"$names"
		wanted+=("${names[@]}")
	done
	if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
		echo "deps.sh: this is neither Debian nor Ubuntu; needed here, by Debian's names: ${wanted[*]}" >&2
		return
	fi

	mapfile -t absent < <(missing "${wanted[@]}" | sort -u)
	if [[ ${#absent[@]} -eq 0 ]]; then
		return
	fi
	echo "deps.sh: installing for $*: ${absent[*]}"
	if [[ $(id -u) -ne 0 ]]; then
		command -v sudo >/dev/null || {
			echo "deps.sh: needs root or sudo to install ${absent[*]}" >&2
			exit 5
		}
		root=(sudo)
	fi
	local retry
	retry=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/retry.sh
	# shellcheck disable=SC2016 # expanded by the inner shell
	"$retry" "${root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
		'apt-get -q update && apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"' \
		sh "${absent[@]}" </dev/null
}

main "$@"
