#!/usr/bin/env bash
#
# Downloads the Go modules that builds, linters and tests of the tree need, if they are missing. Go itself tries a download only
# once. A download that fails again and again is left to the step that needs the module. For CI.

set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."

for os in '' windows darwin freebsd; do
	GOOS=$os scripts/retry.sh go list -deps -test ./... >/dev/null || true
done
git ls-files '*/go.mod' | while read -r file; do
	scripts/retry.sh go -C "${file%/go.mod}" list -deps -test ./... </dev/null >/dev/null || true
done
scripts/retry.sh go -C e2e/daemons list -deps tool >/dev/null || true # scripts/daemons.sh builds them
