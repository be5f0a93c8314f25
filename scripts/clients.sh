#!/usr/bin/env bash
#
# Builds the programs that use containerd, and their test suites, for the tests in e2e/daemons/clients. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: clients.sh build [SET...]|path SET

  build  builds the sets, by default all, that are not in the cache yet
  path   prints the directory of the programs of a set, or fails if it has not been built

Sets, each built from the sources of its module, with the dependencies that the module pins:
  buildkit    buildkitd, buildctl and buildkit-client.test, the suite of BuildKit's client
  cri         critest, the suite for the interface between Kubernetes and containerd
  crictl      crictl, the command for the same interface
  cni         the network plugins that pods need
  containerd  containerd-client.test, the suite of containerd's client, and runc-fp, which it needs
  nerdctl     nerdctl
  docker      docker, the command line
  buildx      docker-buildx, its plugin
  compose     docker-compose, its plugin

Environment:
  COWSHED_CACHE  directory for the programs, default /var/cache/cowshed

Exit codes: 0 done; 1 failed, or not built; 2 wrong usage.
END
}

readonly sets=(buildkit cri crictl cni containerd nerdctl docker buildx compose)
readonly unused_days=14 retry=$PWD/scripts/retry.sh
cache=${COWSHED_CACHE:-/var/cache/cowshed}/clients

say() { echo "clients.sh: $*" >&2; }

# module SET: prints the module from which the set is built. The checksum database verifies downloads.
module() {
	case $1 in
	buildkit) echo github.com/moby/buildkit@v0.34.2 ;;
	cri | crictl) echo sigs.k8s.io/cri-tools@v1.37.0 ;;
	cni) echo github.com/containernetworking/plugins@v1.9.1 ;;
	# The suite belongs to the containerd that the tests run.
	containerd) go -C e2e/daemons list -m -f '{{.Path}}@{{.Version}}' github.com/containerd/containerd/v2 ;;
	nerdctl) echo github.com/containerd/nerdctl/v2@v2.2.1 ;;
	docker) echo github.com/docker/cli@v29.9.2+incompatible ;;
	buildx) echo github.com/docker/buildx@v0.38.2 ;;
	compose) echo github.com/docker/compose/v5@v5.6.0 ;;
	*)
		usage >&2
		exit 2
		;;
	esac
}

# compile_SET DIR: builds the programs of the set into DIR, in the source of its module.

compile_buildkit() {
	go build -ldflags '-s -w' -o "$1/" ./cmd/buildkitd ./cmd/buildctl
	go test -c -ldflags '-s -w' -o "$1/buildkit-client.test" ./client
}

compile_cri() {
	go test -c -ldflags '-s -w' -o "$1/critest" ./cmd/critest
}

compile_crictl() {
	go build -ldflags '-s -w' -o "$1/" ./cmd/crictl
}

compile_cni() {
	go build -ldflags '-s -w' -o "$1/" ./plugins/main/bridge ./plugins/main/loopback ./plugins/ipam/host-local
}

compile_containerd() {
	# The flag -image-list is read before it is set.
	sed -i 's/initImages(\*imageListFile)/initImages(os.Getenv("IMAGE_LIST"))/' integration/images/image_list.go
	go test -c -ldflags '-s -w' -o "$1/containerd-client.test" ./integration/client
	go build -ldflags '-s -w' -o "$1/" ./integration/failpoint/cmd/runc-fp
}

compile_nerdctl() {
	# The code that its own tests share needs a module that is not published.
	rm cmd/nerdctl/helpers/testing*.go
	mkdir -p mod/tigron
	echo 'module github.com/containerd/nerdctl/mod/tigron' >mod/tigron/go.mod
	go build -ldflags '-s -w' -o "$1/" ./cmd/nerdctl
}

compile_docker() {
	# It is no module, and lists its dependencies in files of its own.
	rm -r vendor
	mv vendor.mod go.mod
	mv vendor.sum go.sum
	go build -ldflags '-s -w' -o "$1/" ./cmd/docker
}

compile_buildx() {
	# Compose asks for the version of buildx, and builds only with a released version.
	local version
	version=$(module buildx)
	go build -ldflags "-s -w -X github.com/docker/buildx/version.Version=${version#*@}" -o "$1/docker-buildx" ./cmd/buildx
}

compile_compose() {
	go build -ldflags '-s -w' -o "$1/docker-compose" ./cmd
}

# directory SET: prints the directory for the programs of the set. Its name depends on everything that they are made
# from.
directory() {
	local key
	key=$({
		module "$1"
		declare -f "compile_$1"
		go env GOVERSION GOOS GOARCH
	} | sha256sum | cut -c 1-16)
	echo "$cache/$1-$key"
}

# build SET: makes the directory of the set, completely or not at all.
build() {
	local begun=$SECONDS name dir source
	name=$(module "$1")
	dir=$(directory "$1")
	if [[ -d $dir ]]; then
		touch -c "$dir" # it is in use, and stays
		return
	fi
	say "building $name from source; this is done once and takes some minutes"
	new=$(mktemp -d "$cache/new.XXXXXX")
	chmod 0755 "$new"
	mkdir "$new/bin"
	# Outside the tree: its go.mod would apply there.
	source=$(cd "$new" && "$retry" go mod download -json "$name" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	cp -r "$source" "$new/source"
	chmod -R u+w "$new/source"
	(
		cd "$new/source"
		export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off
		# shellcheck disable=SC2317 # compile_SET calls it, for its downloads
		go() { "$retry" go "$@"; }
		"compile_$1" "$new/bin"
	)
	rm -r "$new/source"
	mv -T "$new" "$dir"
	say "$1 is done in $((SECONDS - begun)) s"
}

main() {
	local command=${1:-} set dir
	[[ $# -eq 0 ]] || shift
	case $command in
	build)
		[[ $# -gt 0 ]] || set -- "${sets[@]}"
		mkdir -p "$cache"
		exec 9>"$cache/lock"
		flock 9
		new=
		trap '[[ -z $new ]] || rm -rf -- "$new"' EXIT
		for set in "$@"; do
			build "$set"
		done
		# Only the holder of the lock makes such names, so others are left from a process that was killed.
		find "$cache" -mindepth 1 -maxdepth 1 -type d \( -name 'new.*' -o -mtime "+$unused_days" \) -exec rm -rf -- {} +
		;;
	path)
		[[ $# -eq 1 ]] || {
			usage >&2
			exit 2
		}
		dir=$(directory "$1")
		[[ -d $dir ]] || {
			say "$1 is not built yet: run scripts/clients.sh build $1"
			exit 1
		}
		echo "$dir/bin"
		;;
	-h | --help | help) usage ;;
	*)
		usage >&2
		exit 2
		;;
	esac
}

main "$@"
