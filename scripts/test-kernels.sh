#!/usr/bin/env bash
#
# Runs the tests on btrfs with other kernels than this host's. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: test-kernels.sh [-counts FILE] [KERNEL...]

Runs the tests of packages btrfs, internal/btrfsctl, quota and snapshotter in the test machine (scripts/zfs-machine), once
with each KERNEL, by default with both. A machine that is not in the cache is built first.

  stable         the kernel of this host's Debian release: 6.1 for Debian 12
  backports      the newest kernel in the backports of that release
  -counts FILE   add the numbers of passed and failed tests to FILE instead of printing them

A skipped test fails, unless scripts/allowed-skips-KERNEL lists it.

Environment:
  PKG            packages to test, instead of those
  RUN            tests to run, as -run of go test
  COWSHED_CACHE  directory of the test machine, default /var/cache/cowshed

Exit codes: 0 everything passed; 1 something failed; 2 wrong usage.
END
}

readonly machine=scripts/zfs-machine/zfs-machine.sh
module=$(go list -m)
read -ra packages <<<"${PKG:-./btrfs/... ./internal/btrfsctl ./quota ./snapshotter}"
readonly module packages

# build: makes in $dir/work, in the shape of the tree, the test binaries and the files that they read. It also makes a
# script tests.sh that runs them and prints test2json events.
build() {
	local work=$dir/work path rel
	mkdir -p "$work/docs"
	cp -r docs/reference "$work/docs/"
	CGO_ENABLED=0 go build -o "$work/test2json" cmd/test2json
	# shellcheck disable=SC2016 # expanded when the script runs
	printf '#!/bin/bash\nmodprobe fuse || exit\nwork=$(dirname "$(readlink -f "$0")")\nstatus=0\n' >"$work/tests.sh"
	go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "${packages[@]}" >"$dir/packages"
	while read -r path; do
		rel=${path#"$module"/}
		mkdir -p "$work/$rel"
		go test -c -o "$work/$rel/tests" "$path"
		[[ ! -d $rel/testdata ]] || cp -r "$rel/testdata" "$work/$rel/"
		# shellcheck disable=SC2016 # expanded when the script runs
		printf '(cd "$work"/%q && "$work/test2json" -t -p %q ./tests -test.v=test2json -test.count=1 -test.timeout=3h %s) || status=1\n' \
			"$rel" "$path" "${RUN:+-test.run=$(printf %q "$RUN")}" >>"$work/tests.sh"
	done <"$dir/packages"
	# shellcheck disable=SC2016 # expanded when the script runs
	echo 'exit "$status"' >>"$work/tests.sh"
	chmod +x "$work/tests.sh"
}

# in_machine KERNEL: runs the tests there. testsum fails for a test that is skipped there without an allowed reason.
in_machine() {
	local allowed=()
	[[ ! -e scripts/allowed-skips-$1 ]] || allowed=(-allow "scripts/allowed-skips-$1")
	echo "== btrfs with the kernel \"$1\""
	"$machine" build --kernel "$1"
	"$machine" run --kernel "$1" --timeout 36000 --mem 6144 --dir "$dir/work" --append-env COWSHED_TEST_ZPOOL=elsewhere \
		--append-env COWSHED_TEST_LONG="${COWSHED_TEST_LONG:-}" -- /work/tests.sh | "$dir/testsum" "${counts[@]}" "${allowed[@]}" -elsewhere
}

main() {
	local counts=() kernels=() kernel status=0
	while [[ $# -gt 0 ]]; do
		case $1 in
		-counts)
			counts=(-counts "${2:?-counts needs a file}")
			shift
			;;
		stable | backports) kernels+=("$1") ;;
		-h | --help | help)
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
	[[ ${#kernels[@]} -gt 0 ]] || kernels=(stable backports)

	dir=$(mktemp -d)
	trap 'rm -rf -- "$dir"' EXIT
	build
	go build -o "$dir/testsum" ./scripts/internal/testsum
	for kernel in "${kernels[@]}"; do
		in_machine "$kernel" || status=1
	done
	return "$status"
}

main "$@"
