package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// changedSince reports whether anything in a tree was changed after a moment, by the kernel's time of the last change of
// each name. No program can set that time back. It stops at the first change.
func changedSince(ctx context.Context, tree *os.File, since time.Time) (bool, error) {
	root, err := treeat.OpenDir(int(tree.Fd()), ".") // anew, for an offset of its own
	if err != nil {
		return false, fmt.Errorf("open %s: %w", tree.Name(), err)
	}
	defer unix.Close(root)
	w := &changeWalk{dirs: treeat.DirStack{Root: root}, since: since, buf: make([]byte, 32<<10)}
	defer w.dirs.Close()
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return false, fmt.Errorf("stat %s: %w", tree.Name(), err)
	}
	if w.isLater(&st) {
		return true, nil
	}
	for todo := []string{""}; len(todo) > 0; {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		path := todo[len(todo)-1]
		below, found, err := w.dir(path, todo[:len(todo)-1])
		if err != nil {
			return false, fmt.Errorf("look for changes in %s%s: %w", tree.Name(), path, err)
		}
		if found {
			return true, nil
		}
		todo = below
	}
	return false, nil
}

// changeWalk looks for changes in directories.
type changeWalk struct {
	dirs  treeat.DirStack
	since time.Time
	buf   []byte
	names []treeat.Dirent
}

func (w *changeWalk) isLater(st *unix.Stat_t) bool { return time.Unix(st.Ctim.Unix()).After(w.since) }

// dir looks at the names of one directory, and adds the directories among them to todo.
func (w *changeWalk) dir(path string, todo []string) (_ []string, found bool, err error) {
	at, err := w.dirs.Dir(path)
	if err != nil {
		return nil, false, err
	}
	fd, err := treeat.Open(at, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // of another user
		fd, err = treeat.Open(at, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, false, err
	}
	defer unix.Close(fd)
	for {
		if w.names, err = treeat.ReadDir(fd, w.buf, w.names); err != nil || len(w.names) == 0 {
			return todo, false, err
		}
		for _, entry := range w.names {
			var st unix.Stat_t
			if err := treeat.Lstat(fd, entry.Name, &st); err != nil {
				return nil, false, fmt.Errorf("%s: %w", treeat.Quote(entry.Name), err)
			}
			if w.isLater(&st) {
				return nil, true, nil
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				todo = append(todo, path+"/"+entry.Name)
			}
		}
	}
}
