#!/bin/sh
# Keeps btrfs and ZFS filesystems in image files. See usage below.
#
# An image of ours has a marker: beside IMAGE lies IMAGE.cowshed-loop, which has the identity of the filesystem inside
# (btrfs UUID or ZFS pool guid). Both files must exist and agree. So a file in the place of an image never passes for an
# image of ours. A marker that was left behind does not make it one.

set -eu

readonly EXIT_FAILED=1 EXIT_USAGE=2 EXIT_FOREIGN=3 EXIT_CONFLICT=4 EXIT_PREREQUISITE=5 EXIT_ABSENT=6
readonly MARKER_SUFFIX=.cowshed-loop
readonly MARKER_HEAD="# Written by Cowshed's mkfs-loop.sh: the file beside this one is an image that it made."

usage() {
	cat <<'END'
Usage: mkfs-loop.sh COMMAND [ARGUMENTS]

Keeps a btrfs or ZFS filesystem in an ordinary file (the image), for hosts that
have no disk to spare for one.

Commands:
  create [--fs btrfs|zfs] [--pool NAME] IMAGE SIZE
                     make IMAGE, a sparse file of SIZE with a filesystem in it;
                     btrfs unless --fs says otherwise; NAME is the name of the
                     ZFS pool, by default the file's name without its ending
  mount IMAGE DIR    mount it on DIR, which is made if missing and must be empty
  grow IMAGE SIZE    make it larger, mounted or not
  unmount IMAGE      unmount it wherever it is mounted
  delete IMAGE       delete the file; it must be unmounted
  status IMAGE       print its filesystem, its size and where it is mounted
  list [DIR]         list the images in DIR, by default the current directory
  help               print this

SIZE is a number of bytes, or a number with the suffix K, M, G or T (powers of
1024).

Each command may be repeated: if an image is already in the requested state, the
command leaves it alone and succeeds. Only images that this script made are
mounted, grown or deleted. Other files are never overwritten, and block devices
are never touched. Beside each image lies a small file IMAGE.cowshed-loop that
marks it.

ZFS pools are made without a cache file: after a restart of the host no pool is
imported until `mount` imports it. The root dataset has mountpoint=legacy.

Exit codes:
  0  done, or already in the requested state
  1  an operation failed; the message of the failed tool is above
  2  wrong usage
  3  refused: not an image that this script made, or not a regular file
  4  refused: in use, mounted elsewhere, of another size or kind, or the
     directory is not empty
  5  a prerequisite is missing: root, a program, a kernel module
  6  there is no such image
END
}

# die CODE MESSAGE
die() {
	code=$1
	shift
	printf 'mkfs-loop.sh: %s\n' "$*" >&2
	exit "$code"
}

say() {
	printf '%s\n' "$*"
}

need_root() {
	[ "$(id -u)" -eq 0 ] || die $EXIT_PREREQUISITE "$1 needs root"
}

# need_tool PROGRAM PACKAGE
need_tool() {
	command -v "$1" >/dev/null 2>&1 ||
		die $EXIT_PREREQUISITE "$1 is not installed; on Debian and Ubuntu it is in the package $2"
}

# need_fs_tools FS
need_fs_tools() {
	case $1 in
	btrfs)
		need_tool mkfs.btrfs btrfs-progs
		need_tool btrfs btrfs-progs
		need_tool losetup mount
		;;
	zfs)
		need_tool zpool zfsutils-linux
		need_tool zfs zfsutils-linux
		need_tool zdb zfsutils-linux
		[ -e /dev/zfs ] || die $EXIT_PREREQUISITE "the kernel has no ZFS: /dev/zfs is missing (modprobe zfs)"
		;;
	esac
}

# bytes SIZE: prints the size in bytes.
bytes() {
	number=${1%[KMGT]}
	case $number in
	'' | *[!0-9]* | 0*) die $EXIT_USAGE "\"$1\" is not a size; write for example 20G" ;;
	esac
	[ ${#number} -le 15 ] || die $EXIT_USAGE "size $1 is too large"
	case $1 in
	*K) factor=1024 ;;
	*M) factor=$((1024 * 1024)) ;;
	*G) factor=$((1024 * 1024 * 1024)) ;;
	*T) factor=$((1024 * 1024 * 1024 * 1024)) ;;
	*) factor=1 ;;
	esac
	[ "$number" -le $((9223372036854775807 / factor)) ] || die $EXIT_USAGE "size $1 is too large"
	# Both filesystems and loop devices want whole sectors.
	[ $((number * factor % 4096)) -eq 0 ] || die $EXIT_USAGE "size $1 is not a multiple of 4096"
	echo $((number * factor))
}

# resolve IMAGE: sets image to its absolute path, dir to its directory and marker to its marker, and locks
# the directory against other runs of this script.
resolve() {
	[ -n "$1" ] || die $EXIT_USAGE "the image's name is empty"
	dir=$(dirname -- "$1")
	[ -d "$dir" ] || die $EXIT_ABSENT "there is no directory $dir"
	dir=$(realpath -- "$dir")
	image=${dir%/}/$(basename -- "$1")
	case $image in
	*"$MARKER_SUFFIX") die $EXIT_USAGE "$image is the name of a marker, not of an image" ;;
	esac
	marker=$image$MARKER_SUFFIX
	exec 9<"$dir"
	flock -w 60 9 || die $EXIT_CONFLICT "another process has held the lock on $dir for a minute"
	# A link is not followed: this script did not make its target under this name.
	if [ -L "$image" ] || { [ -e "$image" ] && [ ! -f "$image" ]; }; then
		die $EXIT_FOREIGN "$image is not a regular file; left alone"
	fi
}

# identity FS FILE: prints the identity of the filesystem in FILE, and nothing if there is no filesystem of that kind.
identity() {
	case $1 in
	btrfs)
		# The superblock is at 64 KiB: fsid at offset 0x20, magic "_BHRfS_M" at 0x40.
		magic=$(od -An -v -tx1 -j 65600 -N 8 "$2" 2>/dev/null | tr -d ' \n') || true
		[ "$magic" = 5f42485266535f4d ] || return 0
		od -An -v -tx1 -j 65568 -N 16 "$2" | tr -d ' \n'
		;;
	zfs)
		zdb -l "$2" 2>/dev/null | sed -n 's/^ *pool_guid: *\([0-9]*\)$/\1/p' | head -n 1
		;;
	esac
}

# own_marker: succeeds if marker is a file that this script wrote.
own_marker() {
	[ -f "$marker" ] && [ ! -L "$marker" ] && [ "$(head -n 1 -- "$marker")" = "$MARKER_HEAD" ]
}

# drop_marker: removes a marker whose image is gone. No other file may have its name.
drop_marker() {
	[ -e "$marker" ] || [ -L "$marker" ] || return 0
	own_marker || die $EXIT_FOREIGN "$marker was not made by this script; left alone"
	rm -- "$marker"
}

# field NAME: prints a field of the marker.
field() {
	sed -n "s/^$1=//p" "$marker" | head -n 1
}

# load: checks that image is an image of ours, and sets fs, id and pool. It returns 1 if there is no image.
load() {
	[ -e "$image" ] || return 1
	own_marker || die $EXIT_FOREIGN "$image was not made by this script (there is no $marker); left alone"
	fs=$(field fs)
	id=$(field id)
	pool=$(field pool)
	case $fs in
	btrfs | zfs) ;;
	*) die $EXIT_FOREIGN "$marker is damaged; $image left alone" ;;
	esac
	[ "$fs" != zfs ] || need_tool zdb zfsutils-linux
	if [ -z "$id" ] || [ "$(identity "$fs" "$image")" != "$id" ]; then
		die $EXIT_FOREIGN "$image does not hold the filesystem that its marker names; left alone"
	fi
}

# must_load: like load, but an absent image is an error.
must_load() {
	load || die $EXIT_ABSENT "there is no image $image"
}

# source_of: prints the device or dataset from which the image's filesystem is mounted. It prints nothing if the image
# is not attached or imported.
source_of() {
	case $fs in
	btrfs) losetup --noheadings --output NAME --associated "$image" | head -n 1 ;;
	zfs) zpool list -Hp -o guid,name 2>/dev/null | awk -v id="$id" '$1 == id { print $2 }' ;;
	esac
}

# mounts SOURCE: prints the mount points of SOURCE, one in a line.
mounts() {
	[ -n "$1" ] || return 0
	# In /proc/mounts blanks and backslashes are written in octal.
	awk -v dev="$1" '$1 == dev { print $2 }' /proc/mounts | sed 's/\\\([0-7][0-7][0-7]\)/\\0\1/g' |
		while IFS= read -r target; do
			printf '%b\n' "$target"
		done
}

size_of() {
	stat -c %s -- "$1"
}

create() {
	fs=btrfs pool=
	while [ $# -gt 0 ]; do
		case $1 in
		--fs)
			[ $# -ge 2 ] || die $EXIT_USAGE "--fs needs a value"
			fs=$2
			shift 2
			;;
		--fs=*) fs=${1#*=} && shift ;;
		--pool)
			[ $# -ge 2 ] || die $EXIT_USAGE "--pool needs a value"
			pool=$2
			shift 2
			;;
		--pool=*) pool=${1#*=} && shift ;;
		--) shift && break ;;
		-*) die $EXIT_USAGE "create has no option $1" ;;
		*) break ;;
		esac
	done
	[ $# -eq 2 ] || die $EXIT_USAGE "create takes IMAGE and SIZE"
	case $fs in
	btrfs) [ -z "$pool" ] || die $EXIT_USAGE "--pool is for --fs zfs" ;;
	zfs) ;;
	*) die $EXIT_USAGE "--fs is btrfs or zfs, not $fs" ;;
	esac
	size=$(bytes "$2")
	resolve "$1"

	wanted=$fs wanted_pool=$pool
	if load; then
		[ "$fs" = "$wanted" ] || die $EXIT_CONFLICT "$image exists and holds $fs"
		[ -z "$wanted_pool" ] || [ "$pool" = "$wanted_pool" ] ||
			die $EXIT_CONFLICT "$image exists and holds the pool $pool"
		[ "$(size_of "$image")" -eq "$size" ] ||
			die $EXIT_CONFLICT "$image exists and has $(size_of "$image") bytes; use grow to make it larger"
		say "$image is already there"
		return
	fi
	need_fs_tools "$fs"

	# The image is made under a name of its own. When complete, it takes its final name in one step that never replaces
	# a file. The marker comes first: without its image it means nothing.
	new=$(mktemp "$dir/.cowshed-loop.XXXXXXXX")
	new_pool=
	trap 'discard_new' EXIT
	trap 'exit $EXIT_FAILED' HUP INT TERM
	truncate -s "$size" "$new"
	case $fs in
	btrfs)
		mkfs.btrfs --quiet "$new" >/dev/null || die $EXIT_FAILED "mkfs.btrfs failed"
		;;
	zfs)
		need_root "create --fs zfs"
		make_pool
		;;
	esac
	id=$(identity "$fs" "$new")
	[ -n "$id" ] || die $EXIT_FAILED "the new filesystem in $new cannot be identified"
	drop_marker
	(
		set -C # never write into a file that somebody else made
		cat >"$marker" <<-END
			$MARKER_HEAD
			version=1
			fs=$fs
			id=$id
			pool=$pool
		END
	) || die $EXIT_FAILED "cannot write $marker"
	mv -nT -- "$new" "$image" || true
	[ ! -e "$new" ] || die $EXIT_FOREIGN "$image appeared while it was being made; left alone"
	say "$image made: $fs, $size bytes"
}

# discard_new: removes the unfinished work of create.
discard_new() {
	[ -z "$new_pool" ] || zpool destroy -f "$new_pool" || true
	rm -f -- "$new"
}

# make_pool: makes a pool in the file $new and exports it again.
make_pool() {
	if [ -z "$pool" ]; then
		pool=$(basename -- "$image")
		pool=${pool%.*}
	fi
	case $pool in
	'' | [!A-Za-z]* | *[!A-Za-z0-9_.-]*) die $EXIT_USAGE "\"$pool\" cannot be the name of a pool; give one with --pool" ;;
	esac
	! zpool list -H -o name "$pool" >/dev/null 2>&1 || die $EXIT_CONFLICT "there is already a pool $pool"
	new_pool=$pool
	zpool create -o cachefile=none -O com.sun:auto-snapshot=false -m legacy "$pool" "$new" ||
		{ new_pool='' && die $EXIT_FAILED "zpool create failed"; }
	zpool export "$pool" || die $EXIT_FAILED "zpool export failed; the pool is $pool"
	new_pool=
}

mount_image() {
	[ $# -eq 2 ] || die $EXIT_USAGE "mount takes IMAGE and DIR"
	[ -n "$2" ] || die $EXIT_USAGE "the directory's name is empty"
	need_root mount
	resolve "$1"
	must_load
	need_fs_tools "$fs"
	[ ! -e "$2" ] || [ -d "$2" ] || die $EXIT_CONFLICT "$2 is not a directory"
	mkdir -p -- "$2"
	target=$(realpath -- "$2")

	from=$(source_of)
	at=$(mounts "$from")
	if [ -n "$at" ]; then
		printf '%s\n' "$at" | grep -Fxq -- "$target" || die $EXIT_CONFLICT "$image is already mounted on $at"
		say "$image is already mounted on $target"
		return
	fi
	[ -z "$(ls -A -- "$target")" ] || die $EXIT_CONFLICT "$target is not empty"

	# The image may have grown while it was not mounted: the filesystem is made to fill it.
	case $fs in
	btrfs)
		mount -t btrfs -o loop,noatime -- "$image" "$target" || die $EXIT_FAILED "mount failed"
		btrfs filesystem resize max "$target" >/dev/null || die $EXIT_FAILED "btrfs filesystem resize failed"
		;;
	zfs)
		if [ -z "$from" ]; then
			zpool import -d "$image" -o cachefile=none -N "$id" || die $EXIT_FAILED "zpool import failed"
			from=$(source_of)
		fi
		zpool online -e "$from" "$image" || die $EXIT_FAILED "zpool online failed"
		mount -t zfs -o noatime "$from" "$target" || die $EXIT_FAILED "mount failed"
		;;
	esac
	say "$image mounted on $target"
}

grow() {
	[ $# -eq 2 ] || die $EXIT_USAGE "grow takes IMAGE and SIZE"
	size=$(bytes "$2")
	resolve "$1"
	must_load
	old=$(size_of "$image")
	[ "$size" -ge "$old" ] || die $EXIT_CONFLICT "$image has $old bytes already; images are not made smaller"
	if [ "$size" -gt "$old" ]; then
		truncate -s "$size" "$image"
	fi

	# These steps run even if the size is right: an earlier run may have been interrupted after the line above.
	need_fs_tools "$fs"
	from=$(source_of)
	at=$(mounts "$from" | head -n 1)
	if [ -n "$at" ]; then
		need_root "grow of a mounted image"
		case $fs in
		btrfs)
			losetup --set-capacity "$from" || die $EXIT_FAILED "losetup failed"
			btrfs filesystem resize max "$at" >/dev/null || die $EXIT_FAILED "btrfs filesystem resize failed"
			;;
		zfs) zpool online -e "$from" "$image" || die $EXIT_FAILED "zpool online failed" ;;
		esac
	fi
	say "$image has $size bytes"
}

unmount_image() {
	[ $# -eq 1 ] || die $EXIT_USAGE "unmount takes IMAGE"
	need_root unmount
	resolve "$1"
	must_load
	need_fs_tools "$fs"
	from=$(source_of)
	if [ -z "$from" ]; then
		say "$image is not mounted"
		return
	fi
	while :; do
		at=$(mounts "$from" | tail -n 1)
		[ -n "$at" ] || break
		umount -- "$at" || die $EXIT_CONFLICT "$at is in use"
	done
	case $fs in
	btrfs)
		# A loop device that mount attached detaches itself. A loop device that was attached by hand does not.
		from=$(source_of)
		[ -z "$from" ] || losetup --detach "$from" || die $EXIT_CONFLICT "$from is in use"
		;;
	zfs) zpool export "$from" || die $EXIT_CONFLICT "the pool $from is in use" ;;
	esac
	say "$image unmounted"
}

delete() {
	[ $# -eq 1 ] || die $EXIT_USAGE "delete takes IMAGE"
	resolve "$1"
	if ! load; then
		drop_marker
		say "$image is not there"
		return
	fi
	need_fs_tools "$fs"
	from=$(source_of)
	[ -z "$from" ] || die $EXIT_CONFLICT "$image is in use by $from; unmount it first"
	# The image goes first. A marker without an image means nothing, but an image without a marker could not be deleted.
	rm -- "$image"
	drop_marker
	say "$image deleted"
}

status() {
	[ $# -eq 1 ] || die $EXIT_USAGE "status takes IMAGE"
	resolve "$1"
	must_load
	from=$(source_of)
	say "image: $image"
	say "filesystem: $fs"
	say "id: $id"
	[ -z "$pool" ] || say "pool: $pool"
	say "size: $(size_of "$image")"
	say "allocated: $(($(stat -c %b -- "$image") * 512))"
	say "attached: ${from:-no}"
	at=$(mounts "$from")
	say "mounted: ${at:-no}"
}

list() {
	[ $# -le 1 ] || die $EXIT_USAGE "list takes at most one directory"
	[ -d "${1:-.}" ] || die $EXIT_ABSENT "there is no directory $1"
	where=$(realpath -- "${1:-.}")
	for marker in "$where"/*"$MARKER_SUFFIX" "$where"/.*"$MARKER_SUFFIX"; do
		[ -f "$marker" ] || continue
		# In a process of its own: a damaged or foreign image ends the script.
		(
			resolve "${marker%"$MARKER_SUFFIX"}"
			load || exit 0
			from=$(source_of)
			at=$(mounts "$from" | head -n 1)
			printf '%s\t%s\t%s\t%s\n' "$image" "$fs" "$(size_of "$image")" "${at:--}"
		) || true
	done
}

main() {
	PATH=$PATH:/usr/sbin:/sbin
	# The output of other programs is read here.
	LC_ALL=C
	export PATH LC_ALL
	command=${1:-}
	[ $# -eq 0 ] || shift
	case $command in
	create) create "$@" ;;
	mount) mount_image "$@" ;;
	grow) grow "$@" ;;
	unmount | umount) unmount_image "$@" ;;
	delete) delete "$@" ;;
	status) status "$@" ;;
	list) list "$@" ;;
	help | -h | --help) usage ;;
	'')
		usage >&2
		exit $EXIT_USAGE
		;;
	*) die $EXIT_USAGE "there is no command \"$command\"; see mkfs-loop.sh help" ;;
	esac
}

main "$@"
