#!/usr/bin/env bash
#
# Builds the machine of scripts/test-systemd.sh: Debian as it is installed, with systemd, dpkg and a kernel.
#
#   build.sh DIR
#
# leaves DIR/{vmlinuz,root.img}. Needs root. The machine with ZFS cannot take its place: that one is unpacked, without a
# database of packages, and has no systemd.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../.."

# systemd-sysv is systemd as process 1. Debian's kernel for virtual machines boots from NVMe without an initramfs.
readonly packages=(systemd-sysv dbus udev kmod btrfs-progs linux-image-cloud-amd64)

readonly dir=$1
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf --one-file-system -- "$work"' EXIT
trap 'exit 130' INT TERM HUP
root=$work/root

mkdir "$root"
chmod 755 "$root"
scripts/debian-root.sh make "$root"
# The machine is thrown away, and nothing in it is started before it boots.
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
# shellcheck disable=SC2016 # expanded in there
scripts/debian-root.sh enter "$root" --env DEBIAN_FRONTEND=noninteractive --env INITRD=No -- \
	bash -euc 'apt-get -q update && apt-get -q -y install --no-install-recommends "$@" && apt-get clean' bash "${packages[@]}" >&2
rm "$root/usr/sbin/policy-rc.d"
rm -rf "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,locale}/*

echo systemd-machine >"$root/etc/hostname"
mkdir -p "$root/work" "$root/var/lib/cowshed"
# The drivers of the other disks are modules. Without hardware acceleration they may take longer than systemd waits.
cat >"$root/etc/fstab" <<'END'
/dev/nvme0n1 / ext4 defaults 0 0
LABEL=work /work ext4 ro,x-systemd.device-timeout=infinity 0 0
LABEL=cowshed /var/lib/cowshed btrfs noatime,x-systemd.device-timeout=infinity 0 0
END
cat >"$root/etc/systemd/system/package-test.service" <<'END'
[Unit]
Description=The checks of scripts/test-systemd.sh
After=multi-user.target

[Service]
ExecStart=/bin/bash /work/checks.sh
TimeoutStopSec=10

[Install]
WantedBy=multi-user.target
END
ln -s ../package-test.service "$root/etc/systemd/system/multi-user.target.wants/package-test.service"

mkdir "$work/machine"
cp "$root"/boot/vmlinuz-* "$work/machine/vmlinuz"
rm -rf "${root:?}"/boot/*
mke2fs -q -t ext4 -b 4096 -m 0 -E root_owner=0:0 -d "$root" "$work/machine/root.img" "$(($(du -sm --apparent-size "$root" | cut -f 1) * 5 / 4 + 512))M" >&2
rm -rf -- "$dir"
mv "$work/machine" "$dir"
