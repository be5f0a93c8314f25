#!/usr/bin/env bash
#
# Builds the ZFS test machine from Debian packages. Run by "zfs-machine.sh build".
#
#   build.sh CACHE NAME KERNEL ZFS
#
# leaves CACHE/NAME/{vmlinuz,root.img,versions}, and in CACHE/modules the compiled OpenZFS modules, so that a change to
# the rest of the machine does not compile them again. KERNEL is stable or backports. ZFS is either
# too, or next.

set -euo pipefail

# Installed on the host: what it takes to compile kernel modules, to make filesystem images and to run the machine.
host_packages=(qemu-system-x86 build-essential libelf1 e2fsprogs xz-utils)

# Everything else is downloaded and unpacked, never installed. What the machine consists of, dependencies aside:
guest_packages=(
	linux-image-cloud-amd64 zfsutils-linux btrfs-progs e2fsprogs
	acl attr base-files bash busybox-static checkpolicy coreutils dash diffutils findutils gawk grep gzip iproute2 kmod libc-bin
	fdisk libcap2-bin lsof mount ncurses-base procps psmisc sed strace tar util-linux xz-utils
)

# To compile its modules:
module_packages=(linux-headers-cloud-amd64 zfs-dkms)

# Dependencies that neither needs (it has no package manager and runs no Python): apt is told that they are there.
absent_packages=(
	debconf dkms dpkg file gcc-12 initramfs-tools libc6-dev libpam-runtime libpython3-stdlib linux-base lsb-release
	perl perl-base python3 python3-distutils usr-is-merged
)

# The release whose backports have the newest OpenZFS.
readonly next_release=trixie

readonly cache=$1 name=$2 kernel_from=$3 zfs_from=$4
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=/dev/null
debian=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
readonly here debian

say() { printf 'zfs-machine: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}

# quietly STEP COMMAND [ARG...] runs the command; what it prints is shown only if it fails.
quietly() {
	say "$1"
	"${@:2}" >"$work/log" 2>&1 </dev/null && return
	tail -n 50 "$work/log" >&2
	die "failed: $1"
}

# An apt of our own: package lists, cache and source list are in $work/apt, and the host's stay as they are. It reads
# the Debian archives that the host's apt is configured with, in whatever form that is written, plus contrib and
# backports of the same archive.
prepare_apt() {
	local dir=$work/apt origin uri release codename entry keyring
	mkdir -p "$dir"/{empty,lists/partial,cache/archives/partial}
	apt=(-q -y --no-install-recommends -o APT::Sandbox::User=root -o Acquire::Retries=3
		-o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache")
	quietly 'reading the package lists' apt-get "${apt[@]}" update

	# shellcheck disable=SC2016 # the variables are apt's
	apt-get "${apt[@]}" indextargets 'Created-By: Packages' \
		--format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(SOURCESENTRY)' | sort -u |
		while IFS='|' read -r origin uri release codename entry; do
			[[ $origin == Debian && $codename == "$debian"* ]] || continue
			keyring=$(sed -nE 's/^[^#]*signed-by[:=] *([^] ]+).*/\1/Ip' "${entry%:*}" | head -n 1)
			[[ -f $keyring ]] || keyring=/usr/share/keyrings/debian-archive-keyring.gpg
			echo "deb [signed-by=$keyring] $uri $release main contrib"
			[[ $release != "$debian" ]] || echo "deb [signed-by=$keyring] $uri $debian-backports main contrib"
			[[ $release != "$debian" || $zfs_from != next ]] || echo "deb [signed-by=$keyring] $uri $next_release-backports contrib"
		done | sort -u >"$dir/sources.list"
	grep -q " $debian " "$dir/sources.list" || die "apt is configured with no archive of Debian ${debian:-(unknown)}"
	apt+=(-o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts="$dir/empty")
	quietly 'reading the package lists, contrib and backports included' apt-get "${apt[@]}" update
}

install_on_host() {
	local missing=() package
	for package in "${host_packages[@]}"; do
		[[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
	done
	[[ ${#missing[@]} -gt 0 ]] || return 0
	[[ $EUID -eq 0 ]] || die "needed on this host, as root: apt-get install --no-install-recommends ${missing[*]}"
	DEBIAN_FRONTEND=noninteractive quietly "installing on this host: ${missing[*]}" \
		apt-get "${apt[@]}" -o DPkg::Lock::Timeout=300 install "${missing[@]}"
}

# Downloads all packages for an otherwise empty system. Backports that do not have OpenZFS leave that of the release.
download_packages() {
	local package multi_arch dir=$work/apt
	for package in "${absent_packages[@]}"; do
		# Others depend on perl:any, as the real package permits.
		multi_arch=foreign
		[[ $package != perl ]] || multi_arch=allowed
		printf 'Package: %s\nVersion: 999\nArchitecture: all\nMulti-Arch: %s\n' "$package" "$multi_arch"
		printf 'Status: install ok installed\nMaintainer: none\nDescription: not in the machine\n\n'
	done >"$dir/status"
	: >"$dir/preferences"
	[[ $zfs_from == stable ]] || cat >>"$dir/preferences" <<-END
		Package: zfs* libzfs* libzpool* libnvpair* libuutil*
		Pin: release n=$debian-backports
		Pin-Priority: 600
	END
	[[ $zfs_from != next ]] || cat >>"$dir/preferences" <<-END

		Package: *
		Pin: release n=$next_release-backports
		Pin-Priority: -1
	END
	[[ $kernel_from != backports ]] || cat >>"$dir/preferences" <<-END

		Package: linux-image-* linux-headers-* linux-kbuild-*
		Pin: release n=$debian-backports
		Pin-Priority: 600
	END
	apt+=(-o Dir::State::Status="$dir/status" -o Dir::State::Extended_States="$dir/states"
		-o Dir::Etc::PreferencesParts="$dir/empty" -o Dir::Etc::Preferences="$dir/preferences")
	quietly 'downloading packages' apt-get "${apt[@]}" -o APT::Keep-Downloaded-Packages=true \
		--download-only install "${guest_packages[@]}" "${module_packages[@]}"
	[[ $zfs_from == next ]] || return 0
	# apt does not install commands and modules of different versions together. The next release's commands need its
	# libraries; the sources of its modules can be compiled here.
	rm "$dir"/cache/archives/zfs-dkms_*.deb
	cd "$dir/cache/archives"
	quietly 'downloading newer modules' apt-get "${apt[@]}" download "zfs-dkms/$next_release-backports"
	cd "$work"
}

# Unpacks the packages: what modules are compiled from into $work/src, the machine into $work/root.
unpack_packages() {
	local deb dir
	# The layout of a merged /usr, which packages expect to find.
	mkdir -p "$work/src" "$work"/root/usr/{bin,lib,lib64,sbin}
	for dir in bin lib lib64 sbin; do ln -s "usr/$dir" "$work/root/$dir"; done
	for deb in "$work"/apt/cache/archives/*.deb; do
		dir=root
		case ${deb##*/} in linux-headers-* | linux-kbuild-* | linux-compiler-* | zfs-dkms_*) dir=src ;; esac
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/$dir" --keep-directory-symlink --no-same-owner \
			--exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/info' \
			--exclude='./usr/share/locale'
	done

	kernel=$(basename "$work"/root/lib/modules/*)
	zfs=$(basename "$work"/src/usr/src/zfs-*)
	kernel_version=$(version_of "linux-image-$kernel")
	zfs_version=$(version_of zfs-dkms)
	local option
	for option in BLK_DEV_NVME EXT4_FS DEVTMPFS SERIAL_8250_CONSOLE; do
		grep -q "^CONFIG_$option=y" "$work/root/boot/config-$kernel" ||
			die "the kernel $kernel has no built-in $option, which booting without an initramfs needs"
	done
}

version_of() { dpkg-deb -f "$work"/apt/cache/archives/"$1"_*.deb Version; }

# Compiles the modules of OpenZFS, unless these versions have been compiled before. Since 2.2 there are two.
compile_modules() {
	modules=$cache/modules/${kernel}_${kernel_version}_$zfs_version
	[[ ! -e $modules/zfs.ko ]] || return 0
	local src=$work/src/usr/src
	sed -i "s#/usr/src/#$src/#" "$src/linux-headers-$kernel/Makefile"
	cd "$src/$zfs"
	quietly "configuring $zfs for Linux $kernel" ./configure --disable-dependency-tracking --with-config=kernel \
		--with-linux="$src/linux-headers-${kernel%-cloud-amd64}-common" --with-linux-obj="$src/linux-headers-$kernel"
	quietly "compiling $zfs" make -j"$(nproc)"
	cd "$work"
	rm -rf "$modules" "$modules.new"
	mkdir -p "$modules.new"
	find "$src/$zfs/module" -name '*.ko' -exec mv -t "$modules.new" {} +
	strip --strip-debug "$modules.new"/*.ko
	mv "$modules.new" "$modules"
}

# Completes the root filesystem: what installing the packages would have done.
complete_root() {
	local root=$work/root applet
	local loader=("$root/lib64/ld-linux-x86-64.so.2" --library-path "$root/lib/x86_64-linux-gnu")
	mkdir -p "$root"/{dev,out,proc,root,run,sys,tmp,work} "$root/lib/modules/$kernel/extra"
	chmod 1777 "$root/tmp"
	cp "$modules"/*.ko "$root/lib/modules/$kernel/extra/"
	find "$root/lib/modules" -name '*.ko.xz' -exec xz -d {} +
	"${loader[@]}" --argv0 depmod "$root/bin/kmod" -b "$root" "$kernel"
	"$root/sbin/ldconfig" -r "$root"
	install -m 755 "$here/guest-init" "$root/sbin/guest-init"
	install -m 755 "$here/power-cut" "$root/sbin/power-cut"
	quietly 'compiling the policy of SELinux' "${loader[@]}" "$root/usr/bin/checkpolicy" -M -U allow \
		-o "$root/etc/selinux.policy" "$here/selinux.conf"

	echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
	echo 'nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin' >>"$root/etc/passwd"
	printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
	echo '127.0.0.1 localhost zfs-machine' >"$root/etc/hosts"
	echo zfs-machine >"$root/etc/hostname"
	ln -sf /proc/self/mounts "$root/etc/mtab"
	# A failed assertion of ZFS ends the machine; by default it only hangs whoever runs into it.
	mkdir -p "$root/etc/modprobe.d"
	echo 'options spl spl_panic_halt=1' >"$root/etc/modprobe.d/zfs-machine.conf"
	# Every machine is the same host to ZFS: it imports the pools of another one without being forced.
	printf '\x01\x02\x03\x04' >"$root/etc/hostid"

	[[ -e $root/bin/awk ]] || ln -s gawk "$root/bin/awk"
	[[ -e $root/bin/sh ]] || ln -s dash "$root/bin/sh"
	for applet in $("$root/bin/busybox" --list); do
		[[ -e $root/bin/$applet || -e $root/sbin/$applet ]] || ln -s busybox "$root/bin/$applet"
	done
}

make_image() {
	mkdir "$work/machine"
	mv "$work/root/boot/vmlinuz-$kernel" "$work/machine/vmlinuz"
	rm -rf "$work/root/boot"
	local size
	size=$(du -sm --apparent-size "$work/root" | cut -f 1)
	# It is only ever written to through throwaway snapshots, so it needs no journal.
	quietly 'making the root filesystem' mke2fs -q -t ext4 -b 4096 -O ^has_journal -m 0 -L root -E root_owner=0:0 \
		-d "$work/root" "$work/machine/root.img" "$((size * 5 / 4 + 256))M"
	printf 'Linux %s (%s), OpenZFS %s\n' "$kernel" "$kernel_version" "$zfs_version" >"$work/machine/versions"
	chmod -R a+rX "$work/machine"
	rm -rf "${cache:?}/$name"
	mv "$work/machine" "$cache/$name"
}

umask 022
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

prepare_apt
install_on_host
download_packages
unpack_packages
compile_modules
complete_root
make_image
