#!/usr/bin/env bash

set -euo pipefail

usage() {
	cat <<'END'
The ZFS test machine: runs a command in a small virtual machine with a real OpenZFS, on a Debian host that has none.

Usage:
  zfs-machine.sh build [--force] [--kernel KERNEL] [--zfs VERSION]
  zfs-machine.sh run [OPTION...] -- COMMAND [ARG...]
  zfs-machine.sh shell [OPTION...]
  zfs-machine.sh path
  zfs-machine.sh clean

build   Builds the machine into the cache; does nothing if it is there. As root it installs on this host, if missing:
        qemu-system-x86, build-essential, libelf1, e2fsprogs, xz-utils. It unpacks everything else in the cache: a
        kernel, OpenZFS, and the usual command line tools. These come from the Debian archives that apt is configured
        with, plus their contrib and backports. apt's configuration and package lists stay as they are.
        --force builds again with the present versions of Debian; modules are compiled if the versions are new.
        KERNEL is stable (default), the kernel of this host's Debian release, or backports, the newest kernel in its
        backports. VERSION is backports (default), the OpenZFS in its backports; stable, that of the release itself,
        2.1 for Debian 12; or next, the modules that the backports of Debian 13 have, beside the commands of backports.
        Each combination has a machine of its own.
run     Boots the machine, runs COMMAND in it as root and exits with COMMAND's status. The output of COMMAND, on stdout
        and stderr, appears here on stdout as it is printed.
shell   Boots the machine with an interactive shell on this terminal. Without a terminal, runs the script on stdin.
path    Prints the cache's directory.
clean   Removes the cache.

In the machine: the pool "tank" mounted on /tank, the files of --dir in /work (the working directory; a writable copy),
HOME=/root, TMPDIR=/tmp (a tmpfs), no network. "power-cut" there cuts the power at that very moment.

Options of run and shell:
  --kernel KERNEL     use the machine with that kernel, see build
  --zfs VERSION       use the machine with that OpenZFS, see build
  --kernel-options TEXT  add to the kernel's command line. With security=selinux, the machine loads its SELinux policy.
                      This policy knows the labels of containers, and allows everything except unknown labels.
  --timeout SECONDS   kill the machine after that long, boot included (default 1800; shell: no limit)
  --dir HOSTDIR       copy this directory into /work
  --out HOSTDIR       copy the content of the machine's /out to this directory at the end, even after a crash or timeout
  --mem MB            memory (default 2048)
  --cpus N            processors (default 2); more emulated processors than the host has make everything much slower
  --disk SIZE         size of a new pool's disk (default 4G, sparse)
  --pool-image FILE   keep the pool's disk in FILE: created if missing, otherwise the pool in it is imported
  --write-log FILE    log the writes to the pool's disk in FILE, in the format of dm-log-writes
  --append-env K=V    set a variable for COMMAND; may be repeated
  --console FILE      keep the kernel's messages in FILE (they are shown if the machine fails)
Options of run for power-cut tests, best with --pool-image. qemu is killed with SIGKILL: data that the machine has
written to its disk by then stays, and the content of its memory is lost. If the cut happens, run exits with 0, whatever
COMMAND did:
  --kill-after SECONDS  cut the power that long after COMMAND was started
  --kill-when TEXT      cut it when COMMAND prints a line containing TEXT
  --power-cut           expect COMMAND to cut it, by "power-cut"

Exit status of run: COMMAND's own; 124 if the time was up; 125 if the machine failed, the arguments were wrong, or COMMAND
ended before an expected power cut. The machine has failed if it did not start COMMAND, panicked or died. A message on
stderr says the reason. A machine with a new pool that does not come up is started a second time.

Environment: COWSHED_CACHE, the directory of the cache "zfs-machine" (default /var/cache/cowshed); TMPDIR, for the disks of
running machines (default /var/tmp).
END
}

readonly boot_limit=600 # seconds until the command must have been started
readonly down_limit=60  # seconds for shutting down after the command

say() { printf 'zfs-machine: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 125
}

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
cache=${COWSHED_CACHE:-/var/cache/cowshed}/zfs-machine
# The name depends on everything that the machine is made from, so that a change makes another machine.
recipe=$(cd "$here" && cat build.sh guest-init power-cut selinux.conf | sha256sum)
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-unknown}")
readonly here cache recipe release

# choose_machine [--kernel KERNEL] [--zfs VERSION]: selects the machine to build or run, and keeps what is not given.
choose_machine() {
	case ${1:-}${2:+=$2} in
	'') ;;
	--kernel=stable | --kernel=backports) kernel=$2 ;;
	--zfs=stable | --zfs=backports | --zfs=next) zfs=$2 ;;
	*) die "$1 does not know ${2:-an empty value}" ;;
	esac
	name=$release
	[[ $kernel == stable ]] || name+=-$kernel
	[[ $zfs == backports ]] || name+=-zfs-$zfs
	name+=-${recipe:0:12}
	machine=$cache/$name
}

build() {
	local force=
	while [[ $# -gt 0 ]]; do
		case $1 in
		--force) force=1 ;;
		--kernel | --zfs)
			choose_machine "$1" "${2:-}"
			shift
			;;
		*) die "build: unknown argument: $1" ;;
		esac
		shift
	done
	mkdir -p "$cache"
	if [[ -n $force || ! -e $machine/versions ]]; then
		exec {lock}>"$cache/lock"
		flock "$lock" # a second build waits, and then finds the machine
	fi
	if [[ -n $force || ! -e $machine/versions ]]; then
		SECONDS=0
		rm -rf "$cache"/build.* # of a build that was killed
		bash "$here/build.sh" "$cache" "$name" "$kernel" "$zfs" {lock}>&-
		say "built in $SECONDS s"
	fi
	say "$machine: $(<"$machine/versions")"
}

# quote WORD prints it so that a POSIX shell reads it back unchanged.
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# microseconds SECONDS: prints a decimal number of seconds in microseconds.
microseconds() { awk -v s="$1" 'BEGIN { printf "%.0f", s * 1e6 }'; }

parse_options() {
	timeout=1800 dir='' out='' mem=2048 cpus=2 disk=4G pool_image='' write_log='' console='' kernel_options='' variables=()
	kill_after='' kill_when='' power_cut=''
	[[ $mode == run ]] || timeout=$((366 * 86400))
	while [[ $# -gt 0 ]]; do
		case $1 in
		--)
			shift
			break
			;;
		--power-cut)
			power_cut=1
			shift
			continue
			;;
		--kernel | --zfs | --kernel-options | --timeout | --dir | --out | --mem | --cpus | --disk | --pool-image | --write-log | --append-env | --console | --kill-after | --kill-when)
			[[ $# -gt 1 ]] || die "$1 needs a value"
			;;
		*) die "unknown option: $1 (see --help; COMMAND comes after --)" ;;
		esac
		case $1 in
		--kernel | --zfs) choose_machine "$1" "$2" ;;
		--kernel-options) kernel_options=$2 ;;
		--timeout) timeout=$2 ;;
		--dir) dir=$2 ;;
		--out) out=$2 ;;
		--mem) mem=$2 ;;
		--cpus) cpus=$2 ;;
		--disk) disk=$2 ;;
		--pool-image) pool_image=$2 ;;
		--write-log) write_log=$2 ;;
		--console) console=$2 ;;
		--kill-after) kill_after=$2 ;;
		--kill-when) kill_when=$2 ;;
		--append-env)
			[[ $2 =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "--append-env needs NAME=VALUE, not $2"
			variables+=("$2")
			;;
		esac
		shift 2
	done
	command=("$@")

	local seconds='^[0-9]+([.][0-9]+)?$'
	[[ $timeout =~ $seconds ]] || die "--timeout needs seconds, not $timeout"
	[[ -z $kill_after || $kill_after =~ $seconds ]] || die "--kill-after needs seconds, not $kill_after"
	[[ $mem =~ ^[0-9]+$ ]] || die "--mem needs megabytes, not $mem"
	[[ $cpus =~ ^[1-9][0-9]*$ ]] || die "--cpus needs a number, not $cpus"
	[[ -z $dir || -d $dir ]] || die "--dir: not a directory: $dir"
	[[ $mode == shell || ${#command[@]} -gt 0 ]] || die 'run needs a command, after --'
	[[ $mode == run || ${#command[@]} -eq 0 ]] || die 'shell takes no command'
	if [[ $mode == shell ]]; then
		command=(bash -l)
		[[ -t 0 ]] || { mode=run && command=(bash -c "$(cat)"); }
	fi
	cut_expected=$kill_after$kill_when$power_cut
}

# add_disk NAME FILE [DRIVE-OPTIONS]: adds a disk, which guest-init in the machine finds by its name.
add_disk() {
	qemu_args+=(-drive "if=none,id=$1,file=${2//,/,,},format=raw,${3:-cache=unsafe}"
		-device "virtio-blk-pci,drive=$1,serial=$1")
}

# add_logged_disk NAME FILE LOG: adds a disk whose writes and flushes are logged. Commands to write zeros confuse the
# log of QEMU 7.2.
add_logged_disk() {
	: >"$3" || die "cannot write $3"
	qemu_args+=(-blockdev "driver=blklogwrites,node-name=$1,log-sector-size=512,file.driver=file,file.filename=${2//,/,,},file.discard=unmap,file.cache.no-flush=on,log.driver=file,log.filename=${3//,/,,},log.cache.no-flush=on"
		-device "virtio-blk-pci,drive=$1,serial=$1,write-zeroes=off")
}

# make_ext4 FILE MEGABYTES [MKE2FS-OPTION...]
make_ext4() {
	mke2fs -q -t ext4 -b 4096 -O ^has_journal -m 0 -E root_owner=0:0 "${@:3}" "$1" "$2M" >"$tmp/mke2fs.log" 2>&1 ||
		die "cannot make a disk image: $(<"$tmp/mke2fs.log")"
}

prepare_disks() {
	pool=import pool_is_new='' pool_file=$pool_image
	if [[ -z $pool_image || ! -e $pool_image ]]; then
		pool=create
		[[ -n $pool_image ]] && pool_is_new=1 || pool_file=$tmp/pool.img
		truncate -s "$disk" "$pool_file" || die "cannot make a disk of size $disk"
	fi
	# Data that the machine has written is in the host's page cache, which outlives qemu. To pass flushes on to the
	# host's disk would only cost time.
	if [[ -n $write_log ]]; then
		add_logged_disk pool "$pool_file" "$write_log"
	else
		add_disk pool "$pool_file" cache=unsafe,discard=unmap
	fi

	if [[ -n $dir ]]; then
		local files size
		files=$(find "$dir" -xdev | wc -l)
		size=$(du -smx "$dir" | cut -f 1)
		make_ext4 "$tmp/work.img" $((size * 11 / 10 + files / 100 + 256)) -N $((files + 65536)) -d "$dir"
		add_disk work "$tmp/work.img"
	fi
	if [[ -n $out ]]; then
		mkdir -p "$out"
		make_ext4 "$tmp/out.img" 2048
		add_disk out "$tmp/out.img"
	fi
}

# write_job prints the input of guest-init, in the form described there.
write_job() {
	local word rows columns
	echo "mode=$mode pool=$pool keep=${pool_image:+1}"
	if [[ $mode == shell ]]; then
		read -r rows columns < <(stty size)
		echo "export TERM=$(quote "${TERM:-linux}"); size='rows $rows cols $columns'"
	fi
	for word in "${variables[@]}"; do echo "export ${word%%=*}=$(quote "${word#*=}")"; done
	echo 'set --'
	for word in "${command[@]}"; do echo "set -- \"\$@\" $(quote "$word")"; done
}

# start_qemu starts the machine in the background. $qemu is its process. $events reads from its control port, and ends
# with the process, which alone has the other end.
start_qemu() {
	# Without hardware acceleration the processor has no features that are slow to emulate. So the kernel copies and clears
	# memory in words, not in bytes. It does not switch access to a program's memory on and off for each copy.
	local accel=tcg,thread=multi processor=max,-erms,-fsrm,-smap,-smep,-la57
	local options='clearcpuid=rep_good mitigations=off init_on_alloc=0'
	# Without these flags /dev/kvm may exist, and hang.
	if grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]; then accel=kvm processor=max options=''; fi

	write_job >"$tmp/job"
	: >"$tmp/output"
	mkfifo "$tmp/control" "$tmp/monitor.in" "$tmp/monitor.out"
	# norandmaps: every process has its libraries at the same addresses, so qemu need not translate their code again for
	# each. Without hardware acceleration the translation is most of the cost of a short command.
	# no_timer_check: on a busy host the timer may come too late for the kernel's check of it, which then panics.
	# shellcheck disable=SC2054 # the commas are qemu's
	qemu_args+=(-nodefaults -no-user-config -display none -no-reboot
		-machine q35 -accel "$accel" -cpu "$processor" -smp "$cpus" -m "$mem"
		-kernel "$machine/vmlinuz"
		-append "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rw init=/sbin/guest-init panic=-1 oops=panic loglevel=5 no_timer_check tsc=reliable clocksource=tsc norandmaps $options $kernel_options"
		-drive "if=none,id=root,file=$machine/root.img,format=raw,snapshot=on,cache=unsafe"
		-device nvme,drive=root,serial=root
		-fw_cfg "name=opt/cowshed/job,file=$tmp/job"
		-chardev "file,id=console,path=$tmp/console" -serial chardev:console
		-chardev "pipe,id=monitor,path=$tmp/monitor" -mon chardev=monitor
		# Without an ioeventfd, a write to a port has reached the file when it returns in the machine.
		-device virtio-serial-pci,ioeventfd=off
		-chardev "file,id=control,path=$tmp/control" -device virtserialport,chardev=control,name=control
		-chardev "file,id=output,path=$tmp/output" -device virtserialport,chardev=output,name=output)
	local input
	if [[ $mode == run ]]; then
		exec {input}</dev/null
	else
		exec {input}<&0
		# shellcheck disable=SC2054
		qemu_args+=(-chardev stdio,id=terminal,signal=off -device virtconsole,chardev=terminal)
	fi

	local writer
	# shellcheck disable=SC2094 # it is a FIFO
	exec {writer}<>"$tmp/control" {events}<"$tmp/control"
	TMPDIR=$tmp qemu-system-x86_64 "${qemu_args[@]}" <&"$input" 2>"$tmp/qemu.log" &
	qemu=$!
	exec {writer}>&- {input}<&-
}

# follow_output passes on the output of the command and, for --kill-when, watches for the text in it.
follow_output() {
	tail -c +1 -s 0.1 -f --pid="$qemu" "$tmp/output" {events}<&- &
	follower=$!
	[[ -n $kill_when ]] || return 0
	(
		tail -c +1 -s 0.1 -f --pid="$qemu" "$tmp/output" | {
			grep -q -a -F -m 1 -e "$kill_when" && kill -KILL "$qemu" && : >"$tmp/cut"
		}
	) {events}<&- &
	watcher=$!
}

# watch_machine follows the machine to its end. It sets $outcome to: exit (the command ended, with $status), cut,
# timeout, or failed (with $reason).
watch_machine() {
	local start now limit left word rest cut_at='' overall
	phase=booting outcome='' reason='' status=125
	start=${EPOCHREALTIME//[.,]/}
	overall=$((start + $(microseconds "$timeout")))
	limit=$((start + boot_limit * 1000000))
	((limit < overall)) || limit=$overall
	while :; do
		now=${EPOCHREALTIME//[.,]/}
		left=$((limit - now))
		if ((left <= 0)); then
			if [[ $phase == ended ]]; then
				say 'the machine did not go down in time after the command: killed'
			elif [[ -n $cut_at && $limit -eq $cut_at ]]; then
				outcome='cut'
			elif [[ $phase == booting && $limit -lt $overall ]]; then
				outcome=failed reason="it did not start the command within $boot_limit s"
			else
				outcome=timeout
				# Make the kernel print where tasks are stuck.
				# shellcheck disable=SC2016 # expanded by the inner shell
				timeout 10 sh -c 'echo "sendkey alt-sysrq-w" >"$1"' sh "$tmp/monitor.in" || : # qemu may not read
				sleep 1
			fi
			break
		fi
		printf -v left '%d.%06d' $((left / 1000000)) $((left % 1000000))
		word='' rest=''
		if read -r -t "$left" -u "$events" word rest; then
			now=${EPOCHREALTIME//[.,]/}
			case $word in
			started)
				phase=running limit=$overall
				if [[ -n $kill_after ]]; then
					cut_at=$((now + $(microseconds "$kill_after")))
					((cut_at > limit)) || limit=$cut_at
				fi
				;;
			exit)
				phase=ended outcome=exit status=$rest
				limit=$((now + down_limit * 1000000))
				;;
			cut)
				outcome='cut'
				break
				;;
			failed)
				outcome=failed reason=$rest
				phase=refused # it came up
				break
				;;
			esac
		elif [[ $? -le 128 ]]; then
			break # end of file: qemu is gone
		fi
	done
	kill -KILL "$qemu" 2>/dev/null || :
	local qemu_status=0
	wait "$qemu" 2>/dev/null || qemu_status=$?
	qemu=
	wait "$follower" 2>/dev/null || :
	[[ -z $watcher ]] || wait "$watcher" 2>/dev/null || :
	[[ ! -e $tmp/cut ]] || outcome='cut'
	[[ $phase != booting && $phase != refused ]] || [[ -z $pool_is_new ]] || rm -f "$pool_file" # it may hold no pool yet
	if [[ -z $outcome ]]; then
		outcome=failed
		if grep -q 'Kernel panic' "$tmp/console"; then
			reason='its kernel panicked'
		elif [[ $phase == booting ]]; then
			reason="it went down without having started the command (qemu's status: $qemu_status)"
		else
			reason="it went down while the command was running (qemu's status: $qemu_status)"
		fi
	fi
}

collect_results() {
	[[ -n $out ]] || return 0
	mkdir "$tmp/results"
	debugfs -R "rdump / $tmp/results" "$tmp/out.img" >"$tmp/debugfs.log" 2>&1 || cat "$tmp/debugfs.log" >&2
	rm -rf "$tmp/results/lost+found"
	cp -R --preserve=mode,timestamps,links "$tmp/results/." "$out"
}

report() {
	case $outcome in
	cut)
		[[ -n $cut_expected ]] || die 'the command cut the power, which was not asked for (--power-cut)'
		say 'the power was cut, as asked for'
		exit 0
		;;
	exit)
		[[ -z $cut_expected ]] || die "the command ended (status $status) before the power was cut"
		exit "$status"
		;;
	esac
	{
		echo "zfs-machine: the end of the kernel's messages:"
		tail -n 60 "$tmp/console" | sed 's/^/  | /'
		sed 's/^/  qemu: /' "$tmp/qemu.log"
	} >&2
	[[ $outcome != timeout ]] || {
		say "the time is up: killed after $timeout s"
		exit 124
	}
	die "the machine failed: $reason"
}

clean_up() {
	if [[ -n $qemu ]]; then
		kill -KILL "$qemu" 2>/dev/null || :
		wait 2>/dev/null || :
	fi
	[[ -z $console || ! -e $tmp/console ]] || cp "$tmp/console" "$console" || :
	[[ -z $terminal ]] || stty "$terminal" || :
	rm -rf "$tmp"
}

# boot starts the machine and follows it to its end.
boot() {
	watcher='' qemu_args=()
	prepare_disks
	start_qemu
	follow_output
	watch_machine
}

run() {
	parse_options "$@"
	[[ -e $machine/versions ]] || die "there is no machine in $cache yet, or an old one: run \"$0 build --kernel $kernel --zfs $zfs\""
	command -v qemu-system-x86_64 >/dev/null || die 'qemu-system-x86_64 is missing: scripts/deps.sh test installs it'
	qemu='' follower='' terminal=''
	tmp=$(mktemp -d "${TMPDIR:-/var/tmp}/zfs-machine.XXXXXX")
	trap clean_up EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	[[ $mode == run ]] || terminal=$(stty -g)
	boot
	# A busy host may keep a machine from coming up. With a pool to import, that would be the result of a test.
	if [[ $outcome == failed && $phase == booting && $pool == create ]]; then
		say "the machine failed: $reason; another try"
		exec {events}<&-
		rm -f "$tmp"/{control,monitor.in,monitor.out,*.img}
		boot
	fi
	collect_results
	report
}

mode=${1:-} kernel=stable zfs=backports
choose_machine
case $mode in
build) build "${@:2}" ;;
run | shell) run "${@:2}" ;;
path) echo "$cache" ;;
clean) rm -rf "$cache" ;;
-h | --help | help) usage ;;
*)
	usage >&2
	exit 125
	;;
esac
