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

# failed CODE FILE: ends after curl has ended with CODE. The answer in FILE is an error if CODE is 22, and the beginning of a tar else.
failed() {
	[ "$1" -ne 22 ] || cat -- "$2" >&2
	exit 1
}

[ $# -eq 2 ] || {
	usage >&2
	exit 2
}
# A layer can have any character that a file name can. In a path of the API, / is written %2F.
layer=$(printf %s "$1" | sed 's|%|%25|g; s|/|%2F|g; s| |%20|g; s|?|%3F|g; s|#|%23|g')
file=$2 new=$2.new snapshot=backup-$$
trap 'rm -f -- "$new"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

call POST "/layers/$layer/snapshots" --header 'Content-Type: application/json' \
	--data "{\"name\": \"$snapshot\", \"message\": \"for a backup\"}" --output "$new" || failed $? "$new"
trap 'rm -f -- "$new"; call DELETE "/layers/$layer/snapshots/$snapshot"' EXIT
# If the server cannot make the whole tar, the connection ends too early, and curl fails.
call GET "/layers/$layer@$snapshot/diff?whole=true&compress=gzip" --output "$new" || failed $? "$new"
mv -- "$new" "$file"
