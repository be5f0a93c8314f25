// Package migrate has the tests of `cowshed migrate` with real engines: Debian's Docker Engine and podman make images and
// containers with their own storage drivers. After the migration, the same engine on Cowshed's plugin, Docker Engine of
// today and containerd have the same images, the same containers, and the same files in these.
package migrate
