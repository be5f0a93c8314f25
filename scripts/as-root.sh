#!/bin/sh
# Runs a test binary as root: it is the -exec program of `go test`. So `go test` itself runs as the user, and its caches
# stay the user's. The variables of the tests are passed on.
set -eu
if [ "$(id -u)" -eq 0 ]; then
	exec "$@"
fi
exec sudo --non-interactive --preserve-env=PATH,HOME,CI,COWSHED_CACHE,COWSHED_TEST_REQUIRE,COWSHED_TEST_DIR,COWSHED_TEST_ZPOOL,COWSHED_TEST_LONG,COWSHED_CLIENTS_OUT,GOCACHE,GOMODCACHE,GOPROXY,GOFLAGS "$@"
