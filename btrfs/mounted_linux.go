package btrfs

import (
	"fmt"
	"path"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/mounttable"
)

// checkNotMounted reports whether a volume can be changed as a whole. The kernel does not check: it would destroy a
// subvolume under its mounts.
//
// Returns errdefs.ErrFailedPrecondition if the volume or a directory of it is mounted in some mount namespace, or is a
// layer of a mounted overlay. The error says where.
func (b *Backend) checkNotMounted(name string) error {
	at, err := b.pathFromTop()
	if err != nil {
		return fmt.Errorf("path of the home from the top of the filesystem: %w", err)
	}
	uses, err := b.mounts.UsesOf(path.Join(at, name), b.self.Volume(name).IsIn())
	if err != nil {
		return fmt.Errorf("find the mounts of volume %s: %w", name, err)
	}
	return mounttable.InUse("volume "+name, uses)
}

// pathFromTop returns the present path of the directory that holds the volumes, from the top of the filesystem. A
// rename of a directory above changes that path.
func (b *Backend) pathFromTop() (string, error) {
	fd := int(b.fs.Fd())
	at, err := btrfsctl.DirPath(fd, b.dirs.subvolumesID, b.dirs.subvolumesIno)
	for id := b.dirs.subvolumesID; err == nil && id != btrfsctl.FSTreeObjectID; {
		var link btrfsctl.Link
		if link, err = btrfsctl.LinkByID(fd, id); err != nil {
			break
		}
		var dir string
		dir, err = btrfsctl.DirPath(fd, link.ParentID, link.DirID)
		at, id = path.Join(dir, link.Name, at), link.ParentID
	}
	return path.Join("/", at), err
}
