package live

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/dirlist"
)

// Schedule says when snapshots of a layer are taken, and how many of them stay. A layer may have several, each with a period of its
// own. A schedule goes with its layer.
type Schedule struct {
	Layer   string        `json:"layer"`
	Every   time.Duration `json:"every"` // whole minutes
	Keep    int           `json:"keep"`
	Message string        `json:"message,omitempty"` // of the snapshots
	Hooks   Hooks         `json:"hooks,omitzero"`
	Since   time.Time     `json:"since"`            // when it was set
	Failed  *Failure      `json:"failed,omitempty"` // the last attempt, unless it succeeded
}

// Failure is an attempt to take a snapshot, or to run a post command, that has failed.
type Failure struct {
	Time  time.Time `json:"time"`
	Error string    `json:"error"`
	// Snapshot is the name of the snapshot if there is one, and a step after it has failed: the post command or a removal.
	Snapshot string `json:"snapshot,omitempty"`
}

// newFailure is an error of now.
func newFailure(err error) *Failure {
	text := err.Error()
	text = strings.ToValidUTF8(text[:min(len(text), maxFailure)], "?")
	return &Failure{Time: time.Now().UTC().Truncate(time.Millisecond), Error: text}
}

// scheduleRecord is a Schedule as it is kept in a file.
type scheduleRecord struct {
	Version int `json:"version"`
	Schedule
}

const (
	minEvery    = time.Minute
	maxEvery    = 366 * 24 * time.Hour
	maxKeep     = 10_000
	maxFailure  = 4 << 10 // bytes of an error that are recorded
	stampLayout = "20060102T150405Z"
)

// Name is the period in hours and minutes, such as 1h or 1h30m. The schedules of a layer have different names.
func (s Schedule) Name() string {
	hours, minutes := int(s.Every/time.Hour), int(s.Every%time.Hour/time.Minute)
	switch {
	case minutes == 0:
		return strconv.Itoa(hours) + "h"
	case hours == 0:
		return strconv.Itoa(minutes) + "m"
	}
	return fmt.Sprintf("%dh%dm", hours, minutes)
}

// Next returns when the first snapshot after a time is due: when a whole number of periods has passed since the year 1 in UTC. So
// hourly snapshots are due at each full hour, and weekly ones on Mondays.
func (s Schedule) Next(after time.Time) time.Time { return after.UTC().Truncate(s.Every).Add(s.Every) }

// Check returns ErrInvalidArgument if the schedule is invalid.
func (s Schedule) Check() error {
	switch {
	case s.Every < minEvery || s.Every > maxEvery || s.Every%time.Minute != 0:
		return fault.New(errdefs.ErrInvalidArgument, "period %s: say whole minutes, at least %s and at most %s", s.Every, minEvery, maxEvery)
	case s.Keep < 1 || s.Keep > maxKeep:
		return fault.New(errdefs.ErrInvalidArgument, "%d snapshots to keep: say 1 to %d", s.Keep, maxKeep)
	}
	return s.Hooks.Check()
}

// schedulePath is the file of a schedule. All of a layer begin alike.
func (l *Layers) schedulePath(layer, name string) string {
	return l.path(schedulesDir, schedulePrefix(layer)+name+recordSuffix)
}

func schedulePrefix(layer string) string {
	sum := sha256.Sum256([]byte(layer))
	return hex.EncodeToString(sum[:]) + "-"
}

// SetSchedule sets a schedule of a layer, and replaces the layer's schedule with the same period. Since is the present
// time, and Failed is ignored. Returns ErrPermissionDenied if there are hooks, and others could write the record.
func (l *Layers) SetSchedule(ctx context.Context, s Schedule) (err error) {
	err = s.Check()
	if err == nil {
		err = l.checkRunnable(s.Layer, s.Hooks)
	}
	if err != nil {
		return err
	}
	if IsMoment(s.Layer) {
		return fault.New(errdefs.ErrInvalidArgument, "%s is a snapshot itself", s.Layer)
	}
	unlock, err := l.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if _, err := l.backend.Stat(ctx, s.Layer); err != nil {
		return err
	}
	if err := os.MkdirAll(l.path(schedulesDir), 0o700); err != nil {
		return err
	}
	if !s.Hooks.none() {
		if err := checkTrusted(l.path(schedulesDir), nil); err != nil {
			return err
		}
	}
	s.Since, s.Failed = time.Now().UTC().Truncate(time.Millisecond), nil
	return l.changeSchedules(ctx, func() error { return l.saveSchedule(s) })
}

// changeSchedules calls do while no other process changes schedules.
func (l *Layers) changeSchedules(ctx context.Context, do func() error) (err error) {
	lock, err := l.lockAlone(ctx, namesFile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return do()
}

func (l *Layers) saveSchedule(s Schedule) error {
	data, err := json.MarshalIndent(scheduleRecord{recordVersion, s}, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxRecordSize {
		return fault.New(errdefs.ErrInvalidArgument, "schedule of layer %s: its message is too long", s.Layer)
	}
	return atomicfile.WriteAs(l.schedulePath(s.Layer, s.Name()), temporaryPrefix, append(data, '\n'), 0o600)
}

// EndSchedules ends the schedule of a layer with that period, or all schedules of the layer if every is 0. The
// snapshots stay. Returns ErrNotFound if there is none.
func (l *Layers) EndSchedules(ctx context.Context, layer string, every time.Duration) error {
	return l.changeSchedules(ctx, func() error {
		var files []string
		for _, file := range l.scheduleFiles(&layer) {
			if every == 0 || l.path(schedulesDir, file) == l.schedulePath(layer, Schedule{Every: every}.Name()) {
				files = append(files, file)
			}
		}
		if len(files) == 0 {
			return fault.New(errdefs.ErrNotFound, "layer %s has no such schedule", layer)
		}
		return l.removeSchedules(files)
	})
}

func (l *Layers) removeSchedules(files []string) (err error) {
	for _, file := range files {
		err = errors.Join(err, removeIfThere(l.path(schedulesDir, file)))
	}
	return err
}

// endSchedulesOf ends the schedules of former layers.
func (l *Layers) endSchedulesOf(ctx context.Context, layers []string) error {
	files := l.scheduleFiles(nil)
	if len(files) == 0 {
		return nil
	}
	former := make(map[string]bool, len(layers))
	for _, layer := range layers {
		former[schedulePrefix(layer)] = true
	}
	files = slices.DeleteFunc(files, func(file string) bool { return !former[file[:strings.IndexByte(file, '-')+1]] })
	return l.changeSchedules(ctx, func() error { return l.removeSchedules(files) })
}

// scheduleFiles lists the files of schedules, or those of a layer.
func (l *Layers) scheduleFiles(layer *string) (files []string) {
	entries, err := dirlist.Read(l.path(schedulesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Warn("schedules of snapshots cannot be listed", "error", err)
	}
	for _, entry := range entries {
		of := layer == nil || strings.HasPrefix(entry.Name(), schedulePrefix(*layer))
		if of && strings.HasSuffix(entry.Name(), recordSuffix) && !strings.HasPrefix(entry.Name(), temporaryPrefix) {
			files = append(files, entry.Name())
		}
	}
	return files
}

// Schedules lists the schedules of all layers, by layer and period. It needs no Backend. The error is about those that cannot be
// read or trusted, which are left out.
func (l *Layers) Schedules() (schedules []Schedule, err error) {
	for _, file := range l.scheduleFiles(nil) {
		s, loadErr := l.loadSchedule(file)
		switch {
		case errdefs.IsNotFound(loadErr): // it has just ended
		case loadErr != nil:
			err = errors.Join(err, loadErr)
		default:
			schedules = append(schedules, s)
		}
	}
	slices.SortFunc(schedules, func(a, b Schedule) int {
		if byLayer := strings.Compare(a.Layer, b.Layer); byLayer != 0 {
			return byLayer
		}
		return int((a.Every - b.Every) / time.Minute)
	})
	return schedules, err
}

// loadSchedule reads a schedule. Returns ErrNotFound if there is no such file, and ErrPermissionDenied if it has hooks that others
// may have written.
func (l *Layers) loadSchedule(file string) (_ Schedule, err error) {
	path := l.path(schedulesDir, file)
	defer func() {
		if err != nil {
			err = fmt.Errorf("schedule %s: %w", path, err)
		}
	}()
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow|nonBlock, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Schedule{}, fault.As(errdefs.ErrNotFound, err)
	}
	if err != nil {
		return Schedule{}, err
	}
	defer f.Close()
	var r scheduleRecord
	if err := decodeRecord(f, &r); err != nil {
		return r.Schedule, err
	}
	switch err := r.Check(); {
	case r.Version != recordVersion:
		return r.Schedule, fault.New(errdefs.ErrNotImplemented, "version %d, where %d is known", r.Version, recordVersion)
	case cowcommon.CheckID(r.Layer) != nil || path != l.schedulePath(r.Layer, r.Name()):
		return r.Schedule, fault.New(errdefs.ErrDataLoss, "it is of layer %q", r.Layer)
	case err != nil:
		return r.Schedule, err
	case !r.Hooks.none():
		return r.Schedule, checkTrusted(path, f)
	}
	return r.Schedule, nil
}

// Scheduled lists the snapshots that a schedule has taken, oldest first.
func (l *Layers) Scheduled(s Schedule) ([]Moment, error) {
	moments, err := l.list(s.Layer, dirlist.Read)
	return slices.DeleteFunc(moments, func(m Moment) bool { return m.Name == "" || m.Schedule != s.Name() }), err
}

// TakeScheduled takes a snapshot as a schedule says, and removes the oldest that the schedule has taken, down to Keep.
// Snapshots from which a layer was made, that are in use, or that were taken by hand stay. If others are at work, all
// snapshots stay until the next time. Returns ErrUnavailable too, if others are at work time after time. A failure is
// recorded with the schedule.
func (l *Layers) TakeScheduled(ctx context.Context, s Schedule) (m Moment, err error) {
	now := time.Now().UTC()
	name := fmt.Sprintf("every-%s-%s", s.Name(), now.Format(stampLayout))
	m, err = l.Snapshot(ctx, s.Layer, name, SnapshotOptions{Message: s.Message, Hooks: s.Hooks, schedule: s.Name()})
	if m.Name != "" {
		err = errors.Join(err, l.prune(ctx, s))
	}
	if ctx.Err() != nil {
		return m, err
	}
	if noteErr := l.NoteScheduled(ctx, s, m, err); noteErr != nil {
		l.log.Warn("the outcome of a scheduled snapshot cannot be recorded", "layer", s.Layer, "error", noteErr)
	}
	return m, err
}

// NoteScheduled records how the last attempt of a schedule has ended, with the zero Moment if there is no snapshot. It does nothing
// if the schedule has been ended or set anew since. It needs no Backend.
func (l *Layers) NoteScheduled(ctx context.Context, s Schedule, m Moment, outcome error) error {
	var failed *Failure
	if outcome != nil {
		failed = newFailure(outcome)
		failed.Snapshot = m.Name
	}
	return l.changeSchedules(ctx, func() error {
		present, err := l.loadSchedule(schedulePrefix(s.Layer) + s.Name() + recordSuffix)
		switch {
		case errdefs.IsNotFound(err):
			return nil
		case err != nil:
			return err
		case !present.Since.Equal(s.Since), present.Failed == nil && failed == nil:
			return nil
		}
		present.Failed = failed
		return l.saveSchedule(present)
	})
}

// IsScheduled reports whether a schedule has neither ended nor been set anew. It needs no Backend.
func (l *Layers) IsScheduled(s Schedule) (bool, error) {
	present, err := l.loadSchedule(schedulePrefix(s.Layer) + s.Name() + recordSuffix)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return present.Since.Equal(s.Since), err
}

// maxLate is how many snapshots may be too many without an error, because others were at work each time. There is none before
// patience has passed either.
const maxLate = 2

// prune removes the oldest snapshots of a schedule. Returns ErrUnavailable if others have kept it from that for long.
func (l *Layers) prune(ctx context.Context, s Schedule) error {
	taken, err := l.Scheduled(s)
	if err != nil || len(taken) <= s.Keep {
		return err
	}
	alone := false
	err = l.ifAlone(ctx, func(ctx context.Context) error {
		alone = true
		superfluous, err := l.superfluous(ctx, s)
		for _, m := range superfluous {
			_, removeErr := l.removeMoment(ctx, m.Volume)
			err = errors.Join(err, removeErr)
		}
		return err
	})
	if err != nil || alone {
		return err
	}
	late, err := l.superfluous(ctx, s)
	if n := len(late); n > maxLate && time.Duration(n) >= patience/s.Every {
		err = errors.Join(err, fault.New(errdefs.ErrUnavailable, "%d snapshots too many stay, since others are at work each time; lock %s", n, l.path(lockFile)))
	}
	return err
}

// superfluous lists the snapshots of a schedule beyond those to keep, without those from which volumes were made: also the moments of
// forks, since people expect to find a snapshot that they have forked.
func (l *Layers) superfluous(ctx context.Context, s Schedule) ([]Moment, error) {
	taken, err := l.Scheduled(s)
	if err != nil {
		return nil, err
	}
	volumes, _, err := l.volumes(ctx)
	if err != nil {
		return nil, err
	}
	parents := make(map[string]bool)
	for _, v := range volumes {
		parents[v.Parent] = true
	}
	return slices.DeleteFunc(excess(taken, s.Keep, time.Now()), func(m Moment) bool { return parents[m.Volume] }), nil
}

// excess returns those of a schedule's snapshots that are older than the newest keep. Snapshots with a time to come, which a wrong
// clock has made, count as the oldest.
func excess(moments []Moment, keep int, now time.Time) []Moment {
	moments = slices.Clone(moments)
	slices.SortStableFunc(moments, func(a, b Moment) int {
		if aLater, bLater := a.Time.After(now), b.Time.After(now); aLater != bLater {
			if aLater {
				return -1
			}
			return 1
		}
		return a.Time.Compare(b.Time)
	})
	return moments[:max(0, len(moments)-keep)]
}

// sweepSchedules removes the schedules of layers that are gone. The caller is alone.
func (l *Layers) sweepSchedules(ctx context.Context) error {
	err := l.removeTemporary(schedulesDir)
	schedules, _ := l.Schedules() // others stay, and are for Check
	if len(schedules) == 0 {
		return err
	}
	gone, goneErr := l.withoutLayer(ctx, schedules)
	layers := make([]string, 0, len(gone))
	for _, s := range gone {
		layers = append(layers, s.Layer)
	}
	if len(layers) > 0 {
		err = errors.Join(err, l.endSchedulesOf(ctx, layers))
	}
	return errors.Join(err, goneErr)
}

// withoutLayer returns the schedules whose layer is gone. A layer with a step that has not ended may have no name at the moment.
func (l *Layers) withoutLayer(ctx context.Context, schedules []Schedule) (gone []Schedule, err error) {
	volumes, _, err := l.volumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range schedules {
		if _, ok := volumes[s.Layer]; ok {
			continue
		}
		unfinished, err := l.Unfinished(s.Layer)
		if err != nil {
			return gone, err
		}
		if !unfinished {
			gone = append(gone, s)
		}
	}
	return gone, nil
}

// CheckSchedules finds schedules that cannot be read or trusted, and those whose snapshots fail or are overdue. It finds hooks
// that nobody has run. It needs no Backend.
func (l *Layers) CheckSchedules(now time.Time) (problems []Problem) {
	problems = l.checkHooks()
	schedules, err := l.Schedules()
	if err != nil {
		problems = append(problems, Problem{
			What: err.Error(), Severe: true,
			Advice: "no such snapshots are taken; delete the file, or put its owner and mode right, and set the schedule anew with: cowshed snapshot LAYER --every",
		})
	}
	for _, s := range schedules {
		of := fmt.Sprintf("the schedule of layer %s, every %s,", s.Layer, s.Name())
		if s.Failed != nil {
			what := "has failed"
			if s.Failed.Snapshot != "" {
				what = "has taken the snapshot " + s.Failed.Snapshot + ", and then failed"
			}
			problems = append(problems, Problem{
				What:   fmt.Sprintf("%s %s, on %s: %s", of, what, s.Failed.Time.Local().Format(time.DateTime), s.Failed.Error),
				Advice: "it is tried again at the next time; the log of cowshed serve has more",
			})
		}
		last, err := l.lastTried(s, now)
		switch {
		case err != nil: // the check of the records tells it
		case last.IsZero():
			problems = append(problems, Problem{
				What:   fmt.Sprintf("%s was set on %s, a time to come: a clock was wrong", of, s.Since.Local().Format(time.DateTime)),
				Advice: "set it anew when the clock is right: until then nobody sees whether its snapshots are missing",
			})
		case s.overdue(last, now):
			problems = append(problems, Problem{
				What:   fmt.Sprintf("%s has taken no snapshot since %s", of, last.Local().Format(time.DateTime)),
				Advice: "start cowshed serve with the same root, and look at its log",
			})
		}
	}
	return problems
}

// lastTried is when a schedule has taken its last snapshot or has failed to, or else when it was set. Times to come, which a wrong
// clock has made, do not count. The zero time says that there is no other.
func (l *Layers) lastTried(s Schedule, now time.Time) (last time.Time, err error) {
	taken, err := l.Scheduled(s)
	times := []time.Time{s.Since}
	if s.Failed != nil {
		times = append(times, s.Failed.Time)
	}
	for _, m := range taken {
		times = append(times, m.Time)
	}
	for _, t := range times {
		if t.After(last) && !t.After(now) {
			last = t
		}
	}
	return last, err
}

// overdue reports whether a schedule has missed a time, and a whole period more.
func (s Schedule) overdue(last, now time.Time) bool {
	return !last.IsZero() && now.After(s.Next(s.Next(last)).Add(time.Minute))
}

// Overdue reports whether the last attempt of a schedule is so long ago that no process seems to take its snapshots. It
// needs no Backend.
func (l *Layers) Overdue(s Schedule, now time.Time) (bool, error) {
	last, err := l.lastTried(s, now)
	return s.overdue(last, now), err
}

// FirstDue returns when the next snapshot of a schedule is due, for a process that has taken none yet. If several
// snapshots have been missed, one is due now.
func (l *Layers) FirstDue(s Schedule, now time.Time) (time.Time, error) {
	last, err := l.lastTried(s, now)
	if last.IsZero() {
		last = now
	}
	return s.Next(last), err
}

// checkLayers finds schedules whose layer is gone. The caller has the lock.
func (l *Layers) checkLayers(ctx context.Context) (problems []Problem, err error) {
	schedules, _ := l.Schedules()
	if len(schedules) == 0 {
		return nil, nil
	}
	gone, err := l.withoutLayer(ctx, schedules)
	for _, s := range gone {
		problems = append(problems, Problem{
			What: fmt.Sprintf("a schedule, every %s, is left of layer %s, which is gone", s.Name(), s.Layer), Advice: afterwards,
		})
	}
	return problems, err
}
