// Package clients runs the test suites of programs that use containerd, each twice in the same set-up: with Cowshed,
// and with containerd's overlayfs snapshotter, both on one btrfs. A test that fails only with Cowshed fails here,
// unless testdata/only-cowshed.txt has it with the reason. scripts/clients.sh builds the suites from their sources.
//
// The tests run in network and mount namespaces of their own: nothing of the suites reaches a network, and no
// interface or mount of theirs stays.
package clients
