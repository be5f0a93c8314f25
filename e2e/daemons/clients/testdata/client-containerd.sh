#!/bin/sh
# Runs containerd as the suite of its client calls it. The one that has its root in SUITE_ROOT, which the most tests share,
# uses the cowshed that serves on COWSHED_SOCKET. CONTAINERD is the program.
set -eu

case " $* " in
*" --root $SUITE_ROOT "*) ;;
*) exec "$CONTAINERD" "$@" ;;
esac
flags=$*
while [ "$1" != --config ]; do
	shift
done
grep -q cowshed "$2" || cat >>"$2" <<TOML

[proxy_plugins.cowshed]
  type = "snapshot"
  address = "$COWSHED_SOCKET"
  capabilities = ["remap-ids"]
[proxy_plugins.cowshed-diff]
  type = "diff"
  address = "$COWSHED_SOCKET"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["cowshed-diff", "walking"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "cowshed"
  differ = "cowshed-diff"
TOML
# None of the flags has a blank in it.
# shellcheck disable=SC2086
exec "$CONTAINERD" $flags
