package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// changes returns the names in an upper as hints for a comparison of the merged tree with the lower. They are complete
// by name: all that is not hinted is the lower's. The cost is in proportion to the changes.
func changes(ctx context.Context, upper, lower *os.File) (*treediff.Hints, error) {
	hints := &treediff.Hints{ByName: true}
	w := newWalk(ctx, int(upper.Fd()), int(lower.Fd()))
	defer w.close()
	w.merged = func(int) error {
		hints.Add(string(w.path), 0)
		return nil
	}
	w.other = func(e *entry) error {
		flags := treediff.Written
		if e.kind == unix.DT_DIR {
			flags = treediff.Deep
		}
		hints.Add(string(w.path)+"/"+e.name, flags)
		return nil
	}
	if err := w.run(); err != nil {
		return nil, fmt.Errorf("read the changes of a shared root: %w", err)
	}
	return hints, nil
}

// walk walks the directories of an upper that the overlay merges with a directory of the lower. Its functions are
// called for each name in them. It is at the path of that directory then.
type walk struct {
	ctx          context.Context
	upper, lower treeat.DirStack

	other  func(e *entry) error                   // a name that is no such directory; nil: nothing to do
	merged func(upper int) error                  // such a directory, before the names in it; nil: nothing to do
	leave  func(l *level) (again bool, err error) // after them; again: read it again; nil: nothing to do

	path  []byte // of the directory that it is in, "" for the root
	stack []level
	buf   []byte // for directory entries
	names []treeat.Dirent
}

// level is a directory that a walk is in.
type level struct {
	end  int      // of its path in walk.path
	todo []string // directories in it that are still to come
	seen int      // names in it
}

// entry is a name in an upper, and the descriptors of its directory there and in the lower.
type entry struct {
	upper, lower int
	name         string
	kind         uint8 // unix.DT_*, known
}

func (e *entry) source() treeat.File { return treeat.File{Dir: e.upper, Name: e.name, FD: -1} }

func (e *entry) target() treeat.File { return treeat.File{Dir: e.lower, Name: e.name, FD: -1} }

func (e *entry) targetDir() treeat.File { return treeat.File{Dir: e.lower, Name: ".", FD: -1} }

func newWalk(ctx context.Context, upper, lower int) *walk {
	return &walk{
		ctx:   ctx,
		upper: treeat.DirStack{Root: upper}, lower: treeat.DirStack{Root: lower},
		buf: make([]byte, 32<<10),
	}
}

func (w *walk) close() {
	w.upper.Close()
	w.lower.Close()
}

func (w *walk) run() error {
	if _, err := overlaymark.Opaque(treeat.File{Dir: w.upper.Root, Name: ".", FD: -1}, overlaymark.Space); err != nil {
		return err
	}
	err := w.read()
	for err == nil && len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		w.path = w.path[:top.end]
		if n := len(top.todo); n > 0 {
			name := top.todo[n-1]
			top.todo = top.todo[:n-1]
			w.path = append(append(w.path, '/'), name...)
			err = w.read()
			continue
		}
		err = w.up()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", treeat.Quote(string(w.path)), err)
	}
	return nil
}

// up goes back to the parent of the directory that the walk is in.
func (w *walk) up() error {
	last := w.stack[len(w.stack)-1]
	w.stack = w.stack[:len(w.stack)-1]
	if w.leave == nil {
		return nil
	}
	again, err := w.leave(&last)
	if err != nil || !again {
		return err
	}
	return w.read()
}

// read reads the directory that the walk is in. Directories in it that are merged are to come.
func (w *walk) read() error {
	upper, lower, err := w.dirs(string(w.path))
	if err != nil {
		return err
	}
	if w.merged != nil {
		if err := w.merged(upper); err != nil {
			return err
		}
	}
	fd, err := treeat.Open(upper, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	l := level{end: len(w.path)}
	for {
		if w.names, err = treeat.ReadDir(fd, w.buf, w.names); err != nil {
			return fmt.Errorf("read directory: %w", err)
		}
		if len(w.names) == 0 {
			w.stack = append(w.stack, l)
			return nil
		}
		l.seen += len(w.names)
		for _, d := range w.names {
			e := entry{upper: upper, lower: lower, name: d.Name, kind: d.Type}
			isMerged, err := w.entry(&e)
			if err != nil {
				return fmt.Errorf("%s: %w", treeat.Quote(d.Name), err)
			}
			if isMerged {
				l.todo = append(l.todo, d.Name)
			}
		}
	}
}

// dirs returns descriptors of the directories at a path. They are valid until the next call.
func (w *walk) dirs(path string) (upper, lower int, err error) {
	if upper, err = w.upper.Dir(path); err != nil {
		return -1, -1, err
	}
	lower, err = w.lower.Dir(path)
	return upper, lower, err
}

func (w *walk) entry(e *entry) (isMerged bool, err error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	if err := e.know(); err != nil {
		return false, err
	}
	if e.kind == unix.DT_DIR {
		if isMerged, err = e.isMerged(); err != nil || isMerged {
			return isMerged, err
		}
	}
	if w.other == nil {
		return false, nil
	}
	return false, w.other(e)
}

// know looks up the kind of an entry of a filesystem that does not tell it with the name.
func (e *entry) know() error {
	if e.kind != unix.DT_UNKNOWN {
		return nil
	}
	var st unix.Stat_t
	if err := treeat.Lstat(e.upper, e.name, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	e.kind = uint8(st.Mode & unix.S_IFMT >> 12)
	return nil
}

// isWhiteout reports whether an entry says that its name is gone.
func (e *entry) isWhiteout() (bool, error) {
	if e.kind != unix.DT_CHR {
		return false, nil
	}
	var st unix.Stat_t
	if err := treeat.Lstat(e.upper, e.name, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0, nil
}

// isMerged reports whether the overlay merges a directory with one in the lower. A directory of the volume that stands for
// a nested subvolume of the lower is none: it is empty, and cannot be written.
func (e *entry) isMerged() (bool, error) {
	opaque, err := overlaymark.Opaque(e.source(), overlaymark.Space)
	if err != nil || opaque {
		return false, err
	}
	var st unix.Stat_t
	err = treeat.Lstat(e.lower, e.name, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat in the lower: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Ino != btrfsctl.StandInInode {
		return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
	}
	// On ZFS any directory may have that number.
	var fs unix.Statfs_t
	if err := unix.Fstatfs(e.lower, &fs); err != nil {
		return false, fmt.Errorf("filesystem of the lower: %w", err)
	}
	return fs.Type != unix.BTRFS_SUPER_MAGIC, nil
}
