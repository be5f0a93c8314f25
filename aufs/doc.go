// Package aufs has the surface of the aufs driver of Docker, which is gone from Docker and was never in Linux. Programs
// that moved layers with it still can.
//
// [Migrate] works everywhere on Linux, with any driver. It moves the images and containers of Docker before 0.7.
//
// [Init] returns ErrAufsNotSupported unless the kernel has aufs, which needs a patched one. A [Driver] that it returns
// keeps layers as Docker's did:
//
//	layers/ID   the IDs of the layers below, nearest first, one a line
//	diff/ID     the changes of a layer
//	mnt/ID      where the layer is mounted
//
// The methods have the signatures of graphdriver.Driver. In Docker 0.7 Create had no options, and Put no error. Layers of
// Docker's later aufs driver come into other drivers by "cowshed migrate".
package aufs
