// Package daemons has the end-to-end tests with real daemons: containerd, Docker Engine of today and Debian's with
// graph driver plugins, and a registry, on a loopback btrfs. It is a module of its own, because their sources are
// among its requirements; scripts/daemons.sh builds them. The package harness runs them.
package daemons
