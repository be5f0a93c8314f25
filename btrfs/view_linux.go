package btrfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/staging"
)

// view is a subvolume that nobody writes to: the volume itself, or a snapshot in the directory views.
type view struct {
	b        *Backend
	volume   string
	snapshot string         // name in the directory views; "" if the view is the volume itself
	live     *layertar.Live // the volume's own tree if the view is a snapshot of it, else nil
	dir      *subvolume
	nested   []nestedSubvolume // nested subvolumes of the volume, and so of the view
	close    func() error      // releases the view, once
}

// View opens a sealed volume itself. Of a volume that is not sealed it takes a read-only snapshot. That takes about a
// millisecond, and writes the volume's unwritten data to disk.
func (b *Backend) View(ctx context.Context, name string) (cowcommon.View, error) {
	dir, err := b.acquire(ctx, name, inuse.Brief)
	if err != nil {
		return nil, fault.Wrap("view volume", name, err)
	}
	v := &view{b: b, volume: name, dir: dir}
	v.close = sync.OnceValue(v.release)
	err = v.open(ctx)
	if endErr := b.release(name, inuse.Brief); endErr != nil {
		if err == nil {
			endErr = errors.Join(endErr, v.Close())
		}
		err = errors.Join(err, endErr)
	}
	if err != nil {
		return nil, fault.Wrap("view volume", name, err)
	}
	return v, nil
}

// open opens the volume itself if it is sealed, or if nobody can write to it. Otherwise it takes a snapshot, which does
// not depend on the volume.
func (v *view) open(ctx context.Context) error {
	var err error
	if v.nested, err = v.b.nestedIn(v.dir.info.ID); err != nil {
		return err
	}
	sealed := v.dir.info.ReadOnly
	if v.b.readOnly && !sealed {
		if err := v.b.checkFrozen(); err != nil {
			return err
		}
	}
	if sealed || v.b.readOnly {
		v.dir, err = v.b.acquire(ctx, v.volume, inuse.Viewed)
		return err
	}
	name := staging.Name(v.volume + "~")
	s, err := v.b.snapshots.Acquire(ctx, name, inuse.Viewed, func() (*snapshot, error) {
		return v.b.snapshotVolume(name, v.dir, v.nested)
	})
	if err != nil {
		return err
	}
	v.dir, v.snapshot, v.live = s.subvolume, name, &s.live
	return nil
}

// checkFrozen returns cowcommon.ErrReadOnly unless nobody can write to the filesystem. A read-only mount does not
// suffice, since the same filesystem may have a writable mount too.
func (b *Backend) checkFrozen() error {
	m, err := mountOf(b.home)
	if err != nil {
		return err
	}
	if slices.Contains(strings.Split(m.VFSOptions, ","), "ro") {
		return nil
	}
	return fault.New(cowcommon.ErrReadOnly, "it is not sealed and others may write to it, so it would take a snapshot")
}

// snapshot is a subvolume in the directory views, and the tree of its source.
type snapshot struct {
	*subvolume
	live layertar.Live
}

// snapshotVolume takes a snapshot of a volume, with the subvolumes nested in it, in the directory views.
func (b *Backend) snapshotVolume(name string, volume *subvolume, nested []nestedSubvolume) (_ *snapshot, err error) {
	root, err := volume.reopen()
	if err != nil {
		return nil, err
	}
	s := &snapshot{live: layertar.Live{Root: root, Snapshot: time.Now()}}
	shallow := len(nested) == 0
	if err := btrfsctl.Snapshot(int(b.dirs.views.Fd()), name, volume.fd(), shallow, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("snapshot: %w", snapshotError(err)), root.Close())
	}
	if s.subvolume, err = b.openSubvolume(b.dirs.views, name); err != nil {
		return nil, errors.Join(err, root.Close(), b.destroy(b.dirs.views, name))
	}
	if !shallow {
		if err := b.snapshotNested(s.subvolume, volume.info.ID, nested); err != nil {
			return nil, errors.Join(err, b.closeSnapshot(name, s))
		}
	}
	return s, nil
}

func (b *Backend) closeSnapshot(name string, s *snapshot) error {
	defer b.sweepSometimes()
	var liveErr error
	if s.live.Root != nil {
		liveErr = s.live.Root.Close()
	}
	return errors.Join(liveErr, s.Close(), b.destroy(b.dirs.views, name))
}

// Dir is the absolute path of the view's root.
func (v *view) Dir() string { return v.dir.Name() }

// Live is the volume's own tree if the view is a snapshot of it, and nil otherwise.
func (v *view) Live() *layertar.Live { return v.live }

// Close releases the volume, or destroys the snapshot.
func (v *view) Close() error { return v.close() }

func (v *view) release() (err error) {
	if v.snapshot == "" {
		err = v.b.release(v.volume, inuse.Viewed)
	} else {
		err = v.b.snapshots.Release(v.snapshot, inuse.Viewed, func(s *snapshot) error {
			return v.b.closeSnapshot(v.snapshot, s)
		})
	}
	return fault.Wrap("close view of volume", v.volume, err)
}
