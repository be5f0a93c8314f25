package layerstore

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
)

// Snapshots describes the snapshots of a layer, oldest first.
func (s *Store) Snapshots(ctx context.Context, v cowcommon.Volume) ([]api.Snapshot, error) {
	moments, err := s.Live.Snapshots(ctx, v.Name)
	if err != nil {
		return nil, err
	}
	infos := make([]api.Snapshot, 0, len(moments))
	for _, m := range moments {
		info, err := s.DescribeSnapshot(ctx, m)
		if errdefs.IsNotFound(err) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// DescribeSnapshot describes a snapshot.
func (s *Store) DescribeSnapshot(ctx context.Context, m live.Moment) (info api.Snapshot, err error) {
	info = api.Snapshot{Name: m.Name, Layer: s.Shown(m.Layer), Time: m.Time, Message: m.Message, Volume: m.Volume, Schedule: m.Schedule}
	info.Usage, err = s.usageIfKept(ctx, m.Volume)
	return info, err
}

// Rollback gives a layer the content of one of its snapshots. It returns the snapshot with the content of before.
func (s *Store) Rollback(ctx context.Context, v cowcommon.Volume, snapshot string, opts live.RollbackOptions) (before live.Moment, err error) {
	if !opts.Live {
		if err := s.CheckUnmounted(ctx, v); err != nil {
			return before, err
		}
	}
	return s.Live.Rollback(ctx, v.Name, snapshot, opts)
}

// History describes a layer with its moments and forks.
func (s *Store) History(ctx context.Context, v cowcommon.Volume) (api.Log, error) {
	return s.logOf(ctx, live.Fork{Name: v.Name}, make(map[string]bool))
}

// logOf describes a layer with its moments and forks. seen are the layers on the way to it.
func (s *Store) logOf(ctx context.Context, fork live.Fork, seen map[string]bool) (api.Log, error) {
	l := api.Log{Name: s.Shown(fork.Name), Expires: fork.Expires, Labels: fork.Labels}
	if seen[fork.Name] { // a later layer of that name
		return l, nil
	}
	seen[fork.Name] = true
	moments, err := s.Live.Moments(ctx, fork.Name)
	if err != nil {
		return l, err
	}
	for _, m := range moments {
		shown := api.Moment{Name: m.Name, Message: m.Message, Time: m.Time, Volume: m.Volume}
		for _, f := range m.Forks {
			v, err := s.Driver.Backend().Stat(ctx, f.Name)
			base := ""
			if err == nil {
				base, err = s.Live.Base(ctx, v)
			}
			if errdefs.IsNotFound(err) || err == nil && base != m.Volume {
				continue
			}
			if err != nil {
				return l, err
			}
			below, err := s.logOf(ctx, f, seen)
			if err != nil {
				return l, err
			}
			shown.Forks = append(shown.Forks, below)
		}
		if shown.Name != "" || len(shown.Forks) > 0 {
			l.Moments = append(l.Moments, shown)
		}
	}
	return l, nil
}
