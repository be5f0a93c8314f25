package btrfs

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// nestedSubvolume is a subvolume that somebody made inside a volume.
type nestedSubvolume struct {
	id   uint64
	path string // relative to the volume's root
}

// nestedIn lists the subvolumes inside the subvolume id, at any depth, each after the one it is nested in.
func (b *Backend) nestedIn(id uint64) ([]nestedSubvolume, error) {
	var all []nestedSubvolume
	outer := nestedSubvolume{id: id}
	for i := 0; ; i++ {
		inner, err := b.nestedDirectlyIn(outer)
		if err != nil {
			return nil, fmt.Errorf("list what is nested in subvolume %d: %w", outer.id, err)
		}
		all = append(all, inner...)
		if i == len(all) {
			return all, nil
		}
		outer = all[i]
	}
}

// nestedDirectlyIn leaves out what is unlinked while it looks.
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
		dir, err := btrfsctl.DirPath(fd, outer.id, ref.DirID)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		inner = append(inner, nestedSubvolume{ref.ID, path.Join(outer.path, dir, link.Name)})
	}
	return inner, nil
}

// snapshotNested puts into the snapshot whose root is open as dir, in place of the empty directories that
// stand there for nested subvolumes, snapshots of these; and makes all of it read-only.
func (b *Backend) snapshotNested(dir *os.File, nested []nestedSubvolume) error {
	made := []int{int(dir.Fd())}
	defer func() {
		for _, fd := range made[1:] {
			_ = unix.Close(fd)
		}
	}()
	for _, n := range nested {
		fd, err := b.snapshotInPlace(dir, n)
		// Neither is an error: it came after the snapshot, or has gone since.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) {
			continue
		}
		if err != nil {
			return fmt.Errorf("nested subvolume %q: %w", n.path, err)
		}
		made = append(made, fd)
	}
	for i := len(made) - 1; i >= 0; i-- {
		if err := btrfsctl.SetReadOnly(made[i], true); err != nil {
			return fmt.Errorf("make read-only: %w", err)
		}
	}
	return nil
}

func (b *Backend) snapshotInPlace(dir *os.File, n nestedSubvolume) (int, error) {
	source, err := btrfsctl.OpenRoot(int(b.fs.Fd()), n.id)
	if err != nil {
		return -1, err
	}
	defer unix.Close(source)
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	parent, err := unix.Openat2(int(dir.Fd()), path.Dir(n.path), how)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	name := path.Base(n.path)
	if err := unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); err != nil {
		return -1, err
	}
	if err := btrfsctl.Snapshot(parent, name, source, false, nil); err != nil {
		return -1, err
	}
	return unix.Openat2(parent, name, how)
}
