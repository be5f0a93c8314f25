package cowcommon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

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

// Comparison is what Compare found. It keeps the layers' views open until it is closed.
type Comparison struct {
	Changes []archive.Change // sorted by path
	Native  bool             // the filesystem said where to look
	Reason  string           // why not, where Native is false; "whole" where there was no parent

	top, base View
	idMap     user.IdentityMapping
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
	opts := layertar.WriteOptions{IDMap: c.idMap, Epoch: epoch, Live: c.top.Live()}
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

// Compare lists what layer id changed of parent, at one moment; parent "" stands for an empty tree. The
// caller closes the result.
func (d *Driver) Compare(ctx context.Context, id, parent string, way Way) (_ *Comparison, err error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	if parent != "" {
		if err := CheckID(parent); err != nil {
			return nil, fmt.Errorf("parent: %w", err)
		}
	}
	c := &Comparison{idMap: d.opts.IDMap}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.top, err = d.backend.View(ctx, id); err != nil {
		return nil, err
	}
	if parent == "" {
		c.Reason = "whole"
		c.Changes, err = treediff.Compare(ctx, c.top.Dir(), "", nil)
		return c, err
	}

	if c.base, err = d.backend.View(ctx, parent); err != nil {
		return nil, fmt.Errorf("parent: %w", err)
	}
	hints, err := d.hints(ctx, c, way)
	if err != nil {
		return nil, err
	}
	c.Changes, err = treediff.Compare(ctx, c.top.Dir(), c.base.Dir(), hints)
	return c, err
}

// hints asks the backend where to look. It returns nil, and sets c.Reason, where the trees must be walked.
func (d *Driver) hints(ctx context.Context, c *Comparison, way Way) (*treediff.Hints, error) {
	if way == Walk {
		c.Reason = "asked"
		return nil, nil
	}
	hints, err := d.backend.Hints(ctx, c.base, c.top)
	if err == nil {
		c.Native = true
		d.stats.native()
		return hints, nil
	}
	if !errors.Is(err, treediff.ErrNoHints) {
		return nil, err
	}
	why := (*treediff.NoHintsError)(nil)
	if !errors.As(err, &why) {
		why = &treediff.NoHintsError{Reason: "unknown", Err: err}
	}
	c.Reason = why.Reason
	if d.stats.walked(why) == 1 {
		d.log.Warn("native diff is not possible, walking both trees instead", "reason", c.Reason, "error", err)
	}
	return nil, nil
}

// CompareStats counts how layers were compared since the driver was made.
type CompareStats struct {
	Native uint64            // where the filesystem said where to look
	Walked map[string]uint64 // where it could not, by reason
}

// compareStats is what CompareStats says, and why the last comparison was not native.
type compareStats struct {
	mu     sync.Mutex
	counts CompareStats
	last   *treediff.NoHintsError // nil if it was native
}

func (s *compareStats) native() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Native++
	s.last = nil
}

// walked returns how often it was for that reason.
func (s *compareStats) walked(why *treediff.NoHintsError) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts.Walked == nil {
		s.counts.Walked = make(map[string]uint64)
	}
	s.counts.Walked[why.Reason]++
	s.last = why
	return s.counts.Walked[why.Reason]
}

// nativeDiff says whether the filesystem tells where layers differ, by what came of the last time.
func (s *compareStats) nativeDiff() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		return "not used for the last diff: " + s.last.Error()
	}
	return "available"
}

// CompareStats returns the counts so far.
func (d *Driver) CompareStats() CompareStats {
	d.stats.mu.Lock()
	defer d.stats.mu.Unlock()
	return CompareStats{Native: d.stats.counts.Native, Walked: maps.Clone(d.stats.counts.Walked)}
}
