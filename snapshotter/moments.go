package snapshotter

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// isOfLive reports whether a volume is a moment of another, or a fork of such a moment. Both are in the home beside the
// snapshotter's volumes, and package live keeps the records of them.
func isOfLive(v cowcommon.Volume) bool { return live.IsMoment(v.Name) || live.IsMoment(v.Parent) }

// endSteps ends forks, rollbacks and merges of volumes that a crash interrupted. Until then a volume may have no name.
func (s *Snapshotter) endSteps(ctx context.Context) {
	if s.opts.Layers == nil {
		return
	}
	if err := s.opts.Layers.Recover(ctx); err != nil {
		s.log.Warn("snapshotter: interrupted steps on volumes are ended later", "error", err)
	}
}

// isUnfinished reports whether a volume may have no name at the moment, since another process is replacing it.
func (s *Snapshotter) isUnfinished(volume string) (bool, error) {
	if s.opts.Layers == nil {
		return false, nil
	}
	return s.opts.Layers.Unfinished(volume)
}

// lookAgain looks for a volume that was not there. A step of another process may have ended since, and given it its name back. If
// that may still happen, unfinished is true.
func (s *Snapshotter) lookAgain(ctx context.Context, volume string) (v cowcommon.Volume, there, unfinished bool, err error) {
	if s.opts.Layers == nil {
		return v, false, false, nil
	}
	unfinished, err = s.isUnfinished(volume)
	if err != nil || unfinished {
		return v, false, unfinished, err
	}
	v, err = s.backend.Stat(ctx, volume)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) { // damaged metadata may have anything as a name
		return v, false, false, nil
	}
	return v, err == nil, false, err
}

// givenBack reports whether a volume that was not there may have its name again by now. If need be, it ends the step that gives it
// the name. It does nothing while the other process is at work.
func (s *Snapshotter) givenBack(ctx context.Context, volume string) bool {
	_, there, unfinished, err := s.lookAgain(ctx, volume)
	if err == nil && unfinished {
		s.endSteps(ctx)
	}
	return err == nil && (there || unfinished)
}

// named calls look, and again while another process is replacing the volume, so that it has no name. If need be, it ends the step that
// gives it the name.
func (s *Snapshotter) named(ctx context.Context, volume string, look func() error) error {
	if s.opts.Layers == nil {
		return look()
	}
	return s.opts.Layers.WhileNameless(ctx, volume, func() error {
		err := look()
		if errdefs.IsNotFound(err) && s.givenBack(ctx, volume) {
			err = look()
		}
		return err
	})
}

// sweep removes forks that have expired, and the moments of volumes that are gone, unless forks need them.
func (s *Snapshotter) sweep(ctx context.Context) error {
	if s.opts.Layers == nil {
		return nil
	}
	err := s.opts.Layers.Sweep(ctx)
	if s.hasMoments() {
		s.wakeRetry()
	}
	return err
}

// hasMoments reports whether sweep has left moments that it may remove later.
func (s *Snapshotter) hasMoments() bool { return s.opts.Layers != nil && s.opts.Layers.HasLeft() }

// baseOf returns the volume that another was cloned from, also after a rollback or a merge.
func (s *Snapshotter) baseOf(ctx context.Context, v cowcommon.Volume) (string, error) {
	if s.opts.Layers == nil {
		return v.Parent, nil
	}
	return s.opts.Layers.Base(ctx, v)
}

// warnOfMoments names the snapshots of a volume that is doomed, although the container goes on in another volume.
func (s *Snapshotter) warnOfMoments(ctx context.Context, volume string) {
	if s.opts.Layers == nil {
		return
	}
	var names []string
	taken, err := s.opts.Layers.Snapshots(ctx, volume)
	for _, m := range taken {
		names = append(names, m.Name)
	}
	if err != nil {
		s.log.Warn("snapshotter: snapshots of a doomed volume cannot be listed", "volume", volume, "error", err)
	}
	if len(names) > 0 {
		s.log.Warn("snapshotter: snapshots of a container are removed, since a failed commit had sealed its volume", "volume", volume, "snapshots", names)
	}
}
