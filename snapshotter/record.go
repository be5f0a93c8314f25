package snapshotter

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// VolumeLabel is the label that names the volume of a snapshot, in metadata.db only: clients neither see nor
// set it. A view of a committed snapshot has none, since it is its parent's volume that it shows.
const VolumeLabel = "cowshed/volume"

// Volume names begin with what they are made for.
const (
	snapshotPrefix  = "s-" // an active snapshot, which may be committed
	emptyViewPrefix = "v-" // a view without a parent: always empty
)

// randomLength is the number of characters of rand.Text in a volume name.
const randomLength = 26

func newVolumeName(prefix string) string { return prefix + rand.Text() }

// isVolumeName reports whether newVolumeName could have made the name.
func isVolumeName(name string) bool {
	random, ok := strings.CutPrefix(name, snapshotPrefix)
	if !ok {
		random, ok = strings.CutPrefix(name, emptyViewPrefix)
	}
	return ok && len(random) == randomLength && strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// record is what the metadata says of a snapshot.
type record struct {
	id     string
	info   snapshots.Info // as clients see it
	usage  snapshots.Usage
	volume string // "" if it has none of its own

	parentVolume string // "" if it has no parent
}

// tree is the volume that holds the snapshot's tree.
func (r *record) tree() string {
	if r.volume == "" {
		return r.parentVolume
	}
	return r.volume
}

// read looks up a snapshot, in a transaction of its own.
func (s *Snapshotter) read(ctx context.Context, key string) (r record, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		r, err = lookup(ctx, key)
		return err
	})
	return r, err
}

// lookup looks up a snapshot. ctx carries a transaction.
func lookup(ctx context.Context, key string) (record, error) {
	var r record
	var err error
	if r.id, r.info, r.usage, err = storage.GetInfo(ctx, key); err != nil {
		return record{}, err
	}
	r.volume = r.info.Labels[VolumeLabel]
	r.info = visible(r.info)
	if r.info.Parent != "" {
		_, parent, _, err := storage.GetInfo(ctx, r.info.Parent)
		if err != nil {
			return record{}, fmt.Errorf("parent %q: %w", r.info.Parent, err)
		}
		r.parentVolume = parent.Labels[VolumeLabel]
	}
	return r, nil
}

// parentRecord looks up what is to become a parent. ctx carries a transaction.
func parentRecord(ctx context.Context, parent string) (record, error) {
	r, err := lookup(ctx, parent)
	if err != nil {
		return record{}, fmt.Errorf("parent %q: %w", parent, err)
	}
	if r.info.Kind != snapshots.KindCommitted {
		return record{}, fmt.Errorf("parent %q is not committed: %w", parent, errdefs.ErrInvalidArgument)
	}
	if r.volume == "" {
		return record{}, fmt.Errorf("parent %q has no volume: %w", parent, errdefs.ErrFailedPrecondition)
	}
	return r, nil
}

// checkAbsent reports whether a key or name is free. ctx carries a transaction.
func checkAbsent(ctx context.Context, key string) error {
	_, _, _, err := storage.GetInfo(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	return err
}

// visible returns info without what clients do not see.
func visible(info snapshots.Info) snapshots.Info {
	if _, ok := info.Labels[VolumeLabel]; !ok {
		return info
	}
	info.Labels = maps.Clone(info.Labels)
	delete(info.Labels, VolumeLabel)
	if len(info.Labels) == 0 {
		info.Labels = nil
	}
	return info
}

// withVolume returns labels with that of the volume. "" stands for none.
func withVolume(labels map[string]string, volume string) map[string]string {
	if volume == "" {
		return labels
	}
	labels = maps.Clone(labels)
	if labels == nil {
		labels = make(map[string]string, 1)
	}
	labels[VolumeLabel] = volume
	return labels
}
