// Package equivalence has only tests. They compare layertar with the layer code of moby (go-archive) and of
// containerd (pkg/archive). A layer applied by each makes the same tree, and Cowshed's layers give both of them the
// tree that they were written from. The layers are made of Debian packages, random, or the tars of other projects'
// tests, which podman's library applies as well (TestTars). Where Cowshed differs on purpose,
// docs/reference/layer-tars.md says so and a test here asserts it, for the peers as well.
//
// It is part of the module bench, which keeps containerd out of the requirements of the main module. The tests need
// root, a loopback btrfs, GNU tar, dpkg-deb, and apt-get with a package source, and for the long variant npm;
// downloaded packages are kept below COWSHED_CACHE.
package equivalence
