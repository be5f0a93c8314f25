#!/bin/sh
# Writes a layer as it is at this moment, in use or not, to a tar. See usage below.

set -eu

usage() {
	cat <<'END'
Usage: backup.sh LAYER FILE

Writes a layer as it is at this moment to FILE, as a tar that gzip has compressed. It takes a snapshot, reads it through
Cowshed's API, and removes it. The layer may be in use: backup.sh docker:web web.tar.gz

COWSHED_API is the socket of the API, by default /run/cowshed/api.sock.
END
}

# call METHOD PATH [OPTION...]: sends a request. curl fails if the answer is an error, which is JSON with kind, message and advice.
call() {
	method=$1 path=$2
	shift 2
	curl --silent --show-error --fail-with-body --unix-socket "${COWSHED_API:-/run/cowshed/api.sock}" \
		--request "$method" "$@" "http://cowshed/v1$path"
}

# failed CODE: ends after curl has ended with CODE. The answer is an error if CODE is 22, and the beginning of a tar else.
failed() {
	[ "$1" -ne 22 ] || cat -- "$new" >&2
	exit 1
}

# clean_up removes the part of a tar, and the snapshot if it may be there.
clean_up() {
	rm -f -- "$new"
	[ -z "$taken" ] || call DELETE "/layers/$layer/snapshots/$snapshot"
}

[ $# -eq 2 ] || {
	usage >&2
	exit 2
}
# A layer can have any character that a file name can. In a path of the API, / is written %2F.
layer=$(printf %s "$1" | sed 's|%|%25|g; s|/|%2F|g; s| |%20|g; s|?|%3F|g; s|#|%23|g')
file=$2 snapshot=backup-$$ taken=
new=$(mktemp "$file.XXXXXX")
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

taken=maybe
call POST "/layers/$layer/snapshots" --header 'Content-Type: application/json' \
	--data "{\"name\": \"$snapshot\", \"message\": \"for a backup\"}" --output "$new" || {
	code=$?
	# 7: nothing was sent. 22: the API has refused it, for example because another has a snapshot of that name.
	case $code in 7 | 22) taken= ;; esac
	failed $code
}
# If the server cannot make the whole tar, the connection ends too early, and curl fails.
call GET "/layers/$layer@$snapshot/diff?whole=true&compress=gzip" --output "$new" || failed $?
mv -- "$new" "$file"
