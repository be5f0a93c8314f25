#!/bin/sh
# Runs after the package has been installed or upgraded. dpkg passes "configure" and the version before, if there was one;
# rpm passes how many versions are installed.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
case $1:$2 in
configure: | 1:)
	# Started at once, the daemon would put its volumes on whatever filesystem is there, or fail at each boot.
	echo 'Cowshed is installed, but not started. Put /var/lib/cowshed on btrfs or ZFS, or name another directory in'
	echo '/etc/cowshed/config.toml. Then run: systemctl enable --now cowshed.socket cowshed.service'
	;;
configure:* | 2:)
	if [ -d /run/systemd/system ]; then
		systemctl try-restart cowshed.service
	fi
	;;
esac
