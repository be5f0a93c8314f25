package enginelimits

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Pauses between attempts to connect.
const (
	firstPause   = time.Second
	longestPause = time.Minute
	wakePause    = 50 * time.Millisecond // at least, however often an engine asks for snapshots
)

// Group runs sources, and connects each again when its engine was away.
type Group struct {
	sources []Source
	limiter *Limiter
	wake    []chan struct{} // by source
}

// NewGroup makes a group whose Report is in the directory state.
func NewGroup(sources []Source, s Snapshotter, m *Metrics, state string, log *slog.Logger) *Group {
	r := &report{file: filepath.Join(state, reportName), log: log}
	g := &Group{sources: sources, limiter: &Limiter{snapshotter: s, metrics: m, report: r, log: log}}
	for _, source := range sources {
		m.add(source.Engine())
		g.wake = append(g.wake, make(chan struct{}, 1))
	}
	return g
}

// Run keeps the sources connected until ctx is done. Engines that are away do not make it fail.
func (g *Group) Run(ctx context.Context) {
	var running sync.WaitGroup
	for i := range g.sources {
		running.Go(func() { g.keep(ctx, g.sources[i], g.wake[i]) })
	}
	running.Wait()
}

// Wake makes sources that wait for their engine try to connect soon. It is for the moment when an engine has asked for a
// snapshot, so that nobody has to look often whether it is there.
func (g *Group) Wake() {
	for _, wake := range g.wake {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// Settled notes that a client has limited or removed the snapshot of a key, which the Report may name.
func (g *Group) Settled(key string) { g.limiter.report.settled(key) }

// CheckStart is for the moment when an engine asks for the mounts of a snapshot: to start its container, or to read or change its
// files. Returns errdefs.ErrInvalidArgument if the engine has not started the container before, and the container's size cannot be
// read or is not allowed. Any limit ends that.
func (g *Group) CheckStart(key string) error {
	c, ok := g.limiter.report.stopped(key)
	if !ok {
		return nil
	}
	return fault.New(errdefs.ErrInvalidArgument,
		"cowshed does not let container %s be started or mounted: %s; create it anew, or give it a limit: cowshed limit containerd:%s/%s SIZE", c.Name, c.Error, c.Namespace, c.ID)
}

// keep connects a source again and again. A connection that ends soon is no reason to try more often: an engine, or a proxy before
// it, may end each.
func (g *Group) keep(ctx context.Context, s Source, wake <-chan struct{}) {
	pause := firstPause
	for {
		connected, began := false, time.Now()
		err := s.Run(ctx, g.limiter, func() {
			connected = true
			g.connected(s)
		})
		if ctx.Err() != nil {
			return
		}
		g.disconnected(s, err, connected || pause == firstPause)
		if connected && time.Since(began) >= longestPause {
			pause = firstPause
		}
		if !wait(ctx, pause, wake) {
			return
		}
		pause = min(2*pause, longestPause)
	}
}

func (g *Group) connected(s Source) {
	if s.NamesAll() {
		g.limiter.report.begin(s.Engine())
	}
	g.limiter.metrics.connected.WithLabelValues(s.Engine()).Set(1)
	g.limiter.report.engine(s.Engine(), true, nil)
	g.limiter.log.Info("connected to an engine, for the limits of its containers", "engine", s.Engine())
}

func (g *Group) disconnected(s Source, err error, isNews bool) {
	g.limiter.metrics.connected.WithLabelValues(s.Engine()).Set(0)
	g.limiter.report.engine(s.Engine(), false, err)
	log := g.limiter.log.Debug
	if isNews {
		log = g.limiter.log.Warn
	}
	log("not connected to an engine, so new containers do not get the limits that it knows",
		"engine", s.Engine(), "error", err)
}

// wait waits for a pause to end, or after wakePause for wake. It returns false if ctx is done.
func wait(ctx context.Context, pause time.Duration, wake <-chan struct{}) bool {
	for _, step := range []struct {
		pause time.Duration
		wake  <-chan struct{}
	}{{wakePause, nil}, {pause - wakePause, wake}} {
		timer := time.NewTimer(step.pause)
		select {
		case <-timer.C:
		case <-step.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
	return true
}
