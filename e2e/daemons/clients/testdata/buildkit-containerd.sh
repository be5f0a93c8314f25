#!/bin/sh
# Runs containerd as BuildKit's suite calls it, --config FILE, with a cowshed of its own that has its root in a directory
# of COWSHED_DATA. It ends with containerd. CONTAINERD and COWSHED are the programs.
set -eu

config=$2
dir=$(dirname -- "$config")
root=$(mktemp -d "$COWSHED_DATA/root.XXXXXX")

cat >>"$config" <<TOML

[proxy_plugins.cowshed]
  type = "snapshot"
  address = "$dir/cowshed.sock"
[proxy_plugins.cowshed-diff]
  type = "diff"
  address = "$dir/cowshed.sock"
[plugins."io.containerd.service.v1.diff-service"]
  default = ["cowshed-diff", "walking"]
TOML
: >"$dir/cowshed.toml"

"$COWSHED" serve --config "$dir/cowshed.toml" --root "$root" --state "$dir/cowshed" --address "$dir/cowshed.sock" \
	--containerd-address "$dir/containerd.sock" --log-level info &
serving=$!
# Whoever is told that containerd serves uses the snapshotter at once.
until [ -S "$dir/cowshed.sock" ]; do
	kill -0 $serving
	sleep 0.05
done
"$CONTAINERD" --config "$config" &
served=$!
trap 'kill $served' TERM INT
# wait is cut short by the signal.
wait $served || wait $served || true
kill $serving
wait $serving
