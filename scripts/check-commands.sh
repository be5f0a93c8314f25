#!/usr/bin/env bash
#
# Checks that scripts/deps.sh brings every command that the tree runs. See usage below.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

usage() {
	cat <<'END'
Usage: check-commands.sh [brought]

Finds the commands that tests, benchmarks and scripts run (scripts/internal/commandcheck), and says which of them a
machine lacks that has nothing but what the README asks for and what scripts/deps.sh installs for the task.

  brought  makes the lists of the commands that such machines have, as root, and prints the directory that they are in. What only
           the shell has built in is no command: a program of Go cannot run it

A machine is a root filesystem of scripts/debian-root.sh with the packages of one task. Its list is kept in
COWSHED_CACHE, and made anew, in some minutes, when deps.sh changes.

Exit codes: 0 it brings all; 1 it does not; 2 wrong usage, or the commands cannot be found.
END
}

# ci: before anything is installed.
readonly tasks=(ci test lint demo bench daemons systemd gates)
cache=${COWSHED_CACHE:-/var/cache/cowshed}/commands

say() { printf 'check-commands.sh: %s\n' "$*" >&2; }

# key: what the lists are made from.
key() {
	cat scripts/deps.sh scripts/debian-root.sh scripts/check-commands.sh /etc/os-release | sha256sum | cut -c 1-16
}

# brought: see usage.
brought() {
	local dir task machine begun=$SECONDS
	dir=$cache/$(key)
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock 9
	if [[ ! -d $dir ]]; then
		say 'finding out which commands deps.sh brings, on a machine for each task; this takes some minutes'
		work=$(mktemp -d "$cache/new.XXXXXX")
		trap 'rm -rf --one-file-system -- "$work"' EXIT
		trap 'exit 130' INT TERM
		mkdir "$work/lists" "$work/archives" "$work/archives/partial" "$work/base"
		chmod 755 "$work/base"
		scripts/debian-root.sh make "$work/base"
		echo force-unsafe-io >"$work/base/etc/dpkg/dpkg.cfg.d/unsafe-io" # it is thrown away
		for task in "${tasks[@]}"; do
			machine=$work/machine
			cp -a "$work/base" "$machine"
			# shellcheck disable=SC2016 # expanded in there
			scripts/debian-root.sh enter "$machine" --bind-ro "$PWD:/tree" --bind "$work/archives:/var/cache/apt/archives" -- \
				bash -euc '[[ $0 == ci ]] || /tree/scripts/deps.sh "$0" >&2
					compgen -c | sort -u | while read -r name; do ! type -P "$name" >/dev/null || echo "$name"; done' "$task" >"$work/lists/$task"
			rm -rf --one-file-system -- "$machine"
		done
		mv -T "$work/lists" "$dir"
		find "$cache" -mindepth 1 -maxdepth 1 -type d ! -path "$work" ! -path "$dir" -mtime +14 -exec rm -rf -- {} +
		say "done in $((SECONDS - begun)) s"
	fi
	echo "$dir"
}

case $#:${1:-} in
0:)
	lists=$(scripts/as-root.sh scripts/check-commands.sh brought)
	tree=$PWD
	go -C scripts/internal/commandcheck run . -tree "$tree" -brought "$lists"
	;;
1:brought) brought ;;
1:-h | 1:--help | 1:help) usage ;;
*)
	usage >&2
	exit 2
	;;
esac
