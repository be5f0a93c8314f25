package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// inventory is all that is known at a start.
type inventory struct {
	infos   []snapshots.Info // with the label that names their volume
	owners  map[string]snapshots.Info
	volumes map[string]cowcommon.Volume // all that are there and have the name of one of the snapshotter's

	// unfinished has owned and doomed volumes that may have no name while another process replaces them.
	unfinished map[string]struct{}

	making, copies, thawing, doomed, gone map[string]string
}

// recover brings metadata and volumes into agreement, after a crash or after somebody has removed volumes. It
// destroys only volumes that the metadata lists for destruction.
func (s *Snapshotter) recover(ctx context.Context) error {
	s.endSteps(ctx)
	known, err := s.takeInventory(ctx)
	if err != nil {
		return err
	}
	if err := known.check(); err != nil {
		return err
	}
	if err := s.finishThaws(ctx, known); err != nil {
		return err
	}
	s.sort(known)
	if err := s.findPartial(known); err != nil {
		return err
	}
	if err := s.removeLost(ctx, known); err != nil {
		return err
	}
	for name, owner := range known.owners {
		if v, ok := known.volumes[name]; ok && v.Sealed && owner.Kind == snapshots.KindActive {
			// It was about to be committed. Without space for a clone it can still be committed and removed.
			if err := s.thawFound(ctx, owner.Name, v, known); err != nil {
				s.log.Error("snapshotter: active snapshot cannot be written to", "key", owner.Name, "error", err)
			}
		}
	}
	if err := s.Cleanup(ctx); err != nil {
		s.log.Warn("snapshotter: left-over volumes cannot be destroyed", "error", err)
	}
	return nil
}

func (s *Snapshotter) takeInventory(ctx context.Context) (*inventory, error) {
	infos, err := s.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	known := &inventory{
		infos: infos, owners: make(map[string]snapshots.Info), volumes: make(map[string]cowcommon.Volume), unfinished: make(map[string]struct{}),
	}
	for _, info := range infos {
		if volume := info.Labels[VolumeLabel]; volume != "" {
			known.owners[volume] = info
		}
	}
	err = s.look(ctx, func(_ context.Context, tx *bolt.Tx) error {
		known.making, known.copies, known.thawing = making.all(tx), copies.all(tx), thawing.all(tx)
		known.doomed, known.gone = doomed.all(tx), gone.all(tx)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read metadata: %w", err)
	}
	for v, err := range s.backend.Volumes(ctx) {
		if err != nil {
			return nil, err
		}
		if _, owned := known.owners[v.Name]; owned || IsVolumeName(v.Name) {
			known.volumes[v.Name] = v
		} else if !isOfLive(v) {
			s.log.Warn("snapshotter: a volume is not the snapshotter's, and is kept", "volume", v.Name)
		}
	}
	return known, s.findUnfinished(ctx, known)
}

// findUnfinished finds the volumes that the list lacks because another process is replacing them, or was then.
func (s *Snapshotter) findUnfinished(ctx context.Context, known *inventory) error {
	find := func(volume string) error {
		if _, ok := known.volumes[volume]; ok {
			return nil
		}
		v, there, unfinished, err := s.lookAgain(ctx, volume)
		switch {
		case there:
			known.volumes[volume] = v
		case unfinished:
			known.unfinished[volume] = struct{}{}
		}
		return err
	}
	for volume := range known.owners {
		if err := find(volume); err != nil {
			return err
		}
	}
	for volume := range known.doomed {
		if err := find(volume); err != nil {
			return err
		}
	}
	return nil
}

// isThere reports whether a volume is there, or will be.
func (k *inventory) isThere(volume string) bool {
	_, ok := k.volumes[volume]
	_, unfinished := k.unfinished[volume]
	return ok || unfinished
}

// check makes sure that this is not the metadata of another home.
func (k *inventory) check() error {
	made := 0 // for certain
	for name := range k.owners {
		if k.isThere(name) {
			return nil
		}
		if _, ok := k.making[name]; !ok {
			made++
		}
	}
	if made > 0 && len(k.owners) > 1 {
		return fault.New(errdefs.ErrFailedPrecondition, "none of the %d volumes that the metadata names is there, but %d others: is the right filesystem mounted?",
			len(k.owners), len(k.volumes))
	}
	return nil
}

// finishThaws completes interrupted thaws.
func (s *Snapshotter) finishThaws(ctx context.Context, known *inventory) error {
	for clone, sealed := range known.thawing {
		owner, owned := known.owners[clone]
		cloned := known.isThere(clone)
		var err error
		switch _, isThere := known.volumes[sealed]; {
		case owned && cloned && known.hasChildren(sealed, clone):
			err = s.endThawKeeping(ctx, sealed, clone)
		case owned && cloned:
			err = s.endThaw(ctx, sealed, clone)
			delete(known.volumes, sealed)
		case owned && isThere:
			err = s.undoThaw(ctx, owner.Name, sealed, clone)
			delete(known.owners, clone)
			owner.Labels = withVolume(owner.Labels, sealed)
			known.owners[sealed] = owner
			for i := range known.infos {
				if known.infos[i].Name == owner.Name {
					known.infos[i] = owner
				}
			}
		default:
			err = s.change(ctx, func(_ context.Context, tx *bolt.Tx) error { return thawing.del(tx, clone) })
		}
		if err != nil {
			return fmt.Errorf("snapshot %q: %w", owner.Name, err)
		}
	}
	return nil
}

// thawFound thaws an active snapshot whose volume is sealed. If others were cloned from the volume it was committed, and
// the metadata is older than that: then the volume is lost.
func (s *Snapshotter) thawFound(ctx context.Context, key string, v cowcommon.Volume, known *inventory) error {
	if !known.hasChildren(v.Name, "") {
		return s.thaw(ctx, key, v)
	}
	err := s.thawTo(ctx, key, v, s.endThawKeeping)
	if err == nil {
		s.setLost(v, known.gone[v.Name])
	}
	return err
}

// hasChildren reports whether a volume other than apart was cloned from another. A volume that may go is no child: it
// can be the copy of a commit that has failed.
func (k *inventory) hasChildren(volume, apart string) bool {
	for name, v := range k.volumes {
		if v.Parent == volume && name != apart && !k.mayGo(v) {
			return true
		}
	}
	return false
}

// mayGo reports whether the metadata says that a volume may be destroyed.
func (k *inventory) mayGo(v cowcommon.Volume) bool {
	_, owned := k.owners[v.Name]
	_, isDoomed := k.doomed[v.Name]
	_, isCopy := k.copies[v.Name]
	return !owned && (isDoomed || isCopy && !v.Sealed)
}

// sort decides about each volume. A later change deletes outdated entries of the ledgers.
func (s *Snapshotter) sort(known *inventory) {
	for name, v := range known.volumes {
		if _, owned := known.owners[name]; owned {
			continue
		}
		if known.mayGo(v) {
			s.doom(name)
		} else {
			s.setLost(v, known.gone[name])
		}
	}
	for name := range known.doomed {
		if _, ok := known.unfinished[name]; ok {
			s.doom(name)
		} else if _, ok := known.volumes[name]; !ok {
			s.unsettled = append(s.unsettled, name)
		}
	}
	for name := range known.making {
		s.stale.made = append(s.stale.made, name)
	}
	for name := range known.copies {
		if v, ok := known.volumes[name]; !ok || v.Sealed {
			s.unsettled = append(s.unsettled, name)
		}
	}
	if n := len(s.lost); n > 0 {
		s.log.Error("snapshotter: volumes that the metadata does not know are kept, and no client sees them; see cowshed lost", "volumes", n)
	}
}

// removeLost removes snapshots whose volume is missing from the metadata. A snapshot of a Prepare that a crash has
// cut off never had a volume. In other cases somebody has destroyed the volume, or it is in a home that is older than
// the metadata: their records are kept in the ledger. A snapshot with children stays, as their parent: they are
// complete without it.
func (s *Snapshotter) removeLost(ctx context.Context, known *inventory) error {
	missing := known.missing()
	if len(missing) == 0 {
		return nil
	}
	return s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		left := make(map[string]snapshots.Info, len(missing))
		for _, info := range missing {
			left[info.Name] = info
		}
		for removed := true; removed; { // each round removes those that have no children any more
			removed = false
			for key, info := range left {
				done, err := s.removeMissing(ctx, tx, info, known)
				if err != nil {
					return fmt.Errorf("remove lost snapshot %q: %w", key, err)
				}
				if done {
					delete(left, key)
					removed = true
				}
			}
		}
		for key, info := range left {
			s.log.Error("snapshotter: the volume is gone of a snapshot from which other snapshots were made", "key", key, "volume", info.Labels[VolumeLabel])
		}
		return nil
	})
}

// missing lists the snapshots whose tree is not there.
func (k *inventory) missing() []snapshots.Info {
	var missing []snapshots.Info
	keys := make(map[string]struct{})
	for _, info := range k.infos {
		volume := info.Labels[VolumeLabel]
		if volume != "" && !k.isThere(volume) {
			missing = append(missing, info)
			keys[info.Name] = struct{}{}
		}
	}
	for _, info := range k.infos { // a view shows its parent's volume
		if _, ok := keys[info.Parent]; ok && info.Labels[VolumeLabel] == "" {
			missing = append(missing, info)
		}
	}
	return missing
}

func (s *Snapshotter) removeMissing(ctx context.Context, tx *bolt.Tx, info snapshots.Info, known *inventory) (removed bool, err error) {
	_, _, usage, err := storage.GetInfo(ctx, info.Name)
	if errdefs.IsNotFound(err) {
		return true, nil // by the transaction before this one
	}
	if err != nil {
		return false, err
	}
	_, _, err = storage.Remove(ctx, info.Name)
	if errdefs.IsFailedPrecondition(err) {
		return false, nil
	}
	volume := info.Labels[VolumeLabel]
	if _, never := known.making[volume]; never || err != nil {
		return err == nil, err
	}
	s.log.Warn("snapshotter: snapshot is removed, since its volume is gone", "key", info.Name, "volume", volume)
	if volume == "" {
		return true, nil
	}
	return true, putGone(tx, volume, info, usage)
}
