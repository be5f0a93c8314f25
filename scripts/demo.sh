#!/usr/bin/env bash
#
# The body of `make demo`: shows the main job of Cowshed on a real Debian (or Ubuntu) root filesystem. See usage below.

set -euo pipefail

usage() {
	cat <<'END'
Usage: demo.sh [btrfs|zfs]

Imports a real root filesystem as the layers of an image. It makes a container layer with a limit from the image, runs
programs in it, and hits the limit. Then it lists the changes in both ways, moves them to another layer, compares the
two trees byte by byte, and cleans up. Each step prints a statement; the demo fails if a statement is false.

The root filesystem is made with mmdebstrap from the package sources of this machine and kept in the cache. The
store is an embedded store, in a temporary file. With zfs it is on the pool of TMPDIR, if TMPDIR is on ZFS, and
otherwise on a pool in such a file. If this host has no ZFS, the demo runs in the test machine (scripts/zfs-machine),
which takes minutes.

Environment:
  DRIVER         btrfs or zfs, if there is no argument
  COWSHED        the program; default is bin/cowshed of this tree
  COWSHED_CACHE  directory for the root filesystem; default /var/cache/cowshed
  TMPDIR         directory for the store; default /var/tmp

Exit codes: 0 all statements hold; 1 a statement is false, or an operation failed; 2 wrong usage.
END
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
driver=${1:-${DRIVER:-btrfs}}
case $driver in
btrfs | zfs) ;;
-h | --help | help)
	usage
	exit
	;;
*)
	usage >&2
	exit 2
	;;
esac
if [[ $# -gt 1 ]]; then
	usage >&2
	exit 2
fi

if [[ $(id -u) -ne 0 ]]; then
	echo 'This needs root, for mounts and quotas; going on with sudo.'
	exec sudo --preserve-env=COWSHED,COWSHED_CACHE,TMPDIR "${BASH_SOURCE[0]}" "$driver"
fi

program=${COWSHED:-$here/../bin/cowshed}
cache=${COWSHED_CACHE:-/var/cache/cowshed}/demo
work='' # made in main

# ---- Words -----------------------------------------------------------------------------------------------------

step_number=0

# step SENTENCE: prints the statement of the next step.
step() {
	step_number=$((step_number + 1))
	printf '\n%2d. %s\n' "$step_number" "$*"
}

# note TEXT: prints a result.
note() {
	printf '      %s\n' "$*"
}

# claim TEXT COMMAND...: prints TEXT if COMMAND succeeds, and ends the demo otherwise.
claim() {
	local text=$1
	shift
	"$@" || die "this does not hold: $text"
	note "$text"
}

die() {
	printf 'demo.sh: %s\n' "$*" >&2
	exit 1
}

# equal A B: compares two strings, for the function claim.
equal() { [[ $1 == "$2" ]]; }

cowshed() { "$program" --root "$work/store" --driver "$driver" "$@"; }

# seconds COMMAND...: runs a command, discards its output, and prints its duration in seconds.
seconds() {
	local start=$EPOCHREALTIME
	"$@" >/dev/null
	awk -v start="$start" -v end="$EPOCHREALTIME" 'BEGIN { printf "%.3f", end - start }'
}

# ---- The root filesystem ---------------------------------------------------------------------------------------

# prepare makes the root filesystem and fetches the packages of the second layer, unless the cache has them.
prepare() {
	base=$cache/base.tar
	packages=$cache/packages
	if [[ -s $base && -d $packages ]]; then
		return
	fi
	command -v mmdebstrap >/dev/null || die 'mmdebstrap is missing: apt-get install mmdebstrap'
	note "making $base with mmdebstrap; this is done once and takes a minute or two"

	local codename sources=() options=() setting
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
	# The sources and proxies of this machine work here.
	for setting in /etc/apt/sources.list.d/{debian,ubuntu}.sources /etc/apt/sources.list; do
		if [[ -s $setting ]]; then
			sources=("$setting")
			break
		fi
	done
	while read -r setting; do
		options+=("--aptopt=$setting")
	done < <(apt-config dump | grep -E '^Acquire::https?::Proxy ' || true)

	rm -rf "$cache/new"
	mkdir -p "$cache/new/packages"
	# shellcheck disable=SC2016 # $1 is for mmdebstrap's shell
	mmdebstrap --quiet --variant=minbase --include=git,perl "${options[@]}" \
		--customize-hook='chroot "$1" apt-get clean' \
		--customize-hook='chroot "$1" apt-get --quiet --quiet --yes --download-only --no-install-recommends install python3' \
		--customize-hook="sync-out /var/cache/apt/archives $cache/new/packages" \
		"$codename" "$cache/new/base.tar" "${sources[@]}"
	rm -rf "$packages" "$base"
	mv "$cache/new/packages" "$packages"
	mv "$cache/new/base.tar" "$base"
	rm -rf "$cache/new"
}

# ---- The store -------------------------------------------------------------------------------------------------

make_store() {
	if [[ $driver == zfs && $(stat -f -c %T "$work") == zfs ]]; then
		mkdir "$work/store"
		cowshed init
	elif [[ $driver == zfs ]]; then
		pool=cowshed-demo-$$
		"$here/mkfs-loop.sh" create --fs zfs --pool "$pool" "$work/pool.img" 4G >/dev/null
		"$here/mkfs-loop.sh" mount "$work/pool.img" "$work/store" >/dev/null
		cowshed init
	else
		# Also if TMPDIR is on btrfs: the demo must not turn quotas on in a filesystem of somebody else.
		cowshed init --loop 4G --always
	fi | sed 's/^/      /'
}

remove_store() {
	if [[ $driver == zfs ]]; then
		cowshed deinit --yes
		if [[ -e $work/pool.img ]]; then
			"$here/mkfs-loop.sh" unmount "$work/pool.img"
			"$here/mkfs-loop.sh" delete "$work/pool.img"
		fi
	else
		cowshed deinit --yes
	fi | sed 's/^/      /'
}

# clean_up removes everything, wherever the demo ended. It runs at the end in any case.
clean_up() {
	local status=$?
	trap - EXIT INT TERM
	[[ -n $work && -d $work ]] || exit "$status"
	if [[ -d $work/store ]]; then
		echo "Cleaning up after a failure." >&2
		local at
		# Deepest first.
		while read -r at; do
			umount "$at" || status=1
		done < <(awk -v work="$work/store/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
		if [[ $driver == zfs ]]; then
			if [[ -e $work/pool.img ]]; then
				"$here/mkfs-loop.sh" unmount "$work/pool.img" >&2 || status=1
				"$here/mkfs-loop.sh" delete "$work/pool.img" >&2 || status=1
			fi
		else
			cowshed deinit --yes >&2 || status=1
		fi
	fi
	rm -rf --one-file-system "$work" || status=1
	exit "$status"
}

# in_machine runs the demo in the ZFS test machine, with a root filesystem that is made here.
in_machine() {
	local machine=$here/zfs-machine/zfs-machine.sh
	echo 'This host has no ZFS: the demo runs in the test machine.'
	mkdir -p "$cache"
	prepare
	"$machine" build
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/cowshed-demo-XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir -p "$work/bin" "$work/scripts" "$work/cache/demo"
	cp "$program" "$work/bin/cowshed"
	cp "$here/demo.sh" "$here/mkfs-loop.sh" "$work/scripts"
	cp -r "$base" "$packages" "$work/cache/demo"
	"$machine" run --mem 3072 --disk 8G --dir "$work" --append-env COWSHED=/work/bin/cowshed \
		--append-env COWSHED_CACHE=/work/cache --append-env TMPDIR=/tank -- /work/scripts/demo.sh zfs
}

# ---- In a layer ------------------------------------------------------------------------------------------------

# inside DIR COMMAND...: runs a command in the tree at DIR, with processes and mounts of its own that end with it.
inside() {
	local dir=$1
	shift
	unshare --fork --pid --mount --kill-child --mount-proc="$dir/proc" \
		env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
		chroot "$dir" "$@"
}

# describe DIR: prints each file of a tree with type, mode, owner, links, device, time and a digest of its bytes.
describe() (
	cd "$1"
	find . -mindepth 1 -print0 | sort -z | xargs -0 stat --printf '%n %F %a %u %g %t:%T %Y\n'
	find . -mindepth 1 ! -type d -printf '%p %n %s %l\n' | sort
	find . -type f -print0 | sort -z | xargs -0 sha256sum
)

# over_limit FILE: writes FILE until a write fails, and succeeds if the limit was the reason.
over_limit() {
	local message
	if message=$(dd if=/dev/urandom of="$1" bs=1M count=64 2>&1); then
		return 1
	fi
	[[ $message == *'Disk quota exceeded'* || $message == *'No space left'* ]]
}

# ---- The demo --------------------------------------------------------------------------------------------------

main() {
	[[ -x $program ]] || die "$program is missing: make build"
	if [[ $driver == zfs && ! -c /dev/zfs ]]; then
		in_machine
		return
	fi
	work=$(mktemp -d "${TMPDIR:-/var/tmp}/cowshed-demo-XXXXXX")
	trap clean_up EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM

	step 'A store on btrfs or ZFS for a host that has neither: it is a file, as large as its content.'
	mkdir -p "$cache"
	prepare
	make_store

	step 'A root filesystem from real packages is imported as the base layer of an image.'
	local took
	took=$(seconds cowshed import "rootfs:$base" --name demo/base:1)
	note "$(tar -tf "$base" | wc -l) files, $(($(stat -c %s "$base") >> 20)) MiB, imported in $took s"

	step 'A second layer has the changes of a real package installation; the two become an image in one archive.'
	local dir
	cowshed create build --parent demo/base:1 >/dev/null
	dir=$(cowshed mount build)
	mkdir "$dir/packages"
	cp "$packages"/*.deb "$dir/packages"
	inside "$dir" sh -c 'apt-get --yes --no-install-recommends install /packages/*.deb' >"$work/apt.log" 2>&1 || {
		cat "$work/apt.log" >&2
		die 'apt-get failed in the layer'
	}
	rm -r "$dir/packages"
	cowshed unmount build
	cowshed export build "docker-archive:$work/image.tar:demo/app:1" --compress zstd >/dev/null
	cowshed rm build >/dev/null
	note "installed $(grep -c '^Setting up' "$work/apt.log") packages; the archive has $(($(stat -c %s "$work/image.tar") >> 20)) MiB"

	step 'Importing the archive makes the new layer only: the base exists and is used again.'
	cowshed import "docker-archive:$work/image.tar" --json >"$work/imported.json"
	claim 'one layer was used again' equal 1 "$(json_list "$work/imported.json" reused)"
	claim 'one layer was made' equal 1 "$(json_list "$work/imported.json" made)"

	step 'A container layer with a limit of 32 MiB is one snapshot: it exists at once and has no data of its own.'
	took=$(seconds cowshed create web --parent demo/app:1 --size 32M --read-write)
	note "created in $took s, program start included"
	cowshed tree | sed 's/^/      /'

	step 'Real programs run in it and change it as if it were theirs alone.'
	dir=$(cowshed mount web)
	# shellcheck disable=SC2016 # it is the inner shell that expands this
	inside "$dir" sh -ec '
		python3 -c "import platform; print(\"python\", platform.python_version(), \"on\", platform.freedesktop_os_release()[\"PRETTY_NAME\"])"
		echo "packages: $(dpkg-query --show | wc -l)"
		git init --quiet /srv/site
		cd /srv/site
		echo "a page" >index.html
		git add index.html
		git -c user.name=demo -c user.email=demo@localhost commit --quiet --message first
		git log --oneline
		echo web >/etc/hostname
		mv /etc/issue /etc/issue.old
		rm /etc/debian_version
		chmod 700 /srv
	' | sed 's/^/      /'

	step 'The limit holds: a write beyond it fails, deleting works, and then writing works again.'
	claim 'writing 64 MiB fails with "Disk quota exceeded"' over_limit "$dir/srv/big"
	cowshed usage web | sed 's/^/      /'
	claim 'deleting works' rm "$dir/srv/big"
	sync --file-system "$dir"
	claim 'writing works again' cp "$dir/usr/bin/git" "$dir/srv/git"
	cowshed unmount web

	step 'The filesystem knows the changes. Asking it and walking both trees give the same list.'
	cowshed changes web >"$work/native"
	cowshed changes web --walk >"$work/walked"
	cowshed changes web --json >"$work/native.json"
	claim 'the filesystem was asked' grep -q '"native": true' "$work/native.json"
	claim "both list the same $(wc -l <"$work/native") changes" cmp "$work/native" "$work/walked"
	claim 'among them a removal from above' grep -qx 'D /etc/debian_version' "$work/native"
	note "asked: $(seconds cowshed changes web) s, walked: $(seconds cowshed changes web --walk) s, program start included"

	step 'The changes are exported as a layer tar, and applied to a second layer made from the same image.'
	cowshed diff web --compress zstd --output "$work/web.tar.zst"
	cowshed create copy --parent demo/app:1 >/dev/null
	cowshed apply copy "$work/web.tar.zst"
	note "the tar has $(($(stat -c %s "$work/web.tar.zst") >> 10)) KiB"

	step 'The two trees are the same: names, types, modes, owners, links, devices, times and every byte.'
	local copy
	dir=$(cowshed mount --read-only web)
	copy=$(cowshed mount --read-only copy)
	describe "$dir" >"$work/web.list"
	describe "$copy" >"$work/copy.list"
	cowshed unmount web
	cowshed unmount copy
	claim "no difference in $(grep -c . "$work/web.list") lines of description" cmp "$work/web.list" "$work/copy.list"
	claim 'Cowshed finds no difference either' equal '' "$(cowshed changes copy web --walk)"

	step 'The store is well: nothing is half-made or left over.'
	claim 'cowshed doctor finds nothing wrong' cowshed_is_well

	step 'Everything is removed again.'
	cowshed rm web copy >/dev/null
	cowshed --quiet rmi demo/app:1 demo/base:1 >/dev/null
	claim 'no layer is left' equal '' "$(cowshed ls --names)"
	remove_store
	claim 'nothing is mounted' equal '' "$(grep -F "$work" /proc/self/mountinfo || true)"
	claim 'no file is left' equal '' "$(find "$work" -name '*.img*')"
	rmdir "$work/store" 2>/dev/null || true

	printf '\nAll of it holds. It took %s s.\n' "$SECONDS"
}

# json_list FILE MEMBER: prints the number of strings in a list of the JSON in FILE, which cowshed has written.
json_list() {
	awk -v start="  \"$2\": [" 'index($0, start) == 1 { inside = !/\]/; next } inside && /^  \]/ { inside = 0 } inside { n++ } END { print n + 0 }' "$1"
}

cowshed_is_well() {
	cowshed doctor >"$work/doctor" && ! grep -E '^(warn|fail)' "$work/doctor" >&2
}

main
