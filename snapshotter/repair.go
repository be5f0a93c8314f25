package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/boltfile"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/live"
)

// recoveredPrefix begins the names of committed snapshots of which only the volume is left, and that others need as
// parents.
const recoveredPrefix = "cowshed-recovered/"

// Repaired is the result of Repair.
type Repaired struct {
	Aside   string // where the damaged file is
	Read    int    // snapshots that could be read from it
	Rebuilt int    // snapshots that were described by their volume
}

// Repair puts damaged metadata aside, in the directory root. It makes new metadata from the readable parts and from
// the volumes of the backend, which it does not change. It returns nil if nothing is damaged.
//
// Of opts it uses Layers and Logger. A volume's name has the key that it was prepared with, and the filesystem knows
// its parent. A writable volume with its whole key becomes an active snapshot again, without labels. The volumes that
// it was cloned from become committed snapshots. Their names are not known, so they get others. All other volumes are
// Lost when New is called next.
//
// Returns errdefs.ErrUnavailable if another process has the snapshotter open.
func Repair(ctx context.Context, root string, backend cowcommon.Backend, opts Options) (_ *Repaired, err error) {
	path := filepath.Join(root, metadataName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	err = boltfile.Ready(path, lockTimeout)
	if !errors.Is(err, boltfile.ErrDamaged) {
		return nil, openError(root, err)
	}
	done := &Repaired{Aside: path + ".damaged-" + time.Now().UTC().Format("20060102T150405Z")}
	if err := errors.Join(os.Rename(path, done.Aside), syncdir.Sync(root)); err != nil {
		return nil, openError(root, err)
	}
	s := newSnapshotter(ctx, root, backend, opts)
	s.endSteps(ctx)
	read := salvage(ctx, done.Aside, s.log)
	if err := s.openMeta(); err != nil {
		return done, openError(root, err)
	}
	defer func() { err = errors.Join(err, s.meta.Close()) }()
	if err := s.rebuild(ctx, read, done); err != nil {
		return done, openError(root, err)
	}
	return done, nil
}

// rebuild makes snapshots of the readable records and of the volumes' facts.
func (s *Snapshotter) rebuild(ctx context.Context, read salvaged, done *Repaired) error {
	r := rebuilder{salvaged: read, volumes: make(map[string]cowcommon.Volume), keys: make(map[string]string), made: make(map[string]struct{})}
	for v, err := range s.backend.Volumes(ctx) {
		if err != nil {
			return err
		}
		if IsVolumeName(v.Name) && live.IsMoment(v.Parent) { // it was rolled back
			if v.Parent, err = s.baseOf(ctx, v); err != nil {
				return err
			}
		}
		r.volumes[v.Name] = v
	}
	for _, was := range read.snapshots {
		volume := was.Labels[VolumeLabel]
		if _, ok := r.volumes[volume]; ok || volume == "" {
			continue
		}
		v, there, unfinished, err := s.lookAgain(ctx, volume)
		if err != nil {
			return err
		}
		if unfinished {
			v.Name = volume
		}
		if there || unfinished {
			r.volumes[volume] = v
		}
	}
	return s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		clear(r.made)
		for volume := range read.doomed {
			if err := doomed.put(tx, volume, ""); err != nil {
				return err
			}
		}
		for _, key := range slices.Sorted(maps.Keys(read.snapshots)) {
			if err := r.insertRead(ctx, key); err != nil {
				return err
			}
		}
		done.Read = len(r.made)
		for _, name := range slices.Sorted(maps.Keys(r.volumes)) {
			if err := r.insertActive(ctx, r.volumes[name]); err != nil {
				return err
			}
		}
		done.Rebuilt = len(r.made) - done.Read
		return nil
	})
}

// rebuilder makes snapshots, parents first.
type rebuilder struct {
	salvaged
	volumes map[string]cowcommon.Volume
	keys    map[string]string   // of the snapshots that were made, by volume
	made    map[string]struct{} // their keys
}

// insertRead makes a snapshot that was read, if its volume is there.
func (r *rebuilder) insertRead(ctx context.Context, key string) error {
	was, ok := r.snapshots[key]
	if _, made := r.made[key]; made || !ok {
		return nil
	}
	if err := r.insertRead(ctx, was.Parent); err != nil {
		return err
	}
	volume := was.Labels[VolumeLabel]
	parent := was.Parent
	if _, made := r.made[parent]; !made {
		parent = ""
	}
	v, ok := r.volumes[volume]
	if !ok && (volume != "" || parent == "") {
		return nil
	}
	if parent == "" && was.Parent != "" {
		var err error
		if parent, err = r.parentByVolume(ctx, v); err != nil {
			return err
		}
	}
	return r.insert(ctx, key, parent, volume, &was)
}

// insertActive makes the active snapshot that a volume was prepared for, if that is known.
func (r *rebuilder) insertActive(ctx context.Context, v cowcommon.Volume) error {
	key, whole := KeyOfVolume(v.Name)
	_, isOwned := r.keys[v.Name]
	_, isDoomed := r.doomed[v.Name]
	_, isTaken := r.made[key]
	if !IsVolumeName(v.Name) || !whole || v.Sealed || isOwned || isDoomed || isTaken {
		return nil
	}
	kind := snapshots.KindActive
	if strings.HasPrefix(v.Name, emptyViewPrefix) {
		kind = snapshots.KindView
	}
	parent, err := r.parentByVolume(ctx, v)
	if err != nil {
		return err
	}
	return r.insert(ctx, key, parent, v.Name, &wasSnapshot{Kind: kind})
}

// parentByVolume is the committed snapshot that a volume was cloned from, made if need be; "" if the volume is gone.
func (r *rebuilder) parentByVolume(ctx context.Context, v cowcommon.Volume) (string, error) {
	p, ok := r.volumes[v.Parent]
	if !ok || !p.Sealed || !IsVolumeName(p.Name) {
		return "", nil
	}
	if key, ok := r.keys[p.Name]; ok {
		return key, nil
	}
	parent, err := r.parentByVolume(ctx, p)
	if err != nil {
		return "", err
	}
	key := recoveredPrefix + p.Name
	return key, r.insert(ctx, key, parent, p.Name, &wasSnapshot{Kind: snapshots.KindCommitted, Usage: unmeasured})
}

func (r *rebuilder) insert(ctx context.Context, key, parent, volume string, was *wasSnapshot) error {
	if err := insert(ctx, key, parent, volume, was); err != nil {
		return fmt.Errorf("snapshot %q: %w", key, err)
	}
	r.made[key] = struct{}{}
	if volume != "" {
		r.keys[volume] = key
	}
	return nil
}
