#!/usr/bin/env bash
#
# Runs every test of the project. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: test.sh STEP...

Steps:
  gates  gofmt, go vet, and a build and go vet for each other platform; go vet and tests of the modules of the benchmarks,
         of commandcheck and of make release; whether each public package has an example; whether scripts/deps.sh installs
         the commands that the tree runs (scripts/check-commands.sh)
  unit   the tests that need no root; others are skipped
  quick  all tests as root, to repeat after each change: without the race detector, and only in packages that have changed
         since their tests passed; a skipped test fails
  race   all tests as root, with the race detector; a skipped test fails
  fuzz   each fuzz target for FUZZTIME (default 10s, in CI 10s and 3s)
  zfs    the tests that need ZFS, in the test machine or on this host
  zfs-other  the tests of ZFS that depend on its version, in a test machine with the OpenZFS of Debian's release itself
  equivalence  the tests that compare layers with those of the peers, which gates runs too; the long variant has more tars
         (docs/testing.md)
  daemons  the tests with a real containerd and dockerd, which are built first (scripts/daemons.sh)
  daemons-long  the long variants of those tests, apart from clients, images and migrations, which have steps of their own
  clients  the suites of clients of containerd, with Cowshed and with overlayfs (docs/testing.md), and all round trips of
           images; prints the results
  migrations  the long variants of the tests that move images and containers of old engines
  kernels  the tests on btrfs with two of Debian's kernels, in the test machine (scripts/test-kernels.sh)
  engines  a small run of the benchmark through containerd
  systemd  the package for Debian in a virtual machine with systemd (scripts/test-systemd.sh)
  release  the release of the commit, for all architectures, built twice and compared
  fresh  make test in a new Debian root filesystem (scripts/fresh-machine.sh)
  all    gates, race and fuzz, then zfs and daemons side by side
  long   race, zfs, zfs-other and equivalence with the long variants of the tests (COWSHED_TEST_LONG=1): a soak of one hour, crash
         images of all states, long random runs, and the tars of other programs. Then daemons-long, clients, migrations, engines,
         systemd, release and fresh. This takes hours

Goes on after a step that fails. At the end it prints the time of each step, the failed steps, and "N passed, N failed".

Environment:
  FUZZTIME             time per fuzz target, as -fuzztime of go test
  PKG                  packages to test, default ./...
  RUN                  tests to run, as -run of go test
  COWSHED_TEST_LONG    1: the long variants of the tests; the steps long, daemons-long, clients and migrations set it
  COWSHED_CLIENTS_OUT  directory for the output of the suites of clients, which is deleted otherwise
  COWSHED_TEST_ZPOOL   a pool of this host for the step zfs, instead of the test machine
  COWSHED_CACHE        directory of the test machine, default /var/cache/cowshed

Exit codes: 0 everything passed; 1 something failed; 2 wrong usage.
END
}

readonly root=$PWD
# How long a package of tests may take.
test_timeout=30m
readonly other_platforms=(windows darwin freebsd)
read -ra packages <<<"${PKG:-./...}"
failed=() lanes=() lane_pids=()

# step NAME COMMAND...: runs the command, and remembers whether it failed.
step() {
	local name=$1 begun=$SECONDS
	shift
	echo "== $name"
	if ! "$@"; then
		failed+=("$name")
		echo "== $name FAILED"
	fi
	echo "== $name: $((SECONDS - begun)) s"
}

# judged [OPTION...] -- COMMAND...: runs the command, a go test -json, through testsum.
judged() {
	"$testsum" -counts "$work/counts" "$@"
}

formatted() {
	local files
	files=$(gofmt -l .)
	[[ -z $files ]] || {
		printf 'not formatted by gofmt: %s\n' "$files"
		return 1
	}
}

# in_lane NAME COMMAND...: runs the command, which consists of steps, beside all that follows until finish_lanes. That
# prints what the lanes printed, and remembers those with failed steps.
in_lane() {
	run_lane "${@:2}" >"$work/$1.log" 2>&1 &
	lanes+=("$1")
	lane_pids+=($!)
}

# run_lane COMMAND...: fails if one of the steps of the command fails.
run_lane() {
	local failed=()
	"$@"
	((${#failed[@]} == 0))
}

finish_lanes() {
	local i
	for i in "${!lanes[@]}"; do
		wait "${lane_pids[i]}" || failed+=("lane ${lanes[i]}")
		cat "$work/${lanes[i]}.log"
	done
	lanes=() lane_pids=()
}

gates() {
	# The tests of bench take about as long as all the rest, and one processor.
	in_lane bench step 'go vet and tests of bench' in_module bench
	step gofmt formatted
	step 'go vet' go vet "${packages[@]}"
	step 'go build without cgo' env CGO_ENABLED=0 go build "${packages[@]}"
	for os in "${other_platforms[@]}"; do
		step "go build and vet for $os" other_platform "$os"
	done
	step 'go vet and tests of commandcheck' in_module scripts/internal/commandcheck
	step 'go vet and tests of release' in_module scripts/internal/release
	step 'go vet and tests of manifests' in_module scripts/internal/manifests
	step 'go vet and tests of apicontract' in_module scripts/internal/apicontract
	step 'examples of public packages' go test -count=1 ./scripts/internal/examples
	step 'commands that deps.sh brings' scripts/check-commands.sh
	finish_lanes
}

other_platform() {
	GOOS=$1 go build "${packages[@]}" && GOOS=$1 go vet "${packages[@]}"
}

unit() {
	# Here a skipped test does not fail, and is counted.
	step 'unit tests' go test -count=1 ${RUN:+-run "$RUN"} "${packages[@]}"
}

# in_module DIR [PACKAGE [TIMEOUT]]: checks a module of its own, like that of the benchmarks with the peers. Its go.mod
# must be up to date with the main go.mod, and it must build. The tests of all its packages, or of one, must pass as
# root. Tests that need a pool run in the step zfs. One package runs after the other: mount namespaces of one would keep
# filesystems of another mounted.
in_module() {
	(
		cd "$1"
		go mod tidy -diff >/dev/null || {
			echo "$1/go.mod is not up to date with go.mod: run make tidy"
			exit 1
		}
		go vet ./... && COWSHED_TEST_REQUIRE=1 COWSHED_TEST_ZPOOL=elsewhere "$testsum" -counts "$work/counts" -elsewhere -- \
			go test -json -count=1 -p 1 -timeout "${3:-30m}" -exec "$root/scripts/as-root.sh" "${2:-./...}"
	)
}

# Results of the last run are reused, which go test does not do with -exec.
quick() {
	local as_root=()
	[[ $(id -u) -eq 0 ]] || as_root=(-exec "$PWD/scripts/as-root.sh")
	COWSHED_TEST_REQUIRE=1 COWSHED_TEST_ZPOOL=elsewhere step 'tests of what has changed' \
		judged -elsewhere -- go test -json -timeout "$test_timeout" "${as_root[@]}" ${RUN:+-run "$RUN"} "${packages[@]}"
}

race() {
	# e2e takes longest, and so it begins first.
	local longest=()
	[[ -n ${PKG:-} ]] || longest=(./e2e)
	# Tests that need a pool run in the step zfs.
	COWSHED_TEST_REQUIRE=1 COWSHED_TEST_ZPOOL=elsewhere step 'all tests, race detector' \
		judged -elsewhere -- go test -json -race -count=1 -p 3 -timeout "$test_timeout" -exec "$PWD/scripts/as-root.sh" \
		${RUN:+-run "$RUN"} "${longest[@]}" "${packages[@]}"
}

# fuzz_packages: prints the packages that have fuzz targets.
fuzz_packages() {
	# shellcheck disable=SC2016 # the variables are those of Go's template
	local format='{{$dir := .Dir}}{{$path := .ImportPath}}{{range .TestGoFiles}}{{$path}} {{$dir}}/{{.}}{{"\n"}}{{end}}{{range .XTestGoFiles}}{{$path}} {{$dir}}/{{.}}{{"\n"}}{{end}}'
	go list -f "$format" "${packages[@]}" | while read -r path file; do
		[[ -z $file ]] || ! grep -q '^func Fuzz' "$file" || echo "$path"
	done | sort -u
}

# fuzz_list: prints a line "package target time" for each fuzz target. In CI, targets that read a stream from outside,
# and so from an attacker, get 10 seconds, and the others 3. Outside CI all get 10. FUZZTIME replaces all of these.
fuzz_list() {
	local time=${FUZZTIME:-10s} less package list target
	less=$time
	[[ -n ${FUZZTIME:-} || -z ${CI:-} ]] || time=10s less=3s
	for package in $(fuzz_packages); do
		list=$(go test -list '^Fuzz' "$package") || return
		while read -r target; do
			case $package.$target in
			*.FuzzWrite* | *.FuzzParentRecord) echo "$package $target $less" ;;
			*/btrfs.* | */sendstream.* | */layertar.*) echo "$package $target $time" ;;
			*) echo "$package $target $less" ;;
			esac
		done < <(grep '^Fuzz' <<<"$list")
	done
}

# fuzz_target PACKAGE TARGET TIME: fuzzes. Before Go 1.27 (golang/go#75804), go test sometimes fails because the time is
# up; it then fuzzes again, twice at most. A failure that fuzzing has found is different, and is written to a file. While go test
# fuzzes, its own timeout does not count.
fuzz_target() {
	local events status
	events=$(mktemp "$work/events.XXXXXX")
	for _ in 1 2 3; do
		# With the default of a minute, minimizing takes most of the time of targets that are slow per input.
		status=0
		timeout --kill-after=60 "$fuzz_timeout" go test -json -count=1 -parallel=1 -run='^$' -fuzz="^$2\$" -fuzztime="$3" -fuzzminimizetime=10x -timeout 30m \
			"$1" >"$events" || status=$?
		((status != 124 && status != 137)) || {
			tail -n 20 "$events"
			echo "$2 of $1 has not ended in $fuzz_timeout s"
			return 1
		}
		if ! grep -q '"Output":" *context deadline exceeded\\n"' "$events" || grep -q 'Failing input written' "$events"; then
			break
		fi
	done
	"$testsum" -counts "$work/counts" <"$events"
}

# fuzz_lane LANE: runs every second target of the list, from the given number on.
fuzz_lane() {
	local n=0 package target time
	while read -r package target time; do
		((n++ % fuzz_lanes == $1)) || continue
		step "fuzz $target of $package for $time" fuzz_target "$package" "$target" "$time"
	done <"$work/fuzz-targets"
}

# How long a target may take: its time, and that for the seeds and for building, in seconds. FUZZTIME may be any time.
fuzz_timeout=900
[[ -z ${FUZZTIME:-} ]] || fuzz_timeout=0
readonly fuzz_lanes=2

fuzz() {
	local lane
	fuzz_list >"$work/fuzz-targets" || failed+=('list fuzz targets')
	for ((lane = 0; lane < fuzz_lanes; lane++)); do
		in_lane "fuzz-$lane" fuzz_lane "$lane"
	done
	finish_lanes
}

zfs() {
	step 'ZFS tests' scripts/test-zfs.sh -counts "$work/counts" "$@"
}

# zfs-other: Debian's other OpenZFS, with the short variants.
zfs-other() {
	step 'tests with another OpenZFS' env -u COWSHED_TEST_LONG -u PKG -u RUN scripts/test-zfs.sh -zfs stable -counts "$work/counts"
}

# zfs-and-daemons: the tests with daemons run on this host, those of ZFS in machines with a processor each.
zfs-and-daemons() {
	in_lane daemons daemons
	zfs -beside "${lane_pids[0]}"
	finish_lanes
}

kernels() {
	step 'tests on btrfs with other kernels' scripts/test-kernels.sh -counts "$work/counts"
}

equivalence() {
	step 'tests of layers with the peers' in_module bench ./equivalence 2h
}

daemons() {
	step 'build containerd and dockerd' scripts/daemons.sh build
	step 'build the clients' scripts/clients.sh build buildkit crictl nerdctl docker
	step 'tests with containerd and dockerd' in_module e2e/daemons
}

daemons-long() {
	step 'build containerd and dockerd' scripts/daemons.sh build
	COWSHED_TEST_LONG=1 step 'long tests with containerd and dockerd' in_module e2e/daemons . 3h
}

engines() {
	step 'small benchmark through containerd' env QUICK=1 scripts/bench.sh engines
}

systemd() {
	step 'the package under systemd' scripts/test-systemd.sh
}

release() {
	COWSHED_TEST_LONG=1 step 'release for all architectures' in_module scripts/internal/release ./... 1h
}

clients() {
	local out=${COWSHED_CLIENTS_OUT:-$work/clients}
	mkdir -p "$out"
	step 'build containerd and dockerd' scripts/daemons.sh build
	step 'build the clients' scripts/clients.sh build
	COWSHED_CLIENTS_OUT=$(realpath "$out") COWSHED_TEST_LONG=1 step 'suites of clients' \
		in_module e2e/daemons ./clients 8h
	COWSHED_TEST_LONG=1 step 'round trips of images' in_module e2e/daemons ./images
	find "$out" -name '*.md' -exec cat {} +
}

migrations() {
	step 'build containerd and dockerd' scripts/daemons.sh build
	COWSHED_TEST_LONG=1 step 'long migrations' in_module e2e/daemons ./migrate 3h
}

fresh() {
	# This run has its own caches, and tests nothing twice.
	step 'make test on a fresh machine' env -u COWSHED_TEST_LONG -u PKG -u RUN scripts/fresh-machine.sh
}

main() {
	[[ $# -gt 0 ]] || {
		usage >&2
		exit 2
	}
	local steps=()
	for name in "$@"; do
		case $name in
		gates | unit | quick | race | fuzz | zfs | zfs-other | equivalence | kernels | daemons | daemons-long | clients | migrations | engines | systemd | release | fresh) steps+=("$name") ;;
		all) steps+=(gates race fuzz zfs-and-daemons) ;;
		long)
			export COWSHED_TEST_LONG=1
			export FUZZTIME=${FUZZTIME:-1m}
			test_timeout=11h
			steps+=(race fuzz zfs zfs-other equivalence daemons-long clients migrations engines systemd release fresh)
			;;
		-h | --help | help)
			usage
			exit
			;;
		*)
			usage >&2
			exit 2
			;;
		esac
	done

	work=$(mktemp -d)
	trap 'rm -rf -- "$work"' EXIT
	testsum=$work/testsum
	go build -o "$testsum" ./scripts/internal/testsum
	local times=() begun
	for name in "${steps[@]}"; do
		begun=$SECONDS
		"$name"
		times+=("$name $((SECONDS - begun)) s,")
	done
	echo "time: ${times[*]} all $SECONDS s"

	[[ ${#failed[@]} -eq 0 ]] || printf 'failed: %s\n' "${failed[@]}"
	if [[ -e $work/counts ]]; then
		"$testsum" -total -counts "$work/counts" || failed+=(tests)
	fi
	[[ ${#failed[@]} -eq 0 ]]
}

main "$@"
