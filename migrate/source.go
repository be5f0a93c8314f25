package migrate

import (
	"context"
	"io"
	"os"
)

// Source reads an old root. It changes nothing there. Methods are safe for concurrent use.
type Source interface {
	// Inventory lists the things in the root. Damage of single things is among its Problems.
	Inventory(ctx context.Context) (*Inventory, error)
	// Open opens the content of a layer of the Inventory. The caller closes it.
	Open(ctx context.Context, layer string) (*Content, error)
	// Parts opens the parts of a layer's tar besides the data of its files, in the uncompressed JSON of tar-split. Returns
	// errdefs.ErrNotFound if the root does not keep it.
	Parts(ctx context.Context, layer string) (io.ReadCloser, error)
	// InUse returns ErrFailedPrecondition if a program works on the root, with the program's name and process. If no
	// program does, InUse keeps programs out until Close, as far as they use locks.
	InUse(ctx context.Context) error
	// Remove removes all that the Inventory lists, and all else that the old driver and its images keep. Volumes of
	// Docker and the like stay. The caller has asked the user.
	Remove(ctx context.Context) error
	// Close releases the root.
	Close() error
}

// Form says how a directory holds a layer.
type Form string

const (
	// Whole is the whole tree of the layer.
	Whole Form = "whole"
	// Overlay has the changes from the layer below, in the form of overlayfs: a removed name is a character device 0:0,
	// or an empty file with the attribute trusted.overlay.whiteout. A directory that hides the one below has the
	// attribute trusted.overlay.opaque "y".
	Overlay Form = "overlay"
	// FuseOverlay has the changes from the layer below, in the form of fuse-overlayfs: the marks of Overlay and those
	// of Aufs, side by side.
	FuseOverlay Form = "fuse-overlay"
	// Aufs has the changes from the layer below, in the form of aufs: a removed name NAME is a file .wh.NAME, and a
	// directory that hides the one below holds .wh..wh..opq. Other names that begin with .wh..wh. are its own.
	Aufs Form = "aufs"
)

// Content is an open layer.
type Content struct {
	Dir  *os.File // the root directory
	Form Form
	// Volume is where a Backend on the same filesystem finds the layer as a volume: the path of a btrfs subvolume, or
	// the name of a ZFS dataset. It is "" if the layer is no volume.
	Volume string
}

// Close closes the layer.
func (c *Content) Close() error { return c.Dir.Close() }
