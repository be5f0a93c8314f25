package sharedroot

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// betweenUppers makes hints for the trees of two overlays over one lower from hints for the volumes in which their uppers
// are. base and top are the roots of these volumes.
func betweenUppers(volumes *treediff.Hints, base, top string) (*treediff.Hints, error) {
	var dirs [2]treeat.DirStack
	for i, volume := range [2]string{base, top} {
		upper, err := openRoot(upperOf(volume))
		if err != nil {
			return nil, err
		}
		defer upper.Close()
		dirs[i].Root = int(upper.Fd())
		defer dirs[i].Close()
	}
	// Hints for volumes rely on the numbers of inodes. Those of overlays do not tell a directory of the lower from its copy.
	hints := &treediff.Hints{ByName: true}
	for name, flags := range volumes.All() {
		below, is := strings.CutPrefix(name, "/"+sharedmark.Dir+"/"+upperName)
		if !is || below != "" && below[0] != '/' {
			continue
		}
		replaced, err := isReplaced(&dirs, below)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", treeat.Quote(below), err)
		}
		if replaced {
			flags |= treediff.Deep
		}
		hints.Add(below, flags|treediff.Written)
	}
	replaced, err := isReplaced(&dirs, "")
	if replaced { // the root style was changed in between
		err = &treediff.NoHintsError{Reason: "root style", Err: errors.New("one upper is no clone of the other")}
	}
	if err != nil {
		return nil, err
	}
	return hints, nil
}

// isReplaced reports whether a path is that of two directories of which neither is a clone of the other.
func isReplaced(dirs *[2]treeat.DirStack, name string) (bool, error) {
	at, last := path.Split(name)
	if last == "" {
		last = "."
	}
	var st [2]unix.Statx_t
	for i := range dirs {
		dir, err := dirs[i].Dir(strings.TrimSuffix(at, "/"))
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if is, err := lookAt(dir, last, &st[i]); !is || err != nil || !isDir(&st[i]) {
			return false, err
		}
	}
	return !sameInode(&st[0], &st[1]), nil
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
