#!/usr/bin/env bash
#
# Shows that the tests pass on a machine that has never seen them. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: fresh-machine.sh [--root DIR] [--keep] [--share-go] [--share-cache] [COMMAND...]

Makes a fresh root filesystem with the prerequisites of the README only (scripts/debian-root.sh). It clones the commit that
is checked out into it, without uncommitted changes, and runs the command there, by default "make test".

  --root DIR     use the root filesystem in DIR, which debian-root.sh has made, and leave it there
  --keep         keep the new root filesystem, and print its path
  --share-go     use the module and build caches of Go on this host, which saves downloads and minutes
  --share-cache  use COWSHED_CACHE of this host, with the ZFS test machine and the daemons
  COMMAND        command to run in the clone; several words are one command

Environment:
  TMPDIR         directory for the root filesystem, default /var/tmp; a run of all tests needs 20 GiB
  COWSHED_CACHE  see --share-cache, default /var/cache/cowshed

Needs root. Exit codes: the command's own; 1 if it leaves loop devices behind or could not be run; 2 wrong usage.
END
}

say() { printf 'fresh-machine.sh: %s\n' "$*" >&2; }

# detach_left DIR: detaches loop devices on files in DIR, which would outlive DIR, and fails if there were any.
detach_left() {
	local device file status=0
	while read -r device file; do
		[[ $file == "$1"/* ]] || continue
		say "left attached: $device on $file"
		losetup --detach "$device" || true
		status=1
	done < <(losetup --list --noheadings --output NAME,BACK-FILE)
	return "$status"
}

# clean_up: detaches and removes the remains of a run, wherever it ended.
clean_up() {
	local status=$?
	trap - EXIT INT TERM
	detach_left "$root" || status=$((status > 0 ? status : 1))
	if [[ -n $keep ]]; then
		say "the root filesystem is $root"
	else
		rm -rf --one-file-system -- "$root"
	fi
	exit "$status"
}

main() {
	local options=() cache=${COWSHED_CACHE:-/var/cache/cowshed} source=/root/cowshed begun=$SECONDS
	root='' keep=''
	while [[ ${1:-} == -* ]]; do
		case $1 in
		--root) root=${2:?--root needs a directory} keep=1 && shift ;;
		--keep) keep=1 ;;
		--share-go) options+=(--bind "$(go env GOMODCACHE):/root/go/pkg/mod" --bind "$(go env GOCACHE):/root/.cache/go-build") ;;
		--share-cache) mkdir -p "$cache" && options+=(--bind "$cache:/var/cache/cowshed") ;;
		-h | --help)
			usage
			exit
			;;
		*)
			usage >&2
			exit 2
			;;
		esac
		shift
	done
	[[ $# -gt 0 ]] || set -- make test
	[[ $(id -u) -eq 0 ]] || {
		say 'needs root'
		exit 1
	}

	if [[ -n $root ]]; then
		root=$(readlink -f -- "$root")
	else
		root=$(mktemp -d "${TMPDIR:-/var/tmp}/cowshed-fresh.XXXXXX")
	fi
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	if [[ ! -x $root/bin/sh ]]; then
		say "making a root filesystem in $root"
		chmod 755 "$root"
		scripts/debian-root.sh make "$root"
	fi
	rm -rf -- "$root$source"
	git clone --quiet --no-local . "$root$source"
	say "running in it, at $(git rev-parse --short HEAD): $*"
	# shellcheck disable=SC2016 # expanded inside
	scripts/debian-root.sh enter "$root" "${options[@]}" --env CI="${CI:-}" --env FUZZTIME="${FUZZTIME:-}" -- \
		bash -c 'cd "$0" && exec "$@"' "$source" "$@"
	say "passed in $((SECONDS - begun)) s"
}

main "$@"
