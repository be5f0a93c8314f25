package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
)

// recover brings metadata and volumes into agreement, after a crash or after somebody has removed volumes.
func (s *Snapshotter) recover(ctx context.Context) error {
	infos, err := s.list(ctx)
	if err != nil {
		return fmt.Errorf("read metadata: %w", err)
	}
	owners := make(map[string]snapshots.Info, len(infos)) // by volume
	for _, info := range infos {
		if volume := info.Labels[VolumeLabel]; volume != "" {
			owners[volume] = info
		}
	}
	found := make(map[string]cowcommon.Volume, len(owners))
	for v, err := range s.backend.Volumes(ctx) {
		if err != nil {
			return err
		}
		switch _, owned := owners[v.Name]; {
		case owned:
			found[v.Name] = v
		case isVolumeName(v.Name):
			s.doom(v.Name)
		default:
			s.log.Warn("snapshotter: volume is not one of the snapshotter's, and is left alone", "volume", v.Name)
		}
	}
	if len(owners) > 1 && len(found) == 0 {
		return fmt.Errorf("none of the %d volumes that the metadata names is there, is the right filesystem mounted? %w", len(owners), errdefs.ErrFailedPrecondition)
	}
	if err := s.removeLost(ctx, infos, found); err != nil {
		return err
	}
	for _, v := range found {
		if owner := owners[v.Name]; v.Sealed && owner.Kind == snapshots.KindActive {
			// It was about to be committed.
			if err := s.thaw(ctx, owner.Name, v); err != nil {
				return fmt.Errorf("snapshot %q: %w", owner.Name, err)
			}
		}
	}
	if err := s.Cleanup(ctx); err != nil {
		s.log.Warn("snapshotter: what is left over cannot be destroyed", "error", err)
	}
	return nil
}

// removeLost removes snapshots whose volume is not there any more from the metadata. No crash leaves such ones,
// but somebody may have destroyed volumes by hand. One that others were made from stays, as their parent: they
// are complete without it.
func (s *Snapshotter) removeLost(ctx context.Context, infos []snapshots.Info, found map[string]cowcommon.Volume) error {
	lost := make(map[string]string) // volumes by key
	for _, info := range infos {
		volume := info.Labels[VolumeLabel]
		if _, ok := found[volume]; !ok && volume != "" {
			lost[info.Name] = volume
		}
	}
	for _, info := range infos {
		if volume, ok := lost[info.Parent]; ok && info.Labels[VolumeLabel] == "" {
			lost[info.Name] = volume // a view, which shows its parent's volume
		}
	}
	if len(lost) == 0 {
		return nil
	}
	return s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		for removed := true; removed; { // each round removes those that have no children any more
			removed = false
			for key, volume := range lost {
				_, _, err := storage.Remove(ctx, key)
				if errdefs.IsFailedPrecondition(err) {
					continue
				}
				if err != nil {
					return fmt.Errorf("remove lost snapshot %q: %w", key, err)
				}
				s.log.Warn("snapshotter: snapshot is removed, since its volume is gone", "key", key, "volume", volume)
				delete(lost, key)
				removed = true
			}
		}
		for key, volume := range lost {
			s.log.Error("snapshotter: volume is gone of a snapshot that others were made from", "key", key, "volume", volume)
		}
		return nil
	})
}
