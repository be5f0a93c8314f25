package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/changelist"
	"github.com/cowshed/cowshed/internal/treeat"
)

const (
	// maxWriteWorkers is the number of workers beyond which more do not pay.
	maxWriteWorkers = 8
	// spanChanges is how many changes a worker takes at once: neighbours, which share directories.
	spanChanges = 32
	// segmentBytes is how much of the tar is written at once.
	segmentBytes = 512 << 10
	// segmentsAhead is how many segments of a span may wait for the writer. Together with the number of
	// spans it bounds memory.
	segmentsAhead = 2
)

// Write writes the changes to the tree at dir as an uncompressed layer tar, in the form that the package describes.
// The paths of changes are absolute, clean and begin at the root of the tree; the root itself is left out. Changes
// that are not sorted by the bytes of their paths are sorted in a copy.
//
// The tree must not change meanwhile: a file that vanishes, shrinks or changes its type is an error that names it. So
// is a name that no layer can hold ([ErrReservedName]), and an owner that opts.IDMap does not have. Symbolic links
// are never followed. When ctx ends or a Write to w fails, Write returns as soon as a running Write to w does.
// Nothing is left running then, and no descriptor open.
func Write(ctx context.Context, w io.Writer, dir string, changes []archive.Change, opts WriteOptions) error {
	changes, err := changelist.Sorted(changes)
	if err != nil {
		return fmt.Errorf("layertar: write: %w", err)
	}
	root, err := treeat.Open(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("layertar: write: open %s: %w", dir, err)
	}
	defer unix.Close(root)

	ex := &exporter{root: root, changes: changes, opts: opts, lowest: make(map[inode]int)}
	if err := ex.run(ctx, w); err != nil {
		return fmt.Errorf("layertar: write: %w", err)
	}
	return nil
}

// exporter writes one change set. It cuts the changes into spans, which workers turn into pieces of the tar, ready to
// be written. One goroutine writes the pieces in order. It alone can tell whether a name is the first of its inode.
type exporter struct {
	root    int
	changes []archive.Change
	opts    WriteOptions

	segments sync.Pool // *[]byte

	mu     sync.Mutex
	lowest map[inode]int // the first change known to name an inode of several links
}

// inode identifies a file of several links.
type inode struct{ dev, ino uint64 }

// span is some neighbouring changes on their way.
type span struct {
	lo, hi int
	out    chan segment // closed when that is all
}

// segment is a piece of the tar, or the mark of where an entry begins or ends that may be a hard link.
type segment struct {
	bytes *[]byte

	// For a beginning: the entry as a hard link (without the target), which is to be written if the inode
	// has been written before. The segments up to the end are the entry otherwise.
	link *tar.Header
	key  inode
	end  bool

	err error
}

func (ex *exporter) run(ctx context.Context, w io.Writer) error {
	n := ex.opts.Workers
	if n <= 0 {
		n = min(maxWriteWorkers, 2*runtime.GOMAXPROCS(0))
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()

	todo, ordered := make(chan *span), make(chan *span, n)
	running.Go(func() {
		defer close(todo)
		defer close(ordered)
		for lo := 0; lo < len(ex.changes); lo += spanChanges {
			s := &span{lo: lo, hi: min(lo+spanChanges, len(ex.changes)), out: make(chan segment, segmentsAhead)}
			for _, to := range []chan *span{ordered, todo} {
				select {
				case to <- s:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for range n {
		running.Go(func() {
			e := newEncoder(ctx, ex)
			defer e.close()
			for s := range todo {
				e.span(s)
			}
		})
	}
	return ex.write(ctx, w, ordered)
}

// write writes the segments in order.
func (ex *exporter) write(ctx context.Context, w io.Writer, spans <-chan *span) error {
	written := make(map[inode]string)
	skipping := false
	for s := range spans {
		for {
			var seg segment
			var ok bool
			select {
			case seg, ok = <-s.out:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if !ok {
				break
			}
			var err error
			switch {
			case errors.Is(seg.err, errStopped): // as this might have seen first
				err = context.Cause(ctx)
			case seg.err != nil:
				err = seg.err
			case seg.end:
				skipping = false
			case seg.link != nil:
				first, again := written[seg.key]
				if again {
					err = writeLink(w, seg.link, first)
					skipping = true
				} else {
					written[seg.key] = seg.link.Name
				}
			default:
				if !skipping {
					_, err = w.Write(*seg.bytes)
				}
				ex.putSegment(seg.bytes)
			}
			if err != nil {
				return err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	// The end of the archive, as archive/tar writes it.
	_, err := w.Write(make([]byte, 2*blockSize))
	return err
}

// writeLink writes an entry as a hard link.
func writeLink(w io.Writer, hdr *tar.Header, first string) error {
	hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
	var b bytes.Buffer
	if err := writeHeader(&b, hdr); err != nil {
		return fmt.Errorf("%s: %w", treeat.Quote(hdr.Name), err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// isLink says whether a change is certain to be a hard link to an earlier one.
func (ex *exporter) isLink(key inode, index int) bool {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	first, ok := ex.lowest[key]
	if ok && first < index {
		return true
	}
	ex.lowest[key] = index
	return false
}

func (ex *exporter) segment() *[]byte {
	if b, ok := ex.segments.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, segmentBytes)
	return &b
}

func (ex *exporter) putSegment(b *[]byte) {
	*b = (*b)[:0]
	ex.segments.Put(b)
}
