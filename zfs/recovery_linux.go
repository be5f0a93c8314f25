package zfs

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
)

// A Backend that opens beside others cannot clean up in the way of a Backend that is alone. The others, and later it itself,
// use things that look left over. This matters after a process was killed in a call that waits in the kernel. The next process finds the
// home open until the call has ended, and the call may make something just before.
//
// So that process cleans up when all others have gone, and leaves everything whose lock somebody has. Two kinds of remains
// have no lock, and wait for a Backend that is alone when it opens: views whose lock file had no space, and the mount by which
// the holders of a dataset were looked for.

// recovery is the cleaning up in the background. The zero value is none.
type recovery struct {
	stop  context.CancelFunc
	ended chan struct{}
}

// end stops the cleaning up, and waits at most that time for its end.
func (r recovery) end(atMost time.Duration) {
	if r.stop == nil {
		return
	}
	r.stop()
	select {
	case <-r.ended:
	case <-time.After(atMost):
	}
}

// recoverLater cleans up when all others have gone.
func (b *Backend) recoverLater() {
	ctx, cancel := context.WithCancel(b.ctx)
	b.recovery = recovery{stop: cancel, ended: make(chan struct{})}
	done := b.pending.begin()
	log := b.log.With("home", b.home)
	log.Info("zfs: another process has the home open, or was killed and its last call has not ended; remains of a crash are cleaned up later")
	go func() {
		defer close(b.recovery.ended)
		defer done()
		err := poll.WhileBusy(ctx, poll.Pauses{First: time.Second, Longest: 30 * time.Second}, func() (busy bool, err error) {
			alone, err := b.presence.IsAlone()
			return !alone && err == nil, err
		})
		if err == nil {
			err = b.recoverBeside(ctx)
		}
		switch {
		case ctx.Err() != nil: // by Close
		case err != nil:
			log.Warn("zfs: remains of a crash cannot be cleaned up, and stay until the home is next opened", "error", err)
		default:
			log.Info("zfs: cleaned up possible remains of a crash")
		}
	}()
}

// recoverBeside is recover beside the users of this Backend, and of those that were opened meanwhile.
func (b *Backend) recoverBeside(ctx context.Context) error {
	b.volumes.doubt() // a process that is gone may have told nobody of its last change
	datasets, err := b.volumes.all(ctx)
	if err != nil {
		return err
	}
	if err := b.endLeftViews(ctx); err != nil {
		return err
	}
	if err := b.unmountLeftVolumes(ctx); err != nil {
		return err
	}
	if b.frozen {
		return nil
	}
	if err := b.endLeftIntents(ctx); err != nil {
		return err
	}
	asides, err := b.asides(ctx, datasets)
	if err != nil {
		return err
	}
	origins := originsOf(datasets, asides)
	for name, d := range datasets {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case strings.HasPrefix(name, stagingPrefix):
			err = b.discardLeftStaged(ctx, name)
		case d.own && d.snapshotted:
			err = b.discardLeftOrigins(ctx, name, origins)
		default:
			continue
		}
		if err != nil {
			b.warnLeft(b.datasetOf(name), err)
		}
	}
	if datasets, err = b.volumes.all(ctx); err != nil { // without the remains
		return err
	}
	return b.destroyUnneeded(ctx, datasets, b.warnLeft)
}

// endLeftViews ends the views that have a lock file which nobody holds.
func (b *Backend) endLeftViews(ctx context.Context) error {
	entries, err := b.files(ctx, b.locks)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		_, snapshot, _ := strings.Cut(entry.Name(), "@")
		lock, free, err := b.lockView(ctx, entry.Name())
		if err == nil && free {
			err = b.unmountSnapshot(ctx, &mountedSnapshot{
				name: b.datasetOf(entry.Name()), temporary: strings.HasPrefix(snapshot, viewPrefix),
				dir: filepath.Join(b.views, entry.Name()), lock: lock,
			})
		}
		if err != nil {
			b.warnLeft(entry.Name(), err)
		}
	}
	return nil
}

// unmountLeftVolumes unmounts the volumes that nobody uses.
func (b *Backend) unmountLeftVolumes(ctx context.Context) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(b.graph))
	if err != nil {
		return err
	}
	for _, m := range mounts {
		name, below := strings.CutPrefix(m.Mountpoint, b.graph+"/")
		if !below || strings.Contains(name, "/") {
			continue
		}
		if err := b.whileClaimed(ctx, name, func() error { return nil }); err != nil { // the claim unmounts it
			b.warnLeft(m.Mountpoint, err)
		}
	}
	return nil
}

// endLeftIntents destroys volumes that were left half-made.
func (b *Backend) endLeftIntents(ctx context.Context) error {
	entries, err := b.files(ctx, b.intents)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		err := b.whileClaimed(ctx, name, func() error {
			_, err := b.endIntent(ctx, name)
			return err
		})
		if err != nil {
			b.warnLeft(b.datasetOf(name), err)
		}
	}
	return nil
}

// whileClaimed claims a volume, and calls do. It does nothing if the volume is in use.
func (b *Backend) whileClaimed(ctx context.Context, name string, do func() error) error {
	c, err := b.claim(ctx, name)
	if errors.Is(err, fault.ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	err = do()
	return errors.Join(err, c.done(err))
}

// discardLeftStaged destroys a dataset in staging, unless somebody has its lock.
func (b *Backend) discardLeftStaged(ctx context.Context, name string) error {
	lock, free, err := b.claimVolume(ctx, name)
	if err != nil || !free {
		return err
	}
	err = b.discardStaged(ctx, name)
	return errors.Join(err, b.after(err, func() error { return lock.Unlock(nil) }))
}

// discardLeftOrigins destroys the snapshots of a volume that were taken for clones which do not exist. origins has the
// snapshots with clones.
func (b *Backend) discardLeftOrigins(ctx context.Context, name string, origins map[string]bool) error {
	leaves, err := b.leaves(ctx, name)
	if err != nil {
		return err
	}
	var left []string
	for _, snapshot := range leaves {
		if strings.HasPrefix(snapshot, b.datasetOf(name)+"@"+clonePrefix) && !origins[snapshot] {
			left = append(left, snapshot)
		}
	}
	if len(left) == 0 {
		return nil
	}
	return b.whileClaimed(ctx, name, func() error { // nobody is cloning it
		for _, snapshot := range left {
			if err := b.discard(ctx, snapshot); err != nil && !errors.Is(err, unix.EEXIST) { // it has a clone meanwhile
				return err
			}
		}
		return nil
	})
}
