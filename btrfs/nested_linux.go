package btrfs

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// nestedSubvolume is a subvolume that somebody made inside a volume.
type nestedSubvolume struct {
	id    uint64
	outer uint64 // the subvolume that it is linked in
	dirID uint64 // inode number of the directory there
	name  string // its name in that directory
	path  string // relative to the volume's root; "" if it is too long for the kernel to tell
}

// emptySubvolDirInode is the inode number of the empty directory that a snapshot has in place of a subvolume nested in
// its source (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
const emptySubvolDirInode = 2

// nestedIn lists the subvolumes inside the subvolume id, at any depth, each after its outer subvolume.
func (b *Backend) nestedIn(id uint64) ([]nestedSubvolume, error) {
	all, err := b.nestedDirectlyIn(nestedSubvolume{id: id, path: "."})
	for i := 0; err == nil && i < len(all); i++ {
		var inner []nestedSubvolume
		inner, err = b.nestedDirectlyIn(all[i])
		all = append(all, inner...)
	}
	if err != nil {
		return nil, fmt.Errorf("list subvolumes nested in subvolume %d: %w", id, err)
	}
	return all, nil
}

// nestedDirectlyIn lists the subvolumes directly inside outer. It leaves out subvolumes that are unlinked meanwhile.
func (b *Backend) nestedDirectlyIn(outer nestedSubvolume) ([]nestedSubvolume, error) {
	fd, err := btrfsctl.OpenRoot(int(b.fs.Fd()), outer.id)
	if errors.Is(err, unix.ESTALE) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	refs, err := btrfsctl.Nested(fd)
	if err != nil {
		return nil, err
	}
	var inner []nestedSubvolume
	for _, ref := range refs {
		link, err := btrfsctl.LinkByID(fd, ref.ID)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n := nestedSubvolume{id: ref.ID, outer: outer.id, dirID: ref.DirID, name: link.Name}
		dir, err := btrfsctl.DirPath(fd, outer.id, ref.DirID)
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case errors.Is(err, unix.ENAMETOOLONG):
		case err != nil:
			return nil, err
		case outer.path != "":
			n.path = path.Join(outer.path, dir, link.Name)
		}
		inner = append(inner, n)
	}
	return inner, nil
}

// snapshotNested completes dir, a snapshot of the subvolume id, which has an empty directory in place of each nested
// subvolume. It replaces these directories with snapshots of the nested subvolumes. Then it makes dir and all these
// snapshots read-only.
func (b *Backend) snapshotNested(dir *subvolume, id uint64, nested []nestedSubvolume) error {
	snapshots := map[uint64]uint64{id: dir.info.ID} // ids of snapshots, by the ids of their sources
	made := []uint64{dir.info.ID}
	for _, n := range nested {
		outer, ok := snapshots[n.outer]
		if !ok {
			continue // the outer subvolume has been left out, and so is this one
		}
		snapshot, err := b.snapshotInPlace(outer, n)
		// The nested subvolume is newer than the snapshot around it, or has been removed since.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
			continue
		}
		if err != nil {
			return fmt.Errorf("nested subvolume %d, %q: %w", n.id, n.name, err)
		}
		snapshots[n.id] = snapshot
		made = append(made, snapshot)
	}
	for i := len(made) - 1; i >= 0; i-- {
		if err := b.makeReadOnly(made[i]); err != nil {
			return fmt.Errorf("make subvolume %d read-only: %w", made[i], err)
		}
	}
	return nil
}

// snapshotInPlace makes a snapshot of n in the subvolume outer, and returns the snapshot's id. outer is itself a
// snapshot of the subvolume that n is nested in. Inode numbers are the same in both, so no path need be resolved.
func (b *Backend) snapshotInPlace(outer uint64, n nestedSubvolume) (uint64, error) {
	source, err := btrfsctl.OpenRoot(int(b.fs.Fd()), n.id)
	if err != nil {
		return 0, err
	}
	defer unix.Close(source)
	dir, err := btrfsctl.OpenDir(int(b.fs.Fd()), outer, n.dirID)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dir)
	var stat unix.Stat_t
	if err := unix.Fstatat(dir, n.name, &stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, err
	}
	if stat.Ino != emptySubvolDirInode {
		return 0, unix.ENOENT // the name stood for something else at the time of the snapshot
	}
	if err := btrfsctl.AllowUnlink(dir); err != nil {
		return 0, err
	}
	if err := unix.Unlinkat(dir, n.name, unix.AT_REMOVEDIR); err != nil {
		return 0, err
	}
	if err := btrfsctl.Snapshot(dir, n.name, source, false, nil); err != nil {
		return 0, err
	}
	fd, err := unix.Openat(dir, n.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	info, err := btrfsctl.Info(fd)
	return info.ID, err
}

func (b *Backend) makeReadOnly(id uint64) error {
	fd, err := btrfsctl.OpenRoot(int(b.fs.Fd()), id)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return btrfsctl.SetReadOnly(fd, true)
}
