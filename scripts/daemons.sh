#!/usr/bin/env bash
#
# Gets the container daemons and tools that the tests in e2e/daemons run. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: daemons.sh build|path

  build  builds and unpacks what is not in the cache yet, then prints what path prints
  path   prints the directory of the programs, or fails if they have not been built

The directory has two parts:
  bin/     containerd, ctr, containerd-shim-runc-v2, runc and dockerd, built from the modules that
           e2e/daemons/go.mod pins
  debian/  Docker Engine with its containerd and runc, docker-registry, a static busybox, and the tools that images go
           to and come from (skopeo, buildah, umoci, and podman with what it does not start without), as Debian or Ubuntu
           package them

The packages are unpacked and not installed: their services are not started, now or at the next boot, and nothing
conflicts with a Docker that is there. What the programs need of the system is installed by scripts/deps.sh daemons.

Environment:
  COWSHED_CACHE  where the programs are kept, default /var/cache/cowshed

Exit codes: 0 done; 1 failed, or not built; 2 wrong usage; 5 a program or library to build with is missing.
END
}

readonly module=e2e/daemons
readonly packages=(docker.io containerd runc docker-registry busybox-static skopeo buildah umoci podman conmon)
readonly unused_days=14
root=()
[[ $(id -u) -eq 0 ]] || root=(sudo)
cache=${COWSHED_CACHE:-/var/cache/cowshed}/daemons

say() { echo "daemons.sh: $*" >&2; }

# key: what the programs are made from. Another one, another directory.
key() {
	{
		# Not go.mod itself: it also names what only the tests use.
		go -C "$module" list -deps -f '{{with .Module}}{{.Path}} {{.Version}}{{end}}' tool | sort -u
		cat scripts/daemons.sh
		go -C "$module" env GOVERSION GOOS GOARCH
		cat /etc/os-release
	} | sha256sum | cut -c 1-16
}

check() {
	local missing=()
	command -v gcc >/dev/null || missing+=(gcc)
	command -v pkg-config >/dev/null || missing+=(pkg-config)
	[[ ${#missing[@]} -gt 0 ]] || pkg-config --exists libseccomp || missing+=(libseccomp-dev)
	command -v apt-get >/dev/null || missing+=(apt-get)
	[[ ${#missing[@]} -eq 0 ]] || {
		say "missing: ${missing[*]}; scripts/deps.sh daemons installs what is needed"
		exit 5
	}
}

# compile DIR: builds the tools of the module into DIR.
compile() {
	say 'building containerd, runc and dockerd from source; this is done once and takes some minutes'
	CGO_ENABLED=1 go -C "$module" build -trimpath -buildvcs=false -ldflags '-s -w' \
		-tags 'seccomp no_zfs no_devmapper exclude_graphdriver_zfs' -o "$1/" tool
}

# unpack DIR: downloads the packages and unpacks them into DIR.
unpack() {
	local downloads=$1.downloads package
	say "unpacking ${packages[*]}"
	mkdir "$1" "$downloads"
	(
		cd "$downloads"
		# As a user of its own, apt could not write here. The list of packages may be missing or old.
		download=(apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}")
		"${download[@]}" || {
			"${root[@]}" apt-get -q update
			"${download[@]}"
		}
	) </dev/null >&2
	for package in "$downloads"/*.deb; do
		dpkg-deb --extract "$package" "$1"
	done
	rm -r "$downloads"
}

# build DIR: makes DIR, whole or not at all.
build() {
	local begun=$SECONDS
	check
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	[[ ! -d $1 ]] || return 0 # another process was faster

	new=$(mktemp -d "$cache/new.XXXXXX")
	trap 'rm -rf -- "$new"' EXIT
	chmod 0755 "$new"
	mkdir "$new/bin"
	unpack "$new/debian"
	compile "$new/bin"
	mv -T "$new" "$1"
	# Only the holder of the lock makes such names, so others are left from a process that was killed.
	find "$cache" -mindepth 1 -maxdepth 1 -type d \( -name 'new.*' -o -mtime "+$unused_days" \) -exec rm -rf -- {} +
	say "done in $((SECONDS - begun)) s"
}

main() {
	local dir
	case ${1:-} in
	build | path) ;;
	-h | --help | help)
		usage
		exit
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
	dir=$cache/$(key)
	if [[ ! -d $dir ]]; then
		[[ $1 == build ]] || {
			say 'not built yet: run scripts/daemons.sh build'
			exit 1
		}
		build "$dir"
	fi
	touch -c "$dir" 2>/dev/null || true # in use
	echo "$dir"
}

main "$@"
