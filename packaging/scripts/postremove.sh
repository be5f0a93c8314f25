#!/bin/sh
# Runs after the package has been removed or upgraded. dpkg passes "remove", "purge" or "upgrade"; rpm passes how many
# versions stay installed.
set -e

case $1 in
remove | purge | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl reset-failed cowshed.socket cowshed.service 2>/dev/null || true # they may be unknown
fi
if [ "$1" != remove ]; then
	echo 'The layers that Cowshed kept are still there: by default in /var/lib/cowshed, and those of a Docker Engine with the'
	echo 'plugin in /var/lib/docker/cowshed. The guide docs/howto/removal.md says how to remove them.'
fi
