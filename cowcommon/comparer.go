package cowcommon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// Way says how two layers are to be compared.
type Way int

const (
	// Auto asks the filesystem where the layers differ, and walks both where it cannot say.
	Auto Way = iota
	// Walk looks at every file of both.
	Walk
)

// Comparison is the result of Compare. It keeps the layers' views open until it is closed.
type Comparison struct {
	Changes []archive.Change // sorted by path
	Native  bool             // the filesystem said where to look
	Reason  string           // why not, where Native is false; "whole" where there was no parent

	top, base View
	idMap     user.IdentityMapping
	log       *slog.Logger
}

// Dir is the root of the layer's frozen tree.
func (c *Comparison) Dir() string { return c.top.Dir() }

// BaseDir is the root of the parent's frozen tree, "" where there is no parent.
func (c *Comparison) BaseDir() string {
	if c.base == nil {
		return ""
	}
	return c.base.Dir()
}

// WriteTar writes the changes as an uncompressed layer tar. epoch is SOURCE_DATE_EPOCH or nil.
func (c *Comparison) WriteTar(ctx context.Context, w io.Writer, epoch *time.Time) error {
	opts := layertar.WriteOptions{IDMap: c.idMap, Epoch: epoch, Live: liveOf(c.top), Logger: c.log}
	return layertar.Write(ctx, w, c.top.Dir(), c.Changes, opts)
}

// Close releases the views.
func (c *Comparison) Close() error {
	var errs []error
	for _, view := range []View{c.top, c.base} {
		if view != nil {
			errs = append(errs, view.Close())
		}
	}
	return errors.Join(errs...)
}

// Comparer compares volumes of a Backend, and counts how. It is safe for concurrent use.
type Comparer struct {
	backend Backend
	idMap   user.IdentityMapping
	log     *slog.Logger

	mu     sync.Mutex
	counts CompareStats
	last   *treediff.NoHintsError // why the last comparison was not native; nil if it was

	unusedFailed sync.Once // the reason is logged
}

// NewComparer makes a Comparer over a Backend. WriteTar maps ids by idMap. The logger gets each reason for which trees
// are walked once, and which attributes WriteTar could not write. It also gets the first unexpected error of CompareUnused.
func NewComparer(backend Backend, idMap user.IdentityMapping, log *slog.Logger) *Comparer {
	return &Comparer{backend: backend, idMap: idMap, log: log}
}

// Compare lists the changes of the volume name since parent, at one moment; parent "" stands for an empty tree. The
// caller closes the result.
func (cr *Comparer) Compare(ctx context.Context, name, parent string, way Way) (_ *Comparison, err error) {
	return cr.CompareMore(ctx, name, parent, way, 0)
}

// CompareMore is Compare in which more differences count than in a layer's change list.
func (cr *Comparer) CompareMore(ctx context.Context, name, parent string, way Way, extra treediff.Extra) (_ *Comparison, err error) {
	if err := CheckID(name); err != nil {
		return nil, err
	}
	if parent != "" {
		if err := CheckID(parent); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
	}
	c := &Comparison{idMap: cr.idMap, log: cr.log}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.top, err = cr.backend.View(ctx, name); err != nil {
		return nil, err
	}
	if parent == "" {
		c.Reason = "whole"
		c.Changes, err = treediff.Compare(ctx, c.top.Dir(), "", nil)
		return c, err
	}

	if c.base, err = cr.backend.View(ctx, parent); err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	hints, err := cr.hints(ctx, c, way)
	if err != nil {
		return nil, err
	}
	c.Changes, err = treediff.CompareMore(ctx, c.top.Dir(), c.base.Dir(), hints, extra)
	return c, err
}

// CompareUnused calls do with the changes of the volume name since parent, as Compare lists them, where no snapshot is needed for
// that. The comparison and the context of do end with do. Returns the errors of ReadUnused. After
// an error, the work of do counts for nothing.
func (cr *Comparer) CompareUnused(ctx context.Context, name, parent string, do func(ctx context.Context, c *Comparison) error) error {
	if err := errors.Join(CheckID(name), CheckID(parent)); err != nil {
		return err
	}
	done := false
	err := ReadUnused(ctx, cr.backend, name, parent, func(ctx context.Context, top, base View) error {
		hints, err := Hints(ctx, cr.backend, base, top)
		if err != nil {
			return err
		}
		c := &Comparison{Native: true, top: top, base: base, idMap: cr.idMap, log: cr.log}
		if c.Changes, err = treediff.Compare(ctx, c.Dir(), c.BaseDir(), hints); err != nil {
			return err
		}
		done = true
		return do(ctx, c)
	})
	switch {
	case err == nil:
		cr.native()
	case !done && !mayNotReadUnused(err):
		cr.unusedFailed.Do(func() {
			cr.log.Warn("a volume that nobody uses cannot be compared without a snapshot, taking one instead", "volume", name, "error", err)
		})
	}
	return err
}

// mayNotReadUnused reports whether an error of ReadUnused is expected at times: the volume is used, is gone, does not have its
// changes apart, or has many.
func mayNotReadUnused(err error) bool {
	return errdefs.IsNotImplemented(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// hints asks the backend where to look. It returns nil, and sets c.Reason, where the trees must be walked.
func (cr *Comparer) hints(ctx context.Context, c *Comparison, way Way) (*treediff.Hints, error) {
	if way == Walk {
		c.Reason = "asked"
		return nil, nil
	}
	hints, err := Hints(ctx, cr.backend, c.base, c.top)
	if err == nil {
		c.Native = true
		cr.native()
		return hints, nil
	}
	if err = treediff.WithoutHints(ctx, "unknown", err); !errors.Is(err, treediff.ErrNoHints) {
		return nil, err
	}
	why := (*treediff.NoHintsError)(nil)
	if !errors.As(err, &why) {
		why = &treediff.NoHintsError{Reason: "unknown", Err: err}
	}
	c.Reason = why.Reason
	if cr.walked(why) == 1 {
		cr.log.Warn("native diff is not possible, walking both trees instead", "reason", c.Reason, "error", err)
	}
	return nil, nil
}

// CompareStats counts how volumes were compared since the Comparer was made.
type CompareStats struct {
	Native uint64            // where the filesystem said where to look
	Walked map[string]uint64 // where it could not, by reason
}

// Stats returns the counts so far.
func (cr *Comparer) Stats() CompareStats {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	return CompareStats{Native: cr.counts.Native, Walked: maps.Clone(cr.counts.Walked)}
}

// NotNative says why the last comparison was not native. nil: it was, or there was none.
func (cr *Comparer) NotNative() error {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	if cr.last == nil {
		return nil
	}
	return cr.last
}

func (cr *Comparer) native() {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	cr.counts.Native++
	cr.last = nil
}

// walked returns how often it was for that reason.
func (cr *Comparer) walked(why *treediff.NoHintsError) uint64 {
	cr.mu.Lock()
	defer cr.mu.Unlock()
	if cr.counts.Walked == nil {
		cr.counts.Walked = make(map[string]uint64)
	}
	cr.counts.Walked[why.Reason]++
	cr.last = why
	return cr.counts.Walked[why.Reason]
}
