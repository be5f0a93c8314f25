#!/bin/sh
# Runs buildkitd as on a host: BuildKit's suite forbids it any differ but that for overlays, unless the snapshotter is
# "native". BUILDKITD is the program.
unset BUILDKIT_DEBUG_FORCE_OVERLAY_DIFF
exec "$BUILDKITD" "$@"
