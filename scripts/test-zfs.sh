#!/usr/bin/env bash
#
# Runs the tests that need ZFS. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: test-zfs.sh [-counts FILE] [-beside PID] [-zfs VERSION]

Runs the tests that need ZFS. These are all tests of package zfs, of packages below it, and of e2e, which tests ZFS if it is
given a pool. Of other packages they are the tests with ZFS in their name. Among those are the tests of e2e/daemons, with a
real Docker Engine, which scripts/daemons.sh gets.

If the host has ZFS, the tests run on it. Otherwise they run in the test machine (scripts/zfs-machine), which is built first
if it is not in the cache. There, more tests follow:

  TestZFSAfterCut     of e2e: the power is cut in the middle of a workload; in the long variant three times, and once with
                      shared roots (TestZFSAfterCutShared)
  TestZFSCrashImages  recovers from the content of the pool's disk after each flush; in the long variant with shared roots
                      too (TestZFSCrashImagesShared)
  TestMountLabel      only in the long variant: labels of SELinux, in a machine whose kernel enforces a policy, on btrfs too

  -counts FILE   add the numbers of passed and failed tests to FILE instead of printing them
  -beside PID    leave a processor to that process while it runs
  -zfs VERSION   run the tests in the test machine with that OpenZFS (see there), whatever the host has: those of zfs,
                 internal/zfsctl and snapshotter, and the conformance suite of e2e

Environment:
  PKG                 packages to test, default ./... ./e2e/daemons
  RUN                 tests to run, as -run of go test, default as above. The power is cut, and crash images are made,
                      only without RUN or if it is one of the names above. So are labels tested
  RACE                1: with the race detector, which is slow in the test machine
  COWSHED_TEST_LONG   1: the long variants of the tests, with twelve hours of time
  COWSHED_FAULTS_PART  a part of the faults of TestFaults, such as 1/6; long, without RUN, each part has a machine
  COWSHED_FAULTS_SEED, COWSHED_TEST_SEED  repeat a random test: see docs/testing.md
  COWSHED_TEST_ZPOOL  use this pool of the host; without it, a pool is made in a file and destroyed afterwards
  COWSHED_CACHE       directory of the test machine, default /var/cache/cowshed

Exit codes: 0 everything passed; 1 something failed; 2 wrong usage.
END
}

readonly machine=scripts/zfs-machine/zfs-machine.sh
# The time that a package may take, the time in seconds of a lane in the test machine, and the number of power cuts.
test_timeout=55m machine_timeout=3600 power_cuts=1
[[ -z ${COWSHED_TEST_LONG:-} ]] || { test_timeout=11h && machine_timeout=43200 && power_cuts=3; }
readonly test_timeout machine_timeout power_cuts
module=$(go list -m)

counts=() zfs='' beside=''
while [[ $# -gt 0 ]]; do
	case $1 in
	-counts) counts=(-counts "${2:?-counts needs a file}") ;;
	-beside) beside=${2:?-beside needs a process id} ;;
	-zfs) zfs=${2:?-zfs needs a version} ;;
	-h | --help | help)
		usage
		exit
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
	shift 2
done
readonly counts zfs beside openzfs=${zfs:-backports}

allowed_skips=()
[[ ! -e scripts/allowed-skips-zfs-$openzfs ]] || allowed_skips=(-allow "scripts/allowed-skips-zfs-$openzfs")
readonly allowed_skips

# The tests with Docker Engine are in a module of their own.
docker_module=e2e/daemons docker_packages=(e2e/daemons e2e/daemons/migrate) with_docker=
default_packages="./... ./$docker_module"
[[ -z $zfs ]] || default_packages='./zfs/... ./internal/zfsctl ./snapshotter ./e2e'
read -ra packages <<<"${PKG:-$default_packages}"
for i in "${!packages[@]}"; do
	[[ ${packages[i]} != ./"$docker_module" ]] || { unset "packages[i]" && with_docker=1; }
done
readonly docker_module docker_packages with_docker packages

# zfs_packages: prints the packages with a test that asks for ZFS. e2e is among them if there is a driver.
zfs_packages() {
	local driver
	[[ ${#packages[@]} -gt 0 ]] || return 0
	driver=$(go list -f '{{.ImportPath}}' ./zfs/...)
	go list -f '{{.ImportPath}} {{.Dir}}' "${packages[@]}" | while read -r path dir; do
		compgen -G "$dir/*_test.go" >/dev/null || continue
		[[ $path != "$module"/e2e || -n $driver ]] || continue
		if [[ $path == "$module"/zfs || $path == "$module"/zfs/* ]] || grep -qE 'testfs\.(ZFS|Zpool)\(|func Test.*ZFS' "$dir"/*_test.go; then
			echo "$path"
		fi
	done
}

# docker_tests: prints the names of the tests to run with Docker Engine.
docker_tests() {
	[[ -n $with_docker ]] || return 0
	find "${docker_packages[@]}" -maxdepth 1 -name '*_test.go' -exec sed -nE 's/^func (Test\w*ZFS\w*)\(.*/\1/p' {} + | grep -E -- "${RUN:+${RUN%%/*}}" || true
}

# Lanes are parts of the tests, the longest first. As many run at once as there are processors, with one
# processor each: on two processors, two machines with two each are more than twice as slow. Tests of concurrency run
# with two processors, after the others.
lanes=(backend graph packages docker e2e)
# Long, tests of e2e that take hours have lanes of their own, so that each ends in time. The faults have several.
long_lanes=() fault_parts=6
if [[ -n ${COWSHED_TEST_LONG:-} && -z ${RUN:-}$zfs ]]; then
	long_lanes=(model killed)
	for ((part = 1; part <= fault_parts; part++)); do
		long_lanes+=("faults-$part")
	done
	lanes+=("${long_lanes[@]}")
fi
readonly lanes long_lanes fault_parts lane_of_two=concurrent
# docker has a directory of its own.
readonly lanes_of_tree=(backend graph packages e2e "${long_lanes[@]}" "$lane_of_two")

# Tests that take more than a minute in the test machine, and have a twin on btrfs that stays in CI. RUN chooses them too.
long_tests=('-test.skip=^TestSnapshotterSuiteZFS$/./^128LayersMount$|^TestMigrateZFS$|^TestGraphShared$|^TestOnZFS$|^Test(Containerd|Docker)SharedZFS$|^Test(ReadOnly|Full)FilesystemZFS$|^TestZFS$/^(merge_crash|merge_shared|rollback_shared)$')
[[ -z ${COWSHED_TEST_LONG:-}${RUN:-}$zfs ]] || long_tests=()
# On ZFS the tests of e2e with shared roots take more than ten minutes.
not_in_e2e='^TestGraph$|^TestSetUp|^TestMountLabel$'
[[ -n ${COWSHED_TEST_LONG:-} ]] || not_in_e2e+='|Shared'
[[ ${#long_lanes[@]} -eq 0 ]] || not_in_e2e+='|^TestFaults(Shared)?$|^TestModelOfStates$|^TestKilled$'
# Of a home whose limits count the image too, TestGraph tests the limits alone, except in long runs and with another OpenZFS.
concurrent='^TestGraph$/./^(Concurrent|DiffWhileWriting)' not_in_graph='^TestGraph$/^zfs-total$/^([^Q]|Q[^u])'
[[ -z ${COWSHED_TEST_LONG:-}$zfs ]] || not_in_graph=
readonly long_tests not_in_e2e concurrent not_in_graph

# build DIR: makes in DIR, in the shape of the tree, the test binaries and the files that they read. For each lane it
# also makes a script LANE.sh that runs its tests and prints test2json events.
build() {
	local dir=$1 path rel lane flags=()
	[[ ${RACE:-} != 1 ]] || flags=(-race)
	CGO_ENABLED=0 go build -o "$dir/test2json" cmd/test2json
	for lane in "${lanes_of_tree[@]}"; do
		begin_lane "$dir/$lane.sh"
	done
	local found
	found=$(zfs_packages)
	for path in $found; do
		rel=${path#"$module"}
		rel=.${rel:-/}
		mkdir -p "$dir/$rel"
		go test -c -tags testselinux "${flags[@]}" -o "$dir/$rel/tests" "$path"
		[[ ! -d $rel/testdata ]] || cp -r "$rel/testdata" "$dir/$rel/"
		! compgen -G "$rel/*.sh" >/dev/null || cp "$rel"/*.sh "$dir/$rel/"
		[[ $rel != ./cmd/cowshed ]] || cp -r --parents packaging/kubernetes packaging/cowshed.{service,socket} "$dir/"
		if [[ -n ${RUN:-} ]]; then
			add_tests packages "-test.run=$RUN"
		elif [[ $rel == ./e2e ]]; then
			add_tests graph '-test.run=^TestGraph$' "-test.skip=$concurrent${not_in_graph:+|$not_in_graph}"
			add_tests "$lane_of_two" "-test.run=$concurrent" "-test.skip=$not_in_graph"
			[[ -n $zfs ]] || add_tests e2e "-test.skip=$not_in_e2e"
			[[ ${#long_lanes[@]} -eq 0 ]] || add_long_tests
		elif [[ $rel == ./zfs || $rel == ./zfs/* ]]; then
			add_tests backend -test.run=.
		else
			add_tests packages -test.run=ZFS "${long_tests[@]}"
		fi
	done
	for lane in "${lanes_of_tree[@]}"; do
		end_lane "$dir/$lane.sh"
	done
}

# add_long_tests: adds the tests of e2e that have lanes of their own.
add_long_tests() {
	local part
	add_tests model '-test.run=^TestModelOfStates$'
	add_tests killed '-test.run=^TestKilled$'
	for ((part = 1; part <= fault_parts; part++)); do
		echo "export COWSHED_FAULTS_PART=$part/$fault_parts" >>"$dir/faults-$part.sh"
		add_tests "faults-$part" '-test.run=^TestFaults(Shared)?$'
	done
}

# begin_lane FILE, end_lane FILE: write the parts of a lane's script before and after its tests.
# shellcheck disable=SC2016 # expanded when the script runs
begin_lane() { printf '#!/bin/bash\ncd "$(dirname "$0")"\nstatus=0\n' >"$1"; }
# shellcheck disable=SC2016
end_lane() { echo 'exit "$status"' >>"$1" && chmod +x "$1"; }

# build_docker DIR: makes the same in DIR for the lane "docker": its tests, all programs that they run, and the
# libraries of these, which the test machine lacks. DIR is a directory of its own, so that the other lanes need not copy
# it.
build_docker() {
	local dir=$1 path rel programs busybox
	programs=$(scripts/daemons.sh build)
	mkdir -p "$dir"/daemons/{debian/bin,libraries}
	CGO_ENABLED=0 go build -o "$dir/test2json" cmd/test2json
	cp -r "$programs/bin" "$dir/daemons/"
	CGO_ENABLED=0 go build -o "$dir/daemons/bin/cowshed" ./cmd/cowshed
	(cd "$programs/debian" && cp -a --parents usr/bin/{containerd,containerd-shim-runc-v2,docker-registry} usr/sbin/{dockerd,runc} "$dir/daemons/debian")
	for busybox in "$programs"/debian/{usr/bin,bin}/busybox; do
		[[ ! -e $busybox ]] || cp "$busybox" "$dir/daemons/debian/bin/"
	done
	# ldd fails for programs that are static.
	{ find "$dir"/daemons/{bin,debian/usr} -type f -exec ldd {} + 2>/dev/null || true; } | awk '$2 == "=>" { print $3 }' |
		sort -u | xargs cp -L -t "$dir/daemons/libraries"
	begin_lane "$dir/docker.sh"
	# In /usr/lib, the loader finds only libraries that no other directory of the machine has.
	# shellcheck disable=SC2016 # expanded when the script runs
	printf '%s\n' 'export COWSHED_TEST_DAEMONS=$PWD/daemons' \
		'[[ ! -x /sbin/guest-init ]] || cp daemons/libraries/* /usr/lib/' >>"$dir/docker.sh"
	for rel in "${docker_packages[@]/#/./}"; do
		path=$module/${rel#./}
		mkdir -p "$dir/$rel"
		CGO_ENABLED=0 go -C "$rel" test -c -o "$dir/$rel/tests" .
		add_tests docker "-test.run=${RUN:-ZFS}" "${long_tests[@]}"
	done
	end_lane "$dir/docker.sh"
}

# add_tests LANE OPTION...: adds the tests of $path, which are in $rel, to the lane, with options of the test binary.
add_tests() {
	printf '(cd %q && %s -t -p %q ./tests -test.v=test2json -test.count=1 -test.timeout=%s%s) || status=1\n' \
		"$rel" "$(up "$rel")test2json" "$path" "$test_timeout" "$(printf ' %q' "${@:2}")" >>"$dir/$1.sh"
}

# up REL: prints the way from ./REL back to the top directory, ending in a slash.
up() {
	local slashes=${1//[^\/]/}
	printf '%s' "./${slashes//\//..\/}"
}

# has_tests DIR LANE: succeeds if the lane has tests.
has_tests() { [[ -e $1/$2.sh ]] && grep -q '/tests ' "$1/$2.sh"; }

# on_host DIR LANE: runs the lane here.
on_host() {
	local dir=$1 lane=$2 pool=${COWSHED_TEST_ZPOOL:-} status=0
	export COWSHED_TEST_REQUIRE=1
	if [[ -n $pool ]]; then
		scripts/as-root.sh "$dir/$lane.sh"
		return
	fi
	pool=cowshed-test-$$-$lane
	truncate -s 4G "$dir/$lane.img"
	scripts/as-root.sh zpool create -o cachefile=none -m "$dir/tank-$lane" "$pool" "$dir/$lane.img"
	COWSHED_TEST_ZPOOL=$pool scripts/as-root.sh "$dir/$lane.sh" || status=1
	scripts/as-root.sh zpool destroy -f "$pool" || status=1
	return "$status"
}

# in_machine DIR LANE: runs the lane in a test machine.
in_machine() {
	local cpus=1
	[[ $2 != "$lane_of_two" ]] || cpus=2
	"$machine" run --zfs "$openzfs" --timeout "$machine_timeout" --cpus "$cpus" --dir "$1" --append-env COWSHED_TEST_REQUIRE=1 --append-env COWSHED_TEST_ZPOOL=tank \
		--append-env CI="${CI:-}" --append-env COWSHED_TEST_LONG="${COWSHED_TEST_LONG:-}" --append-env COWSHED_TEST_SEED="${COWSHED_TEST_SEED:-}" \
		--append-env COWSHED_FAULTS_SEED="${COWSHED_FAULTS_SEED:-}" --append-env COWSHED_FAULTS_PART="${COWSHED_FAULTS_PART:-}" -- "/work/$2.sh"
}

# power_cut DIR NAME VARIANT: cuts the power of the machine in the middle of a workload, and starts it again with the same
# pool. Prints the test2json events of the test that then checks the pool. NAME names the files of this cut. VARIANT is the end
# of the tests' names.
power_cut() {
	local dir=$1 name=$2 variant=$3 pool after=$((20 + RANDOM % 60))
	pool=$(dirname "$dir")/$name.img
	echo "test-zfs: cutting the power after $after operations" >&2
	"$machine" run --timeout "$machine_timeout" --cpus 1 --dir "$dir" --pool-image "$pool" --kill-when "done $after " \
		--append-env COWSHED_TEST_ZPOOL=tank --append-env COWSHED_TEST_WORKLOAD=1 -- \
		sh -c "zfs create tank/cut && e2e/tests -test.run='^TestZFSWorkload$variant\$' -test.timeout=0" >"$dir/e2e/journal-$name" || {
		cat "$dir/e2e/journal-$name" >&2
		return 1
	}
	"$machine" run --timeout "$machine_timeout" --cpus 1 --dir "$dir" --pool-image "$pool" --append-env COWSHED_TEST_REQUIRE=1 \
		--append-env COWSHED_TEST_ZPOOL=tank --append-env COWSHED_TEST_CUT_JOURNAL="journal-$name" -- \
		sh -c "$(e2e_test "TestZFSAfterCut$variant")"
}

# crash_script DIR VARIANT: runs a script of operations in a machine that logs the writes to the disk of its pool. If it
# succeeds, the log is DIR.writes.
crash_script() {
	crash_machine "$1" --write-log "$1.unfinished" --append-env COWSHED_TEST_CRASH_SCRIPT=1 -- "$(e2e_test "TestZFSCrashScript$2")" &&
		mv "$1.unfinished" "$1.writes"
}

# crash_images DIR VARIANT PART: prints the test2json events of the test that recovers from the content of the disk after each
# flush. The flushes are those in DIR/e2e/writes, or in a part of them, such as 1/2.
crash_images() {
	crash_machine "$1" --append-env COWSHED_TEST_CRASH_LOG=writes --append-env COWSHED_TEST_CRASH_PART="$3" -- "$(e2e_test "TestZFSCrashImages$2")"
}

# crash_machine DIR OPTION... -- SCRIPT: runs the script in a machine with a small disk.
crash_machine() {
	local dir=$1 options=("${@:2:$#-2}")
	"$machine" run --timeout "$machine_timeout" --cpus 1 --disk 256M --dir "$dir" --append-env COWSHED_TEST_REQUIRE=1 \
		--append-env COWSHED_TEST_ZPOOL=tank --append-env COWSHED_TEST_LONG="${COWSHED_TEST_LONG:-}" "${options[@]}" sh -c "${*: -1}"
}

# e2e_test NAME: prints a shell command that runs a test of e2e.
e2e_test() {
	echo "cd e2e && ../test2json -t -p $module/e2e ./tests -test.v=test2json -test.timeout=$test_timeout -test.run='^$1\$'"
}

# mount_labels DIR: prints the test2json events of the test of labels, on ZFS and on btrfs, in a machine with SELinux.
mount_labels() {
	"$machine" run --timeout "$machine_timeout" --cpus 1 --kernel-options 'selinux=1 security=selinux enforcing=1' --dir "$1" \
		--append-env COWSHED_TEST_REQUIRE=1 -- \
		sh -c "export COWSHED_TEST_ZPOOL; for COWSHED_TEST_ZPOOL in tank elsewhere; do ($(e2e_test TestMountLabel)) || exit; done"
}

# job NAME COMMAND...: starts a command that prints test2json events, and writes their summary to NAME.log. It waits
# first while as many jobs run as there are free processors.
job() {
	local name=$1 begun
	await_processor
	jobs+=("$name")
	{
		begun=$SECONDS
		"${@:2}" | "$dir/testsum" "${counts[@]}" "${allowed_skips[@]}" && echo "$name" >>"$dir/passed"
		echo "== ZFS tests, $name: $((SECONDS - begun)) s"
	} >"$dir/$name.log" 2>&1 &
}

# await_processor: waits until a processor is free for a job.
await_processor() {
	local processors
	while :; do
		processors=$(nproc)
		[[ -z $beside || $processors -eq 1 ]] || ! kill -0 "$beside" 2>/dev/null || ((--processors))
		(($(jobs -rp | wc -l) >= processors)) || return 0
		sleep 1
	done
}

# finish_jobs: waits for the jobs, and prints their logs in the order of their start. A job that did not say that it has
# passed has failed, however it has ended.
finish_jobs() {
	local name
	wait
	for name in "${jobs[@]}"; do
		cat "$dir/$name.log"
		grep -qxF "$name" "$dir/passed" || failed+=("$name")
	done
	jobs=()
}

# variants TEST: prints the variants of a test to run, of which each is the end of a name, and a dot: the test itself, and that with
# shared roots.
variants() {
	case ${RUN:-} in
	"$1") echo . ;;
	"$1Shared") echo Shared. ;;
	'') echo "." "${COWSHED_TEST_LONG:+Shared.}" ;;
	esac
}

# start_jobs WHERE: starts all that runs beside other jobs. Images of a crash need the log that the script of the crash
# writes, so that goes first.
start_jobs() {
	local where=$1 lane work cut part variant crash
	local -A scripts=()
	if [[ $where == in_machine && -z $zfs && -x $dir/work/e2e/tests ]]; then
		for variant in $(variants TestZFSCrashImages); do
			crash=$dir/crash-$variant
			mkdir -p "$crash/e2e"
			ln "$dir/work/test2json" "$crash/"
			ln "$dir/work/e2e/tests" "$crash/e2e/"
			job "crash-script-$variant" crash_script "$crash" "${variant%.}"
			scripts[$variant]=$!
		done
	fi
	for lane in "${lanes[@]}"; do
		work=$dir/work
		[[ $lane != docker ]] || work=$dir/docker
		! has_tests "$work" "$lane" || job "$lane" "$where" "$work" "$lane"
	done
	for variant in "${!scripts[@]}"; do
		crash=$dir/crash-$variant
		wait "${scripts[$variant]}" || true # finish_jobs tells
		[[ ! -e $crash.writes ]] || mv "$crash.writes" "$crash/e2e/writes"
		for ((part = 1; part <= $(nproc); part++)); do
			[[ ! -e $crash/e2e/writes ]] || job "crash-images-$variant$part" crash_images "$crash" "${variant%.}" "$part/$(nproc)"
		done
	done
	[[ $where == in_machine && -z $zfs && -x $dir/work/e2e/tests ]] || return 0
	for variant in $(variants TestZFSAfterCut); do
		for ((cut = 1; cut <= power_cuts; cut++)); do
			[[ $variant$cut == .* || $cut == 1 ]] || continue
			job "cut-$variant$cut" power_cut "$dir/work" "cut-$variant$cut" "${variant%.}"
		done
	done
	if [[ -z ${RUN:-} && -n ${COWSHED_TEST_LONG:-} || ${RUN:-} == TestMountLabel ]]; then
		job mount-labels mount_labels "$dir/work"
	fi
}

has_zfs() {
	[[ -c /dev/zfs ]] && command -v zfs >/dev/null && command -v zpool >/dev/null
}

main() {
	dir=$(mktemp -d)
	# shellcheck disable=SC2064 # expands the name here
	trap "rm -rf -- '$dir'" EXIT
	: >"$dir/passed"
	mkdir "$dir/work"
	build "$dir/work"
	mkdir "$dir/docker"
	[[ -z $(docker_tests) ]] || build_docker "$dir/docker"
	go build -o "$dir/testsum" ./scripts/internal/testsum
	local where=in_machine
	if [[ -z $zfs ]] && { [[ -n ${COWSHED_TEST_ZPOOL:-} ]] || has_zfs; }; then
		where=on_host
	else
		"$machine" build --zfs "$openzfs"
	fi
	jobs=() failed=()
	start_jobs "$where"
	if [[ ${#jobs[@]} -eq 0 ]] && ! has_tests "$dir/work" "$lane_of_two"; then
		echo "no test that needs ZFS: PKG=${PKG:-}, RUN=${RUN:-}" >&2
		exit 1
	fi
	finish_jobs
	if has_tests "$dir/work" "$lane_of_two"; then
		job "$lane_of_two" "$where" "$dir/work" "$lane_of_two"
		finish_jobs
	fi
	[[ ${#failed[@]} -eq 0 ]]
}

main
