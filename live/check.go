package live

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Problem is a state of moments or forks that needs somebody's attention.
type Problem struct {
	What   string
	Advice string
	Severe bool // content cannot be used
}

// Counts are numbers from the records of moments.
type Counts struct {
	Snapshots  int
	Forks      int // that were made and are not known to be gone
	Expired    int // of Forks, those whose time has come
	Pending    int // steps that are under way or were interrupted
	Unreadable int // records
}

// Count counts the records in a directory of moments, without a Backend. A directory that is not there has none.
func Count(dir string, now time.Time) (c Counts, err error) {
	l := &Layers{dir: dir}
	for _, records := range []string{momentsDir, pendingDir} {
		volumes, err := l.recorded(records, "")
		if err != nil {
			return c, err
		}
		if records == pendingDir {
			c.Pending = len(volumes)
			break
		}
		for _, volume := range volumes {
			r, err := l.load(records, volume)
			switch {
			case errdefs.IsNotFound(err): // it has just gone
			case err != nil:
				c.Unreadable++
			default:
				c.add(r, now)
			}
		}
	}
	return c, nil
}

func (c *Counts) add(r record, now time.Time) {
	if r.Name != "" {
		c.Snapshots++
	}
	c.Forks += len(r.Forks)
	for _, fork := range r.Forks {
		if fork.expired(now) {
			c.Expired++
		}
	}
}

func (f Fork) expired(now time.Time) bool { return !f.Expires.IsZero() && !now.Before(f.Expires) }

// Check looks for records that cannot be read, moments and forks of which a part is gone, expired forks and interrupted steps. It
// calls CheckSchedules, and looks for schedules without their layer.
// Returns ErrUnavailable if somebody is at work, since the states between two steps look the same.
func (l *Layers) Check(ctx context.Context) (problems []Problem, err error) {
	if _, err := os.Stat(l.path(momentsDir)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	lock, err := l.openLock(lockFile)
	if err == nil {
		defer func() { err = errors.Join(err, lock.Close()) }()
		alone, err := lock.TryExclusive()
		if err != nil {
			return nil, err
		}
		if !alone {
			return nil, fault.New(errdefs.ErrUnavailable, "another caller changes moments of layers: try again later")
		}
	} else if !errors.Is(err, syscall.EROFS) { // on which nobody is at work
		return nil, err
	}
	volumes, needed, err := l.volumes(ctx)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool)
	for _, dir := range []string{pendingDir, momentsDir} {
		recorded, err := l.recorded(dir, "")
		if err != nil {
			return nil, err
		}
		for _, volume := range recorded {
			known[volume] = true
			r, err := l.load(dir, volume)
			if err != nil {
				problems = append(problems, l.unreadable(dir, volume, err))
				continue
			}
			if dir == pendingDir {
				problems = append(problems, interrupted(r))
				continue
			}
			found, err := l.checkRecord(ctx, r, volumes, needed)
			if err != nil {
				return nil, err
			}
			problems = append(problems, found...)
		}
	}
	problems = append(problems, l.CheckSchedules(time.Now())...)
	gone, err := l.checkLayers(ctx)
	if err != nil {
		return nil, err
	}
	problems = append(problems, gone...)
	return append(problems, unrecorded(volumes, known)...), nil
}

// afterwards is how a problem goes away that a Sweep ends.
const afterwards = "the next cowshed ls ends that"

func (l *Layers) unreadable(dir, volume string, err error) Problem {
	return Problem{
		What: err.Error(), Severe: true,
		Advice: fmt.Sprintf("restore the record from a backup; or look at the content with: cowshed mount %s, and delete the record %s", volume, l.path(dir, volume+recordSuffix)),
	}
}

func interrupted(r record) Problem {
	return Problem{
		What:   fmt.Sprintf("a step with moment %s of layer %s was interrupted, on %s", r.Volume, r.Layer, r.Time.Local().Format(time.DateTime)),
		Advice: "the next cowshed ls ends or undoes it; if it stays, see the warning of that command",
	}
}

// checkRecord looks at a moment and its forks.
func (l *Layers) checkRecord(ctx context.Context, r record, volumes map[string]cowcommon.Volume, needed map[string]bool) (problems []Problem, err error) {
	_, hasVolume := volumes[r.Volume]
	_, hasLayer := volumes[r.Layer]
	forks, err := l.forksIn(ctx, r, volumes)
	if err != nil {
		return nil, err
	}
	switch {
	case !hasVolume && r.Name != "":
		problems = append(problems, Problem{
			What:   fmt.Sprintf("snapshot %s@%s has lost its volume %s", r.Layer, r.Name, r.Volume),
			Advice: "if somebody has removed the volume, nothing is left to do: " + afterwards, Severe: true,
		})
	case hasVolume && !hasLayer && !needed[r.Volume] && len(forks) == 0:
		problems = append(problems, Problem{
			What: fmt.Sprintf("moment %s is left of layer %s, which is gone, and nothing was made from it", r.Volume, r.Layer), Advice: afterwards,
		})
	}
	now := time.Now()
	for _, fork := range r.Forks {
		v, there := volumes[fork.Name]
		if !hasVolume && there && v.Parent == "" { // the filesystem does not know it any more
			problems = append(problems, lostMoment(v.Name, r.Volume))
			continue
		}
		is, err := l.isFork(ctx, v, r.Volume)
		if err != nil {
			return nil, err
		}
		switch {
		case !is: // it is gone, or another layer of that name
		case !hasVolume:
			problems = append(problems, lostMoment(v.Name, r.Volume))
		case fork.expired(now):
			problems = append(problems, Problem{
				What:   fmt.Sprintf("fork %s of layer %s has expired, on %s", fork.Name, r.Layer, fork.Expires.Local().Format(time.DateTime)),
				Advice: "the next cowshed ls removes it, unless it is in use or layers were made from it: unmount it, and remove these",
			})
		}
	}
	return problems, nil
}

func lostMoment(fork, moment string) Problem {
	return Problem{
		What:   fmt.Sprintf("layer %s was forked from moment %s, which is gone: its changes are not known", fork, moment),
		Advice: fmt.Sprintf("its content is complete, but cowshed merge cannot apply it; compare it with: cowshed changes %s LAYER", fork),
	}
}

// unrecorded finds volumes of moments that no record has, and forks of moments without a record.
func unrecorded(volumes map[string]cowcommon.Volume, known map[string]bool) (problems []Problem) {
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		v := volumes[name]
		_, hasParent := volumes[v.Parent]
		switch {
		case IsMoment(name) && !known[name]:
			problems = append(problems, Problem{
				What:   fmt.Sprintf("volume %s has the name of a moment, and no record", name),
				Advice: fmt.Sprintf("Cowshed does not remove it; look at it with: cowshed mount %s, and destroy its subvolume or dataset if nobody needs it", name),
			})
		case !IsMoment(name) && IsMoment(v.Parent) && !known[v.Parent] && !hasParent:
			problems = append(problems, lostMoment(name, v.Parent))
		}
	}
	return problems
}
