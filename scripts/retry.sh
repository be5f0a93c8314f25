#!/usr/bin/env bash
#
# retry.sh COMMAND [ARG...]: runs a command that downloads something. If the command fails, it runs again after a pause, three times
# in all. Exits with the status of the last run.
#
# Environment: RETRY_PAUSE, the seconds of the first pause (default 10). The second is three times as long.

set -uo pipefail

pause=${RETRY_PAUSE:-10}
for left in 2 1 0; do
	"$@" && exit
	status=$?
	((left > 0)) || exit "$status"
	echo "retry.sh: $1 failed with status $status; again in $pause s" >&2
	sleep "$pause"
	pause=$((3 * pause))
done
