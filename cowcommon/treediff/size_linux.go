package treediff

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"
)

// sizer adds up sizes of files.
type sizer struct {
	total atomic.Int64 // bytes
	mu    sync.Mutex
	seen  map[inode]struct{} // files with several names that were counted
}

func size(ctx context.Context, topPath string, changes []archive.Change) (int64, error) {
	files := &Hints{}
	for _, c := range changes {
		if c.Kind != archive.ChangeDelete {
			files.Add(c.Path, 0)
		}
	}
	w := newWalk(topPath, "", files)
	w.size = &sizer{seen: make(map[inode]struct{})}
	if err := w.run(ctx); err != nil {
		return 0, fmt.Errorf("treediff: size: %w", err)
	}
	return w.size.total.Load(), nil
}

// measure adds the sizes of the files that are hinted in the directory d.
func (w *worker) measure(d *dir) error {
	for name, n := range d.hint.children {
		if w.stopped.Load() {
			return errStopped
		}
		if !validName(name) {
			continue
		}
		var is kind
		if err := w.stat(d, top, name, &is); err != nil {
			return err
		}
		switch {
		case is == dirKind && len(n.children) > 0:
			d.children = append(d.children, child{name: name, base: absent, hint: n})
		case is == unix.DT_REG && n.hinted:
			w.size.add(&w.st[top])
		}
	}
	return nil
}

func (z *sizer) add(st *unix.Statx_t) {
	if st.Nlink > 1 {
		id := inodeOf(st)
		z.mu.Lock()
		_, seen := z.seen[id]
		z.seen[id] = struct{}{}
		z.mu.Unlock()
		if seen {
			return
		}
	}
	z.total.Add(int64(st.Size))
}
