#!/bin/sh
# Makes the streams in this directory from real trees. Usage, as root: make.sh DIR, where DIR is an empty
# directory on a btrfs mounted with compress=zstd.
set -eu
out=$(cd "$(dirname "$0")" && pwd)
cd "$1"

btrfs -q subvolume create work
cd work
mkdir d
echo hello >d/f
ln d/f d/g
ln -s ../x d/l
mkfifo p
mknod c c 1 3
mknod b b 259 1048575
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
setfattr -n user.a -v b d/f
setfattr -n trusted.t -v x d
chown 5:6 d/g
chmod 4755 d/f
head -c 9000 /dev/zero >z
touch -d @1.5 z
setcap cap_net_admin+ep z
cp --reflink=always z z2
truncate -s 100000 sparse
cd ..
sync
btrfs -q subvolume snapshot -r work base

cd work
mv d e
echo more >>e/f
rm p
mkdir -p n/m
mv c n/m/
chmod 700 e
setfattr -x user.a e/g
head -c 3000 /dev/urandom >"$(printf 'odd\nname\377')"
truncate -s 5 z2
chattr +d e/f
cd ..
sync
btrfs -q subvolume snapshot -r work top

send() {
	file=$1
	shift
	btrfs -q send "$@" >"$out/$file.stream"
}
send full-v1 base
send full-v2 --proto 2 --compressed-data base
send incremental-v1 -p base top
send incremental-v2 --proto 2 --compressed-data -p base top
send nodata-v1 --no-data -p base top

btrfs -q subvolume delete base top work
