package layertar

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/treeat"
)

const (
	// liveAge is the least age of a file's last change, before the snapshot, from which its change time shows any
	// later change. Filesystems take the time from a clock that ticks every few milliseconds. And a snapshot may lack
	// data that is written while it is taken, though it has the time.
	liveAge = 100 * time.Millisecond
	// liveBytes is the size up to which files are read from the snapshot: btrfs may keep them beside their inodes,
	// which a snapshot shares.
	liveBytes = 2048
)

// liveFiles opens files of a live tree in place of those of its snapshot.
type liveFiles struct {
	dirs  treeat.DirStack
	root  unix.Stat_t // files of other devices are of other filesystems, or of subvolumes with their own inode numbers
	until time.Time   // files that changed later are left alone
}

// newLiveFiles returns nil if there is no live tree to be read.
func newLiveFiles(live *Live) *liveFiles {
	if live == nil {
		return nil
	}
	fd := int(live.Root.Fd())
	l := &liveFiles{dirs: treeat.DirStack{Root: fd}, until: live.Snapshot.Add(-liveAge)}
	if err := unix.Fstat(fd, &l.root); err != nil {
		return nil
	}
	return l
}

func (l *liveFiles) close() {
	if l != nil {
		l.dirs.Close()
	}
}

// open opens the file at an absolute, clean path if it is the snapshot's file, which st describes, and unchanged.
// Else, and after any error, it returns -1.
func (l *liveFiles) open(path string, st *unix.Stat_t) int {
	if l == nil || st.Size <= liveBytes || !time.Unix(st.Ctim.Unix()).Before(l.until) {
		return -1
	}
	i := strings.LastIndexByte(path, '/')
	dir, err := l.dirs.Dir(path[:i])
	if err != nil {
		return -1
	}
	// Opening a device, which may be there by now, could do something.
	place, err := treeat.Open(dir, path[i+1:], unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1
	}
	defer unix.Close(place)
	if !l.same(place, st) {
		return -1
	}
	fd, err := treeat.Open(unix.AT_FDCWD, treeat.ProcPath(place, ""), unix.O_RDONLY|unix.O_NOATIME, 0)
	if err != nil {
		return -1
	}
	return fd
}

// same says whether an open file of the live tree is the file that st describes and has not changed since.
func (l *liveFiles) same(fd int, st *unix.Stat_t) bool {
	var now unix.Stat_t
	err := unix.Fstat(fd, &now)
	return err == nil && now.Dev == l.root.Dev && now.Ino == st.Ino && now.Ctim == st.Ctim && now.Size == st.Size
}

// source is an open file, and the same file of the live tree, or -1.
type source struct {
	fd, live int
	st       *unix.Stat_t
	files    *liveFiles
}

// pread reads from the live file as long as that is unchanged. The kernel sets a file's change time before it changes
// data. So data read before a look at the time is that of the snapshot.
func (s *source) pread(b []byte, at int64) (n int, err error) {
	if s.live >= 0 {
		err = eintr.Ignore(func() error { n, err = unix.Pread(s.live, b, at); return err })
		if err == nil && s.files.same(s.live, s.st) {
			return n, nil
		}
		s.close()
	}
	err = eintr.Ignore(func() error { n, err = unix.Pread(s.fd, b, at); return err })
	return n, err
}

// close closes the live file.
func (s *source) close() {
	if s.live >= 0 {
		_ = unix.Close(s.live)
		s.live = -1
	}
}
