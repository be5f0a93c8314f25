#!/bin/bash
#
# In the machine of scripts/test-systemd.sh: installs the package, checks the units, reboots the machine, checks again,
# and removes the package. It prints a line for each check, and at last "RESULT" with the number of failures.

set -uo pipefail
exec >/dev/ttyS1 2>&1 </dev/null

readonly state=/var/lib/package-test
readonly units=(cowshed.socket cowshed.service)
mkdir -p "$state"
failures=$(cat "$state/failures" 2>/dev/null || echo 0)

# check NAME COMMAND...: runs a command, and prints whether it succeeds.
check() {
	local name=$1 said
	shift
	if said=$("$@" 2>&1); then
		echo "ok: $name"
		return
	fi
	echo "FAILED: $name: $*: $said"
	echo $((++failures)) >"$state/failures"
}

fails() { ! "$@"; }
says() { [[ $("${@:2}" 2>&1) == *"$1"* ]]; }
equal() { [[ $1 == "$2" ]] || { echo "$1 is not $2" && false; }; }
both() {
	local unit
	for unit in "${units[@]}"; do
		equal "$unit $(systemctl "$1" "$unit" 2>/dev/null)" "$unit $2" || return
	done
}
load() { /work/snapload "$@"; }
pid() { systemctl show --property MainPID --value cowshed.service; }

# another_pid PID: waits until the daemon runs as another process.
another_pid() {
	local i now
	for ((i = 0; i < 60; i++)); do
		now=$(pid)
		[[ $now == 0 || $now == "$1" || $(systemctl is-active cowshed.service) != active ]] || return 0
		sleep 1
	done
	return 1
}

# under_load NAME COMMAND...: runs a command while clients work. Fails if a request of a client fails.
under_load() {
	local name=$1 before clients code=0
	shift
	before=$(pid)
	/work/snapload -for 60s >"$state/load" 2>&1 &
	clients=$!
	sleep 5
	check "$name" "$@"
	check "$name: the daemon is another process" another_pid "$before"
	wait "$clients" || code=$?
	check "$name: no request of a client fails" ended_with "$code"
	sed 's/^/  /' "$state/load"
}

# ended_with CODE: fails unless CODE, the clients' exit status, is 0, and prints their output then.
ended_with() { [[ $1 -eq 0 ]] || { cat "$state/load" && false; }; }

restart_twice() { systemctl restart cowshed.service && sleep 3 && systemctl restart cowshed.service; }

# install_package: installs the package, and keeps the output of dpkg.
install_package() { dpkg --install /work/cowshed_*.deb >"$state/said" 2>&1; }

no_trace() {
	local left
	left=$(find /etc/systemd /usr/lib/systemd /run/systemd -name 'cowshed*')
	left+=$(systemctl list-unit-files --no-legend 'cowshed*')
	left+=$(systemctl list-units --all --no-legend 'cowshed*')
	left+=$(grep -lx cowshed /proc/[0-9]*/comm 2>/dev/null)
	equal "$left" ''
}

before_reboot() {
	check 'the package installs' install_package
	check 'it says how to start' grep -q 'systemctl enable --now cowshed.socket cowshed.service' "$state/said"
	check 'it starts nothing' both is-active inactive
	check 'it enables nothing' both is-enabled disabled
	check 'systemd finds nothing wrong with the units' systemd-analyze verify --man=no "${units[@]}"
	check 'the program runs' says commit cowshed version

	check 'the units are enabled and started' systemctl enable --now "${units[@]}"
	check 'both are active' both is-active active
	check 'a client is served' load -for 1s

	check 'the daemon stops by itself' systemctl stop cowshed.service
	check 'its end was orderly' equal "$(systemctl show --property Result --value cowshed.service)" success
	check 'the socket stays' systemctl is-active cowshed.socket
	check 'a request starts the daemon' load -for 1s
	check 'the daemon is active again' both is-active active

	under_load 'it is restarted twice under load' restart_twice

	local killed
	killed=$(pid)
	check 'the daemon is killed' kill -KILL "$killed"
	check 'systemd starts it again' another_pid "$killed"
	check 'a client is served by that' load -for 1s

	check 'both stop' systemctl stop "${units[@]}"
	check 'both are inactive' both is-active inactive
	check 'nobody is served then' fails timeout 10 /work/snapload -for 1s
	check 'both start' systemctl start "${units[@]}"
	check 'a snapshot is kept' load -keep kept
	echo '# mine' >>/etc/cowshed/config.toml
}

after_reboot() {
	check 'both are active after a reboot' both is-active active
	check 'the snapshot is there' load -has kept

	under_load 'the package is upgraded under load' install_package
	check 'the configuration stays' grep -qx '# mine' /etc/cowshed/config.toml
	check 'both are still active' both is-active active

	check 'the package is removed' dpkg --remove cowshed
	check 'the units are gone' no_trace
	check 'the configuration stays after removal' grep -qx '# mine' /etc/cowshed/config.toml
	check 'it is installed again' install_package
	check 'it is not enabled then' both is-enabled disabled
	check 'it is enabled and started again' systemctl enable --now "${units[@]}"
	check 'the snapshot is still there' load -has kept

	check 'the package is purged' says 'still there: by default in /var/lib/cowshed' dpkg --purge cowshed
	check 'no unit is left' no_trace
	check 'no configuration is left' fails test -e /etc/cowshed
	check 'no program is left' fails test -e /usr/bin/cowshed
	check 'the data is left' test -s /var/lib/cowshed/containerd/metadata.db
	check 'no unit has failed' equal "$(systemctl list-units --failed --no-legend --plain)" ''
}

if [[ ! -e $state/rebooted ]]; then
	before_reboot
	touch "$state/rebooted"
	echo 'the machine starts anew'
	systemctl reboot
else
	after_reboot
	[[ $failures -eq 0 ]] || journalctl --no-pager -b -u cowshed.service -u cowshed.socket -n 100
	echo "RESULT $failures"
	sync
	systemctl poweroff
fi
