// Package migrate has the tests of `cowshed migrate` with real engines: Debian's Docker Engine and podman make images and
// containers with their own storage drivers. After the migration, other engines have the same images and containers, with
// the same files. These are the same engine on Cowshed's plugin, Docker Engine of today, and containerd.
package migrate
