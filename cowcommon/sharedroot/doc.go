// Package sharedroot gives volumes the root style "shared". Such a volume is an overlay of its changes over the one
// sealed volume that it is made from. So all containers of an image share one page cache. No other package knows that
// overlayfs does this.
//
// # Layout
//
// At the root of a shared volume is the directory .cowshed, of mode 0700, with the extended attribute
// trusted.cowshed.shared: "1", a space and the name of the lower volume. In it are the directories upper and work of the
// overlay. The rest of the tree is that of the lower volume, and nobody reads it. A directory .cowshed without the
// attribute is a user's.
//
// To fold a volume means to move all that is in the upper to its place in the tree, by renames. From its first step to
// its last the upper is called folding, and everybody who finds it completes the fold.
package sharedroot
