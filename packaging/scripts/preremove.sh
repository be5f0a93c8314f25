#!/bin/sh
# Runs before the package is removed or upgraded. dpkg passes "remove" or "upgrade"; rpm passes how many versions stay
# installed.
set -e

case $1 in
remove | 0) ;;
*) exit 0 ;;
esac
if command -v systemctl >/dev/null; then
	systemctl --no-reload disable cowshed.socket cowshed.service
fi
if [ -d /run/systemd/system ]; then
	systemctl stop cowshed.socket cowshed.service
fi
