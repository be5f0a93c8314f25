package treediff

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// side is one of the two trees.
type side int

const (
	top side = iota
	base
)

// maxPathBytes bounds the memory of a change list's paths. Paths below n nested directories take n times their
// number, so that a small tree can have a list that no machine can hold.
var maxPathBytes int64 = 1 << 30

// errStopped ends a worker when another has failed or the context has ended.
var errStopped = errors.New("stopped")

// walk is one pass over one or two trees.
type walk struct {
	roots   [2]root
	hints   *Hints
	extra   Extra
	size    *sizer // if not nil, hinted files in top are measured and nothing is compared
	stopped atomic.Bool
	idle    chan *worker // workers that have nothing to do
	working sync.WaitGroup
	held    atomic.Int64 // bytes of the paths in the list

	mu      sync.Mutex
	err     error // the first
	changes []archive.Change
	late    []lateChange
}

// root is the root of a tree.
type root struct {
	path string // "": the empty tree
	fd   int
	id   inode
}

// lateChange is a change found by another worker than the worker of its directory.
type lateChange struct {
	dir  *dir
	path string // of the change
}

// inode says which inode something is.
type inode struct {
	dev   uint64
	ino   uint64
	btime unix.StatxTimestamp // noTime where the filesystem does not tell
}

var noTime unix.StatxTimestamp

func inodeOf(st *unix.Statx_t) inode {
	id := inode{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.btime = st.Btime
	}
	return id
}

func newWalk(topPath, basePath string, hints *Hints) *walk {
	return &walk{roots: [2]root{{path: topPath, fd: -1}, {path: basePath, fd: -1}}, hints: hints}
}

// run walks the trees with as many workers as pay. It returns when all have ended.
func (w *walk) run(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { w.stopped.Store(true) })()
	defer w.closeRoots()
	d, err := w.openRoots()
	if err != nil {
		return err
	}

	workers := numWorkers()
	w.idle = make(chan *worker, workers)
	for range workers - 1 {
		w.idle <- &worker{walk: w}
	}
	first := &worker{walk: w}
	first.run(d)
	w.idle <- first
	w.working.Wait()
	if errors.Is(w.err, errStopped) {
		return ctx.Err()
	}
	return w.err
}

// numWorkers is one for each processor and one more, since workers also wait for the disk.
func numWorkers() int { return min(runtime.GOMAXPROCS(0)+1, maxWorkers) }

const maxWorkers = 8

// openRoots opens the roots of the trees and returns them as the first directory to be walked.
func (w *walk) openRoots() (*dir, error) {
	d := &dir{fd: [2]int{-1, -1}}
	var st unix.Statx_t
	for s := range w.roots {
		r := &w.roots[s]
		if r.path == "" && side(s) == base {
			continue
		}
		var err error
		if r.fd, err = openRoot(r.path); err != nil {
			return nil, &fs.PathError{Op: "open", Path: r.path, Err: err}
		}
		if err := statFd(r.fd, &st); err != nil {
			return nil, &fs.PathError{Op: "stat", Path: r.path, Err: err}
		}
		r.id = inodeOf(&st)
		d.has[s], d.id[s] = true, r.id
	}
	if w.hints != nil {
		d.hint = &w.hints.root
		d.byHint = w.size != nil || d.has[base] && !d.hint.has(Deep) && (w.hints.ByName || w.cloned(d.id[top], d.id[base]) || d.id[top].btime == d.id[base].btime && d.id[top].btime != noTime)
	}
	// The walk closes each directory after it. The roots stay open, to start from again when directories are moved
	// during the walk.
	for s := range w.roots {
		if !d.has[s] {
			continue
		}
		var err error
		if d.fd[s], err = openDir(w.roots[s].fd, "."); err != nil {
			d.close()
			return nil, &fs.PathError{Op: "open", Path: w.roots[s].path, Err: err}
		}
	}
	return d, nil
}

func (w *walk) closeRoots() {
	for _, r := range w.roots {
		if r.fd >= 0 {
			unix.Close(r.fd)
		}
	}
}

// give has another worker walk a directory, if one is idle.
func (w *walk) give(d *dir) bool {
	select {
	case other := <-w.idle:
		w.working.Go(func() {
			other.run(d)
			w.idle <- other
		})
		return true
	default:
		return false
	}
}

// listLate lists the directories that hold changes found by other workers than their own.
func (w *walk) listLate() {
	for _, l := range w.late {
		for d, path := l.dir, l.path; d.parent != nil && !d.listed; d = d.parent {
			path = path[:strings.LastIndexByte(path, '/')]
			w.changes = append(w.changes, archive.Change{Path: path, Kind: archive.ChangeModify})
			d.listed = true
		}
	}
}
