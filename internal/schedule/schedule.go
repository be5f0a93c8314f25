// Package schedule takes snapshots of layers when their schedules say so, and removes forks that have expired.
package schedule

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/live"
)

// lookPause is the longest pause between two looks at the schedules, which a command may have changed.
const lookPause = time.Minute

// Home is a home with layers.
type Home struct {
	Place string // the kind of home, for the log and the metrics
	Dir   string // of the records
	// Process finds the process of a container, as live.Layers.WithProcesses says; nil if there are none.
	Process    func(ctx context.Context, volume string) (pid uint32, err error)
	Containers live.Containers // runs hooks in containers; the zero value if there are none
	// Use calls do with the Backend of the home open, and with Process in its Layers. ctx of do is done when the Backend is to be closed.
	Use func(ctx context.Context, do func(ctx context.Context, layers *live.Layers) error) error
}

// records are the layers of a home without a Backend.
func (h Home) records(log *slog.Logger) *live.Layers {
	return live.New(nil, h.Dir, log).WithProcesses(h.Process).WithContainers(h.Containers)
}

// Outcomes of scheduled snapshots.
const (
	taken      = "ok"
	incomplete = "incomplete" // there is a snapshot, and a step after it has failed
	failed     = "failed"
)

// recorded is the outcome that the record of a schedule tells.
func recorded(f *live.Failure) string {
	switch {
	case f == nil:
		return taken
	case f.Snapshot != "":
		return incomplete
	}
	return failed
}

// Runner takes snapshots, and removes expired forks. It is a prometheus.Collector.
type Runner struct {
	homes func() ([]Home, error)
	log   *slog.Logger
	known map[id]next       // of Run alone, as is told
	told  map[string]string // errors by message and directory
	hooks map[string]retry  // of hooks that have failed, by directory
	swept map[string]retry  // of homes with expired forks, by directory

	taken *prometheus.CounterVec

	mu     sync.Mutex
	states map[state]int
	left   map[string]int // post commands by place
}

// id identifies a schedule. A schedule that is set anew has another.
type id struct {
	dir, layer, name string
	since            time.Time
}

// next is when the next snapshot of a schedule is due, and the outcome of the last.
type next struct {
	due     time.Time
	outcome string
}

// retry is when hooks that have failed are run again, or a home with expired forks is swept again.
type retry struct {
	at    time.Time
	pause time.Duration
}

// maxHookPause is the longest pause between two attempts to run the hooks that processes have left.
const maxHookPause = time.Hour

// maxSweepPause is the longest pause between two attempts to remove expired forks, which may be in use.
const maxSweepPause = 8 * time.Minute

type state struct{ place, outcome string }

// New makes a Runner for the homes that a function lists. It is called again for each look at the schedules.
func New(homes func() ([]Home, error), log *slog.Logger) *Runner {
	return &Runner{
		homes: homes, log: log, known: make(map[id]next), told: make(map[string]string), hooks: make(map[string]retry), swept: make(map[string]retry),
		taken: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cowshed_scheduled_snapshots_total",
			Help: "Snapshots by schedule, by place (containers or store) and outcome: ok, incomplete (taken, but the post command or a removal failed), or failed (none taken). The log has the reason.",
		}, []string{"place", "outcome"}),
	}
}

// Run takes snapshots until ctx is done, one after the other. At each look it first runs the hooks that other processes have left, and
// removes forks that have expired.
func (r *Runner) Run(ctx context.Context) {
	for ctx.Err() == nil {
		pause := lookPause
		if due := r.look(ctx); !due.IsZero() {
			pause = min(pause, max(0, time.Until(due)))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// look takes the snapshots that are due, and returns when the next is.
func (r *Runner) look(ctx context.Context) (due time.Time) {
	homes, err := r.homes()
	r.tell("homes of layers cannot be listed", "", err)
	states, known, left := make(map[state]int), make(map[id]next), make(map[string]int)
	for _, home := range homes {
		for _, outcome := range []string{taken, incomplete, failed} {
			r.taken.WithLabelValues(home.Place, outcome)
		}
		r.endHooks(ctx, home)
		r.sweep(ctx, home)
		left[home.Place] += r.leftHooks(home)
		schedules, err := home.records(r.log).Schedules()
		r.tell("schedules of snapshots cannot be read", home.Dir, err)
		if err != nil {
			states[state{home.Place, failed}]++
		}
		for _, s := range schedules {
			if ctx.Err() != nil {
				return due
			}
			key := id{home.Dir, s.Layer, s.Name(), s.Since}
			n := r.keep(ctx, home, s, r.known[key])
			known[key] = n
			if due.IsZero() || n.due.Before(due) {
				due = n.due
			}
			states[state{home.Place, n.outcome}]++
		}
	}
	r.known = known
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states, r.left = states, left
	return due
}

// endHooks runs the hooks that other processes have left, and those that have failed less and less often.
func (r *Runner) endHooks(ctx context.Context, home Home) {
	last := r.hooks[home.Dir]
	if time.Now().Before(last.at) {
		return
	}
	err := home.records(r.log).EndHooks(ctx)
	r.tell("a hook that a process has left", home.Dir, err)
	delete(r.hooks, home.Dir)
	if err != nil {
		pause := min(max(lookPause, 2*last.pause), maxHookPause)
		r.hooks[home.Dir] = retry{time.Now().Add(pause), pause}
	}
}

// sweep removes the forks of a home that have expired. It opens a home with such forks alone.
func (r *Runner) sweep(ctx context.Context, home Home) {
	last := r.swept[home.Dir]
	if time.Now().Before(last.at) {
		return
	}
	expired, err := home.records(r.log).HasExpired(time.Now())
	if expired {
		err = home.Use(ctx, func(ctx context.Context, layers *live.Layers) error { return layers.Sweep(ctx) })
	}
	r.tell("expired forks stay", home.Dir, err)
	delete(r.swept, home.Dir)
	if expired {
		pause := min(max(lookPause, 2*last.pause), maxSweepPause)
		r.swept[home.Dir] = retry{time.Now().Add(pause), pause}
	}
}

// leftHooks counts the post commands of a home that are still to be run. Records that cannot be read count as one.
func (r *Runner) leftHooks(home Home) int {
	left, err := home.records(r.log).LeftHooks()
	if err != nil {
		return len(left) + 1
	}
	return len(left)
}

// tell logs an error of a home, once as long as it is the same.
func (r *Runner) tell(message, dir string, err error) {
	of, text := message+dir, ""
	if err != nil {
		text = err.Error()
	}
	if text != r.told[of] && err != nil {
		r.log.Error(message, "dir", dir, "error", err)
	}
	r.told[of] = text
}

// keep takes the snapshot of a schedule if that is due. n is its result of before.
func (r *Runner) keep(ctx context.Context, home Home, s live.Schedule, n next) next {
	now := time.Now()
	if n.due.IsZero() || n.due.Sub(now) > s.Every { // the clock was put back
		var err error
		n.outcome = recorded(s.Failed)
		if n.due, err = home.records(r.log).FirstDue(s, now); err != nil {
			r.log.Warn("the time of the last snapshot is not known", "layer", s.Layer, "error", err)
		}
	}
	if now.Before(n.due) {
		return n
	}
	if is, err := home.records(r.log).IsScheduled(s); err == nil && !is { // it has ended since, or was set anew
		return n
	}
	outcome := r.take(ctx, home, s)
	return next{s.Next(time.Now()), outcome}
}

// take takes one snapshot. If the layer is gone, its schedule goes too.
func (r *Runner) take(ctx context.Context, home Home, s live.Schedule) (outcome string) {
	var m live.Moment
	used := false
	err := home.Use(ctx, func(ctx context.Context, layers *live.Layers) error {
		used = true
		var err error
		m, err = layers.TakeScheduled(ctx, s)
		if err == nil {
			r.log.Info("took a snapshot by schedule", "layer", s.Layer, "every", s.Name(), "snapshot", m.Name)
		}
		if errdefs.IsNotFound(err) {
			err = errors.Join(err, layers.Sweep(ctx))
		}
		return err
	})
	switch {
	case err == nil:
		outcome = taken
	case m.Name != "":
		outcome = incomplete
	default:
		outcome = failed
	}
	if ctx.Err() != nil {
		return outcome
	}
	if !used && err != nil { // the home cannot be opened
		if noteErr := home.records(r.log).NoteScheduled(ctx, s, m, err); noteErr != nil {
			r.log.Warn("the failure of a scheduled snapshot cannot be recorded", "layer", s.Layer, "error", noteErr)
		}
	}
	log := r.log.With("layer", s.Layer, "every", s.Name(), "reference", s.Hooks.Reference, "error", err)
	switch outcome {
	case incomplete:
		log.Error("took a snapshot by schedule, and a step after it has failed", "snapshot", m.Name)
	case failed:
		log.Error("a snapshot by schedule has failed, and is tried again at the next time")
	}
	r.taken.WithLabelValues(home.Place, outcome).Inc()
	return outcome
}

var schedulesDesc = prometheus.NewDesc("cowshed_snapshot_schedules",
	"Schedules of snapshots, by place (containers or store) and the outcome of the last snapshot: ok, incomplete or failed. Schedules that cannot be read count as failed, once for each home.",
	[]string{"place", "outcome"}, nil)

var leftHooksDesc = prometheus.NewDesc("cowshed_snapshot_hooks_left",
	"Post commands of snapshots whose process is gone and that have not succeeded yet, by place (containers or store). Records that cannot be read count as one for each home.",
	[]string{"place"}, nil)

// Describe implements prometheus.Collector.
func (r *Runner) Describe(descs chan<- *prometheus.Desc) {
	r.taken.Describe(descs)
	descs <- schedulesDesc
	descs <- leftHooksDesc
}

// Collect implements prometheus.Collector.
func (r *Runner) Collect(found chan<- prometheus.Metric) {
	r.taken.Collect(found)
	r.mu.Lock()
	defer r.mu.Unlock()
	for s, n := range r.states {
		found <- prometheus.MustNewConstMetric(schedulesDesc, prometheus.GaugeValue, float64(n), s.place, s.outcome)
	}
	for place, n := range r.left {
		found <- prometheus.MustNewConstMetric(leftHooksDesc, prometheus.GaugeValue, float64(n), place)
	}
}
