#!/bin/sh
# Installs Cowshed on a node of Kubernetes, and takes it off again.
#
# node.sh install HOST     runs in the container of cowshed.yaml. HOST is where the node's root is mounted.
# node.sh uninstall HOST   runs on the node, where install has left this script. HOST is /.
#
# Programs of the node do all that concerns files of the node. Nothing restarts containerd: that is for whoever has drained
# the node.
set -eu

action=$1 host=$2
files=${COWSHED_FILES:-/opt/cowshed}       # program, units and this script, in the image
config=${COWSHED_CONFIG:-/config}          # directory with config.toml
kubelet=${COWSHED_KUBELET:-/kubelet}       # directory with token, if kubelet-pods.yaml was applied
mark=/etc/cowshed/installed-by-kubernetes # install has made the files of the node, for the configuration of containerd in it
program=/usr/local/bin/cowshed
script=/usr/local/lib/cowshed/node.sh
installed_config=/etc/cowshed/config.toml
token=/etc/cowshed/kubelet-token # the daemon reads it whenever it needs it
units=/etc/systemd/system
daemon_files="$program $installed_config $units/cowshed.socket $units/cowshed.service"
containerd=${CONTAINERD_CONFIG:-/etc/containerd/config.toml}
pending=/etc/cowshed/restart-pending # paths of the files that were changed since the daemon was restarted
former=                              # that of the mark

fail() {
	echo "node.sh: $1" >&2
	exit 1
}

on_node() { SYSTEMD_IGNORE_CHROOT=1 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin chroot "$host" "$@"; }

# stage FILE MODE PATH: makes PATH.new on the node, unless PATH is there with the same content and mode.
stage() {
	on_node rm -f "$3.new"
	new=$(on_node sha256sum <"$1")
	old=$(on_node sha256sum "$3" 2>/dev/null) || old=
	if [ "${old%% *} $(on_node stat -c %a "$3" 2>/dev/null)" = "${new%% *} $2" ]; then
		return
	fi
	on_node mkdir -p "$(dirname "$3")"
	(umask 077 && on_node tee "$3.new" <"$1" >/dev/null)
	on_node chmod "$2" "$3.new"
	on_node sync "$3.new"
}

# staged PATH: the file that is to be at PATH.
staged() {
	if on_node test -e "$1.new"; then
		echo "$1.new"
	else
		echo "$1"
	fi
}

# check_staged: fails unless the program runs on this node, and takes the configuration.
check_staged() {
	on_node "$(staged "$program")" setup containerd --config "$(staged "$installed_config")" --containerd-config "$containerd" >/dev/null ||
		fail 'the program or the configuration does not work on this node, so the daemon stays as it is'
}

# replace puts the staged files of the daemon in their places. The former files stay beside them, until the daemon has started.
replace() {
	for path in $daemon_files; do
		on_node test -e "$path.new" || continue
		echo "$path" | on_node tee -a "$pending" >/dev/null # before the change, which the next attempt does not find any more
		on_node sync "$pending" "$(dirname "$pending")"
		if on_node test -e "$path" && ! on_node test -e "$path.old"; then # an interrupted attempt has kept one that worked
			on_node ln "$path" "$path.old"
		fi
		on_node mv "$path.new" "$path"
	done
}

# restore takes back all that was replaced since the daemon has started, and restarts it.
restore() {
	restored=
	for path in $daemon_files; do
		if on_node test -e "$path.old"; then
			on_node mv "$path.old" "$path"
			restored=yes
		fi
	done
	[ -n "$restored" ] || fail 'the daemon does not start: see journalctl --unit cowshed on this node'
	on_node systemctl daemon-reload
	on_node systemctl reset-failed cowshed.service || true # so that its failures do not count
	restart || fail 'the daemon starts neither with the new files nor with the former: see journalctl --unit cowshed on this node'
	on_node rm -f "$pending"
	fail 'the daemon does not start with the new files, so the former are back: see journalctl --unit cowshed on this node'
}

# key NAME: the value of a key of the configuration, if that is a string.
key() { sed -n -e "s/^$1 *= *\"\([^\"]*\)\".*/\\1/p" -e "s/^$1 *= *'\([^']*\)'.*/\\1/p" "$config/config.toml"; }

# check_root: fails unless the root is on a filesystem that Cowshed can use.
check_root() {
	root=$(key root)
	dir=${root:-/var/lib/cowshed}
	until [ "$dir" = / ] || on_node test -e "$dir"; do
		dir=$(dirname "$dir")
	done
	case $(on_node stat -f -c %t "$dir") in
	9123683e | 2fc12fc1) ;; # btrfs, ZFS
	*) fail "$dir of this node is neither on btrfs nor on ZFS: put the root on one of them, or choose other nodes" ;;
	esac
}

# install_token brings the token to the node, or takes it away if there is none any more.
install_token() {
	if ! [ -s "$kubelet/token" ]; then
		on_node rm -f "$token" "$token.new"
		return
	fi
	stage "$kubelet/token" 600 "$token"
	if on_node test -e "$token.new"; then
		on_node mv "$token.new" "$token"
		on_node sync /etc/cowshed
	fi
}

# read_mark sets former. A mark without a path is about the default.
read_mark() {
	on_node test -e "$mark" || return
	former=$(on_node cat "$mark") || fail "$mark of this node cannot be read"
	former=${former:-$containerd}
}

check_mark() {
	read_mark && return
	for path in "$program" "$units/cowshed.service" "$units/cowshed.socket" "$installed_config" /usr/bin/cowshed; do
		if on_node test -e "$path"; then
			fail "$path of this node is there already: Cowshed was installed in another way"
		fi
	done
	on_node mkdir -p /etc/cowshed
	write_mark
}

write_mark() {
	echo "$containerd" | on_node tee "$mark.new" >/dev/null
	on_node sync "$mark.new"
	on_node mv "$mark.new" "$mark"
	on_node sync /etc/cowshed
	former=$containerd
}

# undo_setup takes back the changes of setup to the former configuration of containerd.
undo_setup() {
	if on_node test -e "$program"; then
		on_node "$program" setup kubernetes --undo --containerd-config "$former"
		on_node "$program" setup containerd --undo --containerd-config "$former"
	fi
}

# restart restarts the daemon. The socket stays, so that containerd's requests wait, unless another one has to be made: systemd
# makes none while the daemon runs.
restart() {
	if on_node grep -qxF "$units/cowshed.socket" "$pending" || ! on_node systemctl is-active --quiet cowshed.socket; then
		on_node systemctl stop cowshed.socket cowshed.service && on_node systemctl start cowshed.socket || return
	fi
	on_node systemctl restart cowshed.service
}

install() {
	check_root
	check_mark
	stage "$files/node.sh" 755 "$script"
	if on_node test -e "$script.new"; then
		on_node mv "$script.new" "$script"
	fi
	stage "$files/cowshed" 755 "$program"
	stage "$config/config.toml" 600 "$installed_config" # the address of a webhook may be a secret
	stage "$files/cowshed.socket" 644 "$units/cowshed.socket"
	stage "$files/cowshed.service" 644 "$units/cowshed.service"
	check_staged
	install_token
	replace
	on_node systemctl daemon-reload
	on_node systemctl enable cowshed.socket cowshed.service
	if ! on_node test -e "$pending"; then
		on_node systemctl start cowshed.socket cowshed.service
	elif restart; then
		for path in $daemon_files; do
			on_node rm -f "$path.old"
		done
		on_node rm -f "$pending"
	else
		restore
	fi
	if [ "$former" != "$containerd" ]; then
		undo_setup
		write_mark
	fi
	on_node "$program" setup containerd --apply --containerd-config "$containerd"
	on_node "$program" setup kubernetes --apply --containerd-config "$containerd"
	echo 'Cowshed is installed. New pods use it after: kubectl drain NODE, and systemctl restart containerd on the node'
}

uninstall() {
	read_mark || fail 'Cowshed was not installed by Kubernetes on this node'
	undo_setup
	if on_node test -e "$units/cowshed.service"; then
		on_node systemctl disable --now cowshed.socket cowshed.service
	fi
	# The mark goes last, so that uninstall can be repeated.
	for path in $daemon_files; do
		on_node rm -f "$path" "$path.new" "$path.old"
	done
	on_node systemctl daemon-reload
	on_node rm -f "$token" "$token.new" "$pending" "$script" "$script.new" "$mark" "$mark.new"
	on_node rmdir "$(dirname "$script")" /etc/cowshed 2>/dev/null || true # there are files of others
	echo 'Cowshed is off this node, but for its root. Restart containerd'
}

case $action in
install | uninstall)
	on_node true || fail "no program of the node can be run in $host"
	"$action"
	;;
*) fail "$action: say install or uninstall" ;;
esac
