// Package enginelimits limits the containers of engines that know a limit and do not pass it on to the snapshotter.
//
// A Source is connected to one engine, and names containers with their sizes to the Limiter. The label
// containerd.io/snapshot/max-size of a snapshot tells whether its limit has been set: by a Source, by a client or by cowshed
// limit. A container that a Source names again keeps that limit. So most Sources name all containers when they connect, and
// thereby those that were made while the daemon was away.
package enginelimits

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/quota"
)

// Snapshotter is the part of snapshotter.Snapshotter that limits need.
type Snapshotter interface {
	Key(ctx context.Context, namespace, own string) (string, error)
	Stat(ctx context.Context, key string) (snapshots.Info, error)
	SetLimit(ctx context.Context, key string, bytes uint64) error
}

// Source is an engine that knows limits.
type Source interface {
	// Engine names the engine in metrics, the log and the Report.
	Engine() string
	// NamesAll reports whether Run names all containers of the engine that have a limit, each time that it connects.
	NamesAll() bool
	// Run connects to the engine, calls connected, and names containers to l until ctx is done or the connection ends.
	Run(ctx context.Context, l *Limiter, connected func()) error
}

// Container is a container whose engine knows a limit for it.
type Container struct {
	Engine    string
	Namespace string // of containerd
	ID        string // and key of its snapshot in that namespace
	Name      string // by which people know it
	Setting   string // that says the size, such as an annotation
	Size      string
	Weaker    string    // size of another setting, which counts as no limit if it has been set; empty: none
	Max       uint64    // the largest size that is allowed; 0: any
	Created   time.Time // zero: not known
	// Unstarted says that the container has never been started. With a size that cannot be read or is not allowed, it is not to be.
	Unstarted bool
}

// Limiter sets limits of containers.
type Limiter struct {
	snapshotter Snapshotter
	metrics     *Metrics
	report      *report
	expected    expected
	log         *slog.Logger

	limiting inuse.Table[struct{}] // keys of snapshots: an event and a list may name a container at the same time
}

// Outcomes of a container that a Source has named, as metrics name them.
const (
	outcomeSet       = "set"       // the limit is in force
	outcomeKept      = "kept"      // a limit had been set before
	outcomeInvalid   = "invalid"   // the size cannot be read, or is above the largest
	outcomeElsewhere = "elsewhere" // the container is on another snapshotter
	outcomeFailed    = "failed"
)

var outcomes = []string{outcomeSet, outcomeKept, outcomeInvalid, outcomeElsewhere, outcomeFailed}

// Limit gives a container its limit, unless it has been given one. It returns nil if the container is not on Cowshed.
// Returns errdefs.ErrInvalidArgument if the size cannot be read or is not allowed. Each error is logged and counted.
func (l *Limiter) Limit(ctx context.Context, c Container) error {
	outcome, err := l.limit(ctx, &c)
	l.note(ctx, c, outcome, err)
	return err
}

// note counts and logs the outcome for a container.
func (l *Limiter) note(ctx context.Context, c Container, outcome string, err error) {
	l.metrics.limits.WithLabelValues(c.Engine, outcome).Inc()
	level := slog.LevelDebug
	if err != nil {
		level = slog.LevelError
	}
	l.log.Log(ctx, level, "limit of a container", "engine", c.Engine, "name", c.Name, "id", c.ID, "setting", c.Setting, "size", c.Size,
		"outcome", outcome, "error", err)
	if outcome == outcomeSet && !c.Created.IsZero() {
		l.metrics.delay.WithLabelValues(c.Engine).Observe(max(0, time.Since(c.Created).Seconds()))
	}
}

// Catch is Limit for a container that exists whatever the result: the Report has its error until Forget, or until Catch succeeds.
// It reports whether CheckStart refuses to start the container from now on. The engine may have begun to start it before that, which
// Started tells.
func (l *Limiter) Catch(ctx context.Context, c Container) (stops bool) {
	return l.Ended(ctx, c, l.Limit(ctx, c))
}

// Started notes that a container has been started, so that it may hold data. CheckStart does not refuse it any more.
func (l *Limiter) Started(namespace, id string) { l.report.started(namespace, id) }

// Late is for a container whose Limit takes longer than its engine waits. The Report has the container until Ended. Returns
// errdefs.ErrInvalidArgument if the size cannot be read or is not allowed: then the container should not be made.
func (l *Limiter) Late(c Container) error {
	if _, err := c.bytes(); err != nil {
		return err
	}
	l.log.Warn("setting the limit of a container takes long, so the container starts without it", "engine", c.Engine, "name", c.Name, "id", c.ID,
		"setting", c.Setting, "size", c.Size)
	l.report.refused(c, errLate)
	return nil
}

// errLate says that the limit of a container is still being set.
var errLate = fault.Said(errdefs.ErrUnavailable, "setting the limit takes long, and continues in the background")

// Ended notes the error of Limit, or nil, for a container that exists whatever the result. It reports the same as Catch.
func (l *Limiter) Ended(ctx context.Context, c Container, err error) (stops bool) {
	switch {
	case err == nil:
		l.Forget(c.Namespace, c.ID)
	case ctx.Err() == nil:
		return l.report.refused(c, err)
	}
	return false
}

// Unknown notes a container whose engine could not say whether it has a limit.
func (l *Limiter) Unknown(ctx context.Context, c Container, err error) {
	if ctx.Err() != nil {
		return
	}
	l.metrics.limits.WithLabelValues(c.Engine, outcomeFailed).Inc()
	l.log.Error("an engine does not describe a container, which may be without its limit", "engine", c.Engine, "id", c.ID, "error", err)
	l.report.refused(c, err)
}

// Forget notes that a container is gone.
func (l *Limiter) Forget(namespace, id string) { l.report.forget(namespace, id) }

// limit is Limit. A container whose engine does not say when it was created was created when its snapshot was.
func (l *Limiter) limit(ctx context.Context, c *Container) (outcome string, err error) {
	key, err := l.snapshotter.Key(ctx, c.Namespace, c.ID)
	if errdefs.IsNotFound(err) {
		return outcomeElsewhere, nil
	}
	if err != nil {
		return outcomeFailed, err
	}
	end, err := l.limiting.Claim(ctx, key)
	if err != nil {
		return outcomeFailed, err
	}
	defer end()
	info, err := l.snapshotter.Stat(ctx, key)
	switch {
	case errdefs.IsNotFound(err):
		return outcomeElsewhere, nil // removed meanwhile
	case err != nil:
		return outcomeFailed, err
	case c.keeps(info.Labels[snapshots.LabelSnapshotMaxSize]):
		return outcomeKept, nil
	}
	if c.Created.IsZero() {
		c.Created = info.Created
	}
	bytes, err := c.bytes()
	if err != nil {
		return outcomeInvalid, err
	}
	err = l.snapshotter.SetLimit(ctx, key, bytes)
	switch {
	case errdefs.IsNotFound(err):
		return outcomeElsewhere, nil // removed meanwhile
	case err != nil:
		return outcomeFailed, fmt.Errorf("%s = %s: %w", c.Setting, c.Size, err)
	}
	return outcomeSet, nil
}

// keeps reports whether a container keeps the limit in the label of its snapshot.
func (c Container) keeps(label string) bool {
	same := func(size string) bool {
		bytes, err := quota.ParseSize(size)
		return err == nil && label == strconv.FormatUint(bytes, 10)
	}
	return label != "" && (!same(c.Weaker) || same(c.Size))
}

func (c Container) bytes() (uint64, error) {
	bytes, err := quota.ParseSize(c.Size)
	if err == nil {
		err = CheckMax(c.Size, bytes, c.Max)
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", c.Setting, err)
	}
	return bytes, nil
}

// CheckMax refuses a size of that many bytes if it is larger than most, which is the largest size that is allowed; 0: any is.
func CheckMax(size string, bytes, most uint64) error {
	if most == 0 || bytes <= most {
		return nil
	}
	return fault.New(errdefs.ErrInvalidArgument, "size %q is more than the %s that the configuration of cowshed serve allows",
		size, quota.FormatSize(most))
}
