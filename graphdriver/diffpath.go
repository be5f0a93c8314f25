package graphdriver

import "time"

// DiffPathDriver is a driver that can show the files of a layer's diff in a directory.
type DiffPathDriver interface {
	Driver

	// DiffPath makes a directory with the files of the layer that are not the same in its parent, and returns its absolute
	// path. The files are those of this moment. A layer without a parent is there as a whole.
	//
	// The directory has the form of a layer of overlayfs: a name that the parent alone has is a character device 0:0.
	// Directories on the way to a change are there, and the root has the attributes of the layer's root. Extended
	// attributes of overlay filesystems are left out. Nobody can write to the directory. Its cost is in proportion to the
	// changes, and data is shared with the layer where the filesystem can.
	//
	// The caller calls release, after which the directory is gone. Calling it twice does nothing.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	DiffPath(id string) (path string, release func() error, err error)
}

// CustomImageInfo describes a base image that is always there.
type CustomImageInfo struct {
	ID          string
	Name        string
	Version     string
	Path        string
	Size        int64
	CreatedTime time.Time
}

// CustomImageDriver is a driver with base images that are there without being pulled, as Windows has. A program that
// has its own, such as root filesystems that the host provides, gives them to the driver when it opens it.
type CustomImageDriver interface {
	Driver

	// GetCustomImageInfos lists the base images that are always there. Most systems have none, and then the list is
	// empty. It is the caller's.
	GetCustomImageInfos() ([]CustomImageInfo, error)
}
