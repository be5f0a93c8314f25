package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// ChangesSize implements cowcommon.ChangesSizer: it reads the upper of a shared volume over base, and neither mounts nor
// copies anything.
func (b *Backend) ChangesSize(ctx context.Context, name, base string) (size int64, err error) {
	err = b.untilFolded(ctx, name, func() (err error) {
		size, err = b.changesSize(ctx, name, base)
		return err
	})
	return size, fault.Wrap("measure the changes of volume", name, err)
}

func (b *Backend) changesSize(ctx context.Context, name, base string) (size int64, err error) {
	unlock, err := b.lock(ctx, shared(name))
	if err != nil {
		return 0, err
	}
	defer unlock()
	noted, err := b.index.lower(name)
	if err != nil {
		return 0, err
	}
	if noted == "" || noted != base {
		return 0, errNotOver(base)
	}
	err = b.peek(ctx, name, func(root *os.File) error {
		s, _, err := inspectNoted(root, noted)
		switch {
		case err != nil:
			return err
		case s == stateFolding:
			return errFolding
		case s == stateNone:
			return fault.New(errdefs.ErrNotImplemented, "its root is not shared")
		}
		z := sizer{ctx: ctx, dirs: treeat.DirStack{Root: int(root.Fd())}, buf: make([]byte, 32<<10), seen: map[uint64]struct{}{}}
		defer z.dirs.Close()
		size, err = z.sizeBelow("/" + sharedmark.Dir + "/" + upperName)
		return err
	})
	return size, err
}

// sizer adds the sizes of regular files. Others may change the tree meanwhile.
type sizer struct {
	ctx   context.Context
	dirs  treeat.DirStack
	buf   []byte // for directory entries
	names []treeat.Dirent
	seen  map[uint64]struct{} // inodes with several names
	total int64
}

func (z *sizer) sizeBelow(dir string) (int64, error) {
	for todo := []string{dir}; len(todo) > 0; {
		dir, todo = todo[len(todo)-1], todo[:len(todo)-1]
		below, err := z.add(dir)
		if err != nil && !isGoneOrOther(err) {
			return 0, fmt.Errorf("%s: %w", treeat.Quote(dir), err)
		}
		for _, name := range below {
			todo = append(todo, dir+"/"+name)
		}
	}
	return z.total, nil
}

// isGoneOrOther reports whether a file has been removed, or another is in its place.
func isGoneOrOther(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// add adds the files in a directory, and returns the names of the directories in it.
func (z *sizer) add(dir string) (below []string, err error) {
	parent, err := z.dirs.Dir(dir)
	if err != nil {
		return nil, err
	}
	fd, err := treeat.Open(parent, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	for {
		if err := z.ctx.Err(); err != nil {
			return below, err
		}
		if z.names, err = treeat.ReadDir(fd, z.buf, z.names); err != nil {
			return below, fmt.Errorf("read directory: %w", err)
		}
		if len(z.names) == 0 {
			return below, nil
		}
		for _, d := range z.names {
			if d.Type != unix.DT_REG && d.Type != unix.DT_DIR && d.Type != unix.DT_UNKNOWN {
				continue
			}
			var st unix.Stat_t
			err := treeat.Lstat(fd, d.Name, &st)
			switch {
			case isGoneOrOther(err):
			case err != nil:
				return below, fmt.Errorf("stat %s: %w", treeat.Quote(d.Name), err)
			case st.Mode&unix.S_IFMT == unix.S_IFDIR:
				below = append(below, d.Name)
			case st.Mode&unix.S_IFMT == unix.S_IFREG:
				z.count(&st)
			}
		}
	}
}

func (z *sizer) count(st *unix.Stat_t) {
	if st.Nlink > 1 {
		if _, seen := z.seen[st.Ino]; seen {
			return
		}
		z.seen[st.Ino] = struct{}{}
	}
	z.total += st.Size
}
