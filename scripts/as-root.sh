#!/bin/sh
# Runs a test binary as root: it is the -exec program of `go test`. So `go test` itself runs as the user, and its caches
# stay the user's. The variables of the tests are passed on.
#
# Each binary has a mount namespace of its own. A test that makes another namespace copies the mounts that it finds. In one
# namespace for all, these would include the mounts of other packages' tests, whose volumes would then stay in use.
set -eu
set -- unshare --mount --propagation private -- "$@"
if [ "$(id -u)" -eq 0 ]; then
	exec "$@"
fi
exec sudo --non-interactive --preserve-env=PATH,HOME,CI,COWSHED_CACHE,COWSHED_TEST_REQUIRE,COWSHED_TEST_DIR,COWSHED_TEST_ZPOOL,COWSHED_TEST_LONG,COWSHED_CLIENTS_OUT,COWSHED_CLIENTS_BUILDKIT,COWSHED_CLIENTS_CRITEST,GOCACHE,GOMODCACHE,GOPROXY,GOFLAGS "$@"
