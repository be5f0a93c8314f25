package snapshotter

import (
	"context"
	"errors"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/quota"
)

// Stat describes a snapshot.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	r, err := s.read(ctx, key)
	return r.info, wrap("stat snapshot", key, err)
}

// Volume returns the name of the volume that holds a snapshot's tree. Of a view it is the parent's volume.
func (s *Snapshotter) Volume(ctx context.Context, key string) (string, error) {
	r, err := s.read(ctx, key)
	return r.tree(), wrap("find volume of snapshot", key, err)
}

// Update replaces the labels of a snapshot: those that fieldpaths name, or all of them. Another value of the label
// containerd.io/snapshot/max-size changes the limit of an active snapshot, but not of one for UseUnpack. Without the
// label the limit stays. Returns errdefs.ErrFailedPrecondition if the snapshot already holds more than the new limit.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	updated, err := s.update(ctx, info, fieldpaths)
	return updated, wrap("update snapshot", info.Name, err)
}

func (s *Snapshotter) update(ctx context.Context, info snapshots.Info, fieldpaths []string) (updated snapshots.Info, err error) {
	if err := checkLabels(info.Labels); err != nil {
		return snapshots.Info{}, err
	}
	if slices.Contains(fieldpaths, "labels."+VolumeLabel) {
		return snapshots.Info{}, fault.New(errdefs.ErrInvalidArgument, "label %s is not for clients", VolumeLabel)
	}
	if _, err := labelledStyle(info.Name, info.Labels); err != nil {
		return snapshots.Info{}, err
	}
	if err := s.awaitMade(ctx, info.Name); err != nil {
		return snapshots.Info{}, err
	}
	if err := s.changeLimit(ctx, info, fieldpaths); err != nil {
		return snapshots.Info{}, err
	}
	return s.writeLabels(ctx, info, fieldpaths)
}

func (s *Snapshotter) writeLabels(ctx context.Context, info snapshots.Info, fieldpaths []string) (updated snapshots.Info, err error) {
	err = s.change(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		r, err := lookup(ctx, info.Name)
		if err != nil {
			return err
		}
		info.Labels = withVolume(info.Labels, r.volume)
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	return visible(updated), nil
}

// Walk calls fn for each snapshot that matches one of the filters. It shows all snapshots as they were at one moment.
// No transaction is open meanwhile: fn may call any method.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	infos, err := s.list(ctx, filters...)
	if err != nil {
		return fault.Wrap("walk snapshots", "", typed(err))
	}
	for _, info := range infos {
		if err := fn(ctx, visible(info)); err != nil {
			return err
		}
	}
	return nil
}

// list lists the snapshots, with the label that names their volume.
func (s *Snapshotter) list(ctx context.Context, filters ...string) (infos []snapshots.Info, err error) {
	err = s.look(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		infos = nil
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			infos = append(infos, info)
			return nil
		}, filters...)
	})
	if errdefs.IsNotFound(err) { // the metadata has never held any
		return nil, nil
	}
	return infos, err
}

// unmeasured is the usage, in the metadata, of a committed snapshot that the filesystem keeps no count of.
var unmeasured = snapshots.Usage{Size: -1, Inodes: -1}

// Usage returns the number of bytes that a snapshot has and its parent has not. A view has none.
//
// With quotas on, the filesystem counts them; for a committed snapshot it is the count at that time. With quotas off
// the snapshot is compared with its parent. Its size is then the sum of the sizes of the files that it adds or
// changes; that of a committed snapshot is remembered. Inodes is 0, or with Options.CountInodes the number of names
// that it adds or changes.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	usage, err := s.usage(ctx, key)
	return usage, wrap("measure snapshot", key, err)
}

func (s *Snapshotter) usage(ctx context.Context, key string) (snapshots.Usage, error) {
	r, err := s.read(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	switch r.info.Kind {
	case snapshots.KindView:
		return snapshots.Usage{}, nil
	case snapshots.KindCommitted:
		return s.usageOfCommitted(ctx, r)
	}
	usage, err := s.measure(ctx, r.volume)
	if errdefs.IsNotImplemented(err) {
		return s.countActive(ctx, r)
	}
	if err == nil && s.opts.CountInodes {
		var counted snapshots.Usage
		counted, err = s.count(ctx, r)
		usage.Inodes = counted.Inodes
	}
	return usage, err
}

func (s *Snapshotter) usageOfCommitted(ctx context.Context, r record) (snapshots.Usage, error) {
	if r.usage != unmeasured && !s.opts.CountInodes {
		return r.usage, nil
	}
	counted, ok := s.measured.Load(r.volume)
	if !ok {
		var err error
		if counted, err = s.count(ctx, r); err != nil {
			return snapshots.Usage{}, err
		}
		s.measured.Store(r.volume, counted)
	}
	usage, _ := counted.(snapshots.Usage)
	if r.usage != unmeasured {
		usage.Size = r.usage.Size
	}
	return usage, nil
}

// measure asks the filesystem for the size of a volume. Returns errdefs.ErrNotImplemented if the filesystem does not
// count.
func (s *Snapshotter) measure(ctx context.Context, volume string) (snapshots.Usage, error) {
	var usage quota.Usage
	err := s.named(ctx, volume, func() (err error) {
		usage, err = cowcommon.Usage(ctx, s.backend, volume)
		return err
	})
	return snapshots.Usage{Size: int64(usage.Bytes)}, err
}

// measureOnce is measure for a snapshot that is being committed. Whatever keeps the filesystem from telling does
// not keep the snapshot from being committed.
func (s *Snapshotter) measureOnce(ctx context.Context, volume string) snapshots.Usage {
	usage, err := s.measure(ctx, volume)
	if err == nil {
		return usage
	}
	if !errdefs.IsNotImplemented(err) {
		s.log.Warn("snapshotter: usage cannot be read, and will be counted", "volume", volume, "error", err)
	}
	return unmeasured
}

// countActive is count for an active snapshot. Changes that are apart are not compared, unless inodes count too.
func (s *Snapshotter) countActive(ctx context.Context, r record) (snapshots.Usage, error) {
	if !s.opts.CountInodes {
		size, err := cowcommon.ChangesSize(ctx, s.backend, r.volume, r.parentVolume)
		if !errdefs.IsNotImplemented(err) {
			return snapshots.Usage{Size: size}, err
		}
	}
	return s.count(ctx, r)
}

// count compares a snapshot with its parent.
func (s *Snapshotter) count(ctx context.Context, r record) (usage snapshots.Usage, err error) {
	c, err := s.compare(ctx, r.volume, r.parentVolume)
	if err != nil {
		return snapshots.Usage{}, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, change := range c.Changes {
		if change.Kind != archive.ChangeDelete {
			usage.Inodes++
		}
	}
	usage.Size, err = treediff.Size(ctx, c.Dir(), c.Changes)
	if !s.opts.CountInodes {
		usage.Inodes = 0
	}
	return usage, err
}

// compare compares two volumes, of which the former may have no name for a moment.
func (s *Snapshotter) compare(ctx context.Context, volume, base string) (c *cowcommon.Comparison, err error) {
	err = s.named(ctx, volume, func() error {
		c, err = s.comparer.Compare(ctx, volume, base, cowcommon.Auto)
		return err
	})
	return c, err
}
