package sharedroot

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

// treePair is two open trees that are compared.
type treePair struct {
	roots [2]*os.File
	dirs  [2]treeat.DirStack
}

func openTrees(first, second string) (*treePair, error) {
	p := &treePair{}
	for i, dir := range [2]string{first, second} {
		root, err := openRoot(dir)
		if err != nil {
			p.close()
			return nil, err
		}
		p.roots[i], p.dirs[i].Root = root, int(root.Fd())
	}
	return p, nil
}

func (p *treePair) close() {
	for i, root := range p.roots {
		p.dirs[i].Close()
		if root != nil {
			root.Close()
		}
	}
}

// lookAt describes a name without following a symbolic link. is: the name exists.
func lookAt(dir int, name string, st *unix.Statx_t) (is bool, err error) {
	err = eintr.Ignore(func() error {
		return unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
	})
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

func isDir(st *unix.Statx_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

// sameInode reports whether an inode is the clone of another. A number may be used again after a while.
func sameInode(a, b *unix.Statx_t) bool { return a.Ino == b.Ino && a.Btime == b.Btime }
