package sharedroot

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/namelock"
)

// wants are the locks to rely on a lower, "" for none.
func (b *Backend) wants(lower string) []namelock.Want {
	if lower == "" {
		return nil
	}
	return []namelock.Want{shared(lower)}
}

// Stat describes a volume, with its root style.
func (b *Backend) Stat(ctx context.Context, name string) (cowcommon.Volume, error) {
	v, err := b.Backend.Stat(ctx, name)
	if err != nil {
		return v, err
	}
	v.RootStyle = cowcommon.SnapshotRoot
	if noted, err := b.index.lower(name); noted == "" || err != nil {
		return v, fault.Wrap("stat volume", name, err)
	}
	s, _, err := b.look(ctx, name)
	if s == stateShared {
		v.RootStyle = cowcommon.SharedRoot
	}
	return v, fault.Wrap("stat volume", name, err)
}

// Seal makes a volume one of style snapshot, and seals it. A volume that a clone has sealed stays as it is.
func (b *Backend) Seal(ctx context.Context, name string) error {
	return fault.Wrap("seal volume", name, b.seal(ctx, name))
}

func (b *Backend) seal(ctx context.Context, name string) error {
	unlock, err := b.lock(ctx, exclusive(name))
	if err != nil {
		return err
	}
	defer unlock()
	s, _, err := b.look(ctx, name)
	if err != nil {
		return err
	}
	if s == stateNone {
		return cowcommon.Seal(ctx, b.Backend, name)
	}
	err = b.foldThen(ctx, name, func(*os.File) error { return nil })
	if errors.Is(err, fault.ErrSealed) {
		return nil
	}
	if err == nil {
		err = cowcommon.Seal(ctx, b.Backend, name) // which makes it durable
	}
	if err != nil {
		return err
	}
	b.tryForget(name, name)
	return nil
}

// SealAsIs seals a volume in the root style that it has.
func (b *Backend) SealAsIs(ctx context.Context, name string) error {
	return fault.Wrap("seal volume", name, b.untilFolded(ctx, name, func() error { return b.sealAsIs(ctx, name) }))
}

func (b *Backend) sealAsIs(ctx context.Context, name string) error {
	unlock, err := b.lock(ctx, exclusive(name))
	if err != nil {
		return err
	}
	defer unlock()
	s, _, err := b.look(ctx, name)
	if err != nil {
		return err
	}
	if s == stateFolding {
		return errFolding
	}
	b.unmountLeft(name)
	return cowcommon.Seal(ctx, b.Backend, name)
}

// plain makes a volume one of style snapshot. The caller has its lock. Returns fault.ErrSealed if it was sealed with its
// shared root.
func (b *Backend) plain(ctx context.Context, name string) error {
	s, _, err := b.look(ctx, name)
	if err != nil || s == stateNone {
		return err
	}
	return b.foldLocked(ctx, name)
}

// Remove destroys a volume. Returns fault.ErrInUse if it is the lower of shared volumes.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return fault.Wrap("remove volume", name, b.remove(ctx, name))
}

func (b *Backend) remove(ctx context.Context, name string) error {
	if err := b.removeLocked(ctx, name); err != nil {
		return err
	}
	if names := b.removed.full(); len(names) > 0 {
		b.forgetRemoved(names)
	}
	return nil
}

func (b *Backend) removeLocked(ctx context.Context, name string) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	unlock, err := b.lock(ctx, exclusive(name))
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.checkNoUsers(ctx, name); err != nil {
		return err
	}
	b.unmountLeft(name)
	if err := b.Backend.Remove(ctx, name); err != nil {
		return err
	}
	if has, err := b.hasNotes(name); has && err == nil {
		b.removed.add(name)
	}
	return nil
}

// maxNamed is how many users an error names.
const maxNamed = 3

// checkNoUsers checks that no volume is shared over this one. The caller has its lock exclusively. Each lower is sealed, so
// the notes of others are read for a sealed volume alone, or if that cannot be told.
func (b *Backend) checkNoUsers(ctx context.Context, name string) error {
	if v, err := b.Backend.Stat(ctx, name); isGone(err) || err == nil && !v.Sealed {
		return nil
	}
	noted, err := b.index.users(name)
	if err != nil {
		return err
	}
	var users []string
	for _, user := range noted {
		s, lower, err := b.look(ctx, user)
		if err != nil && !isGone(err) {
			return err
		}
		if err == nil && s != stateNone && lower == name {
			users = append(users, user)
		}
	}
	if len(users) == 0 {
		return nil
	}
	list := strings.Join(users[:min(len(users), maxNamed)], ", ")
	if len(users) > maxNamed {
		list += ", …"
	}
	return fault.New(fault.ErrInUse, "the roots of %d volumes share it (%s): remove them first, or change their root style to snapshot", len(users), list)
}

// Rename gives a volume another name. Returns fault.ErrInUse if it is the lower of shared volumes.
func (b *Backend) Rename(ctx context.Context, name, to string) error {
	return fault.WrapWith("rename volume", name, fault.To(to), b.rename(ctx, name, to))
}

func (b *Backend) rename(ctx context.Context, name, to string) error {
	if err := cowcommon.CheckID(to); err != nil {
		return err
	}
	return untilSteady(ctx, func() error {
		lower, err := b.index.lower(name)
		if err != nil {
			return err
		}
		return b.renameLocked(ctx, name, to, lower)
	})
}

// Sharers implements cowcommon.Sharer.
func (b *Backend) Sharers(ctx context.Context) (map[string][]string, error) {
	noted, err := b.index.all()
	if err != nil {
		return nil, err
	}
	sharers := make(map[string][]string)
	for _, user := range noted {
		s, lower, err := b.look(ctx, user)
		if isGone(err) {
			continue
		}
		if err != nil { // its note tells the volume that it may need
			b.log.Warn("shared roots: the state of a volume cannot be read", "volume", user, "error", err)
			s = stateShared
			if lower, err = b.index.lower(user); err != nil {
				return nil, err
			}
		}
		if s != stateNone {
			sharers[lower] = append(sharers[lower], user)
		}
	}
	return sharers, nil
}

// renameLocked renames a volume whose note said lower, before the locks for that were taken.
func (b *Backend) renameLocked(ctx context.Context, name, to, lower string) error {
	unlock, err := b.lock(ctx, append(b.wants(lower), exclusive(name), exclusive(to))...)
	if err != nil {
		return err
	}
	defer unlock()
	switch noted, err := b.index.lower(name); {
	case err != nil:
		return err
	case noted != lower:
		return errStyleChanged
	}
	if err := b.checkNoUsers(ctx, name); err != nil {
		return err
	}
	b.unmountLeft(name)
	if err := b.tryRestoreLimit(ctx, name); err != nil {
		return err
	}
	if err := b.clearNotes(ctx, to); err != nil {
		return err
	}
	has, err := b.hasNotes(name)
	if err != nil {
		return err
	}
	if !has {
		return cowcommon.Rename(ctx, b.Backend, name, to)
	}
	switch s, _, err := b.look(ctx, name); {
	case err != nil:
		return err
	case s != stateNone && strings.Contains(to, ":"):
		return errColon
	}
	if err := b.checkFree(ctx, to); err != nil {
		return err
	}
	err = b.copyNotes(name, to)
	if err == nil {
		err = cowcommon.Rename(ctx, b.Backend, name, to)
	}
	if err != nil {
		return errors.Join(err, b.clearNotes(b.ctx, to)) // unless it is there
	}
	b.tryForget(name, name, liftedNotes+name)
	return nil
}

// copyNotes gives a name, which no volume has, the notes of another.
func (b *Backend) copyNotes(name, to string) error {
	lower, err := b.index.lower(name)
	if err == nil && lower != "" {
		err = b.index.add(to, lower)
	}
	if err != nil {
		return err
	}
	limit, limited, err := b.index.limit(name)
	if err == nil && limited {
		err = b.index.noteLimit(to, limit)
	}
	return err
}

// Create makes an empty volume, of style snapshot.
func (b *Backend) Create(ctx context.Context, name string, opts cowcommon.VolumeOptions) error {
	return fault.Wrap("create volume", name, b.withPlain(ctx, name, "", func() error { return b.Backend.Create(ctx, name, opts) }))
}

// Receive makes a volume from a native stream. source is sealed and of style snapshot. Returns errdefs.ErrInvalidArgument if the
// stream is that of a shared volume, whose lower could be any volume here.
func (b *Backend) Receive(ctx context.Context, name, source string, r io.Reader) error {
	return fault.Wrap("receive volume", name, b.receive(ctx, name, source, r))
}

func (b *Backend) receive(ctx context.Context, name, source string, r io.Reader) error {
	if source != "" {
		if err := b.checkSource(ctx, source); err != nil {
			return err
		}
	}
	// No lock of source is held while the stream lasts, since others use source too. Its style cannot change any more, and the
	// Backend inside keeps it. The stream names its content, so another volume of the name would be refused.
	return b.withPlain(ctx, name, "", func() error {
		if err := cowcommon.Receive(ctx, b.Backend, name, source, r); err != nil {
			return err
		}
		return b.refuseMarked(ctx, name)
	})
}

// checkSource returns an error if a stream cannot build on a volume: it is not sealed, or has a shared root.
func (b *Backend) checkSource(ctx context.Context, source string) error {
	unlock, err := b.lock(ctx, exclusive(source))
	if err != nil {
		return err
	}
	defer unlock()
	v, err := b.Backend.Stat(ctx, source)
	if err != nil {
		return err
	}
	if !v.Sealed {
		return fault.New(errdefs.ErrFailedPrecondition, "source %s is not sealed", source)
	}
	return b.plain(ctx, source)
}

// Adopt makes a volume from one of another program. parent becomes one of style snapshot, as when it is sealed.
func (b *Backend) Adopt(ctx context.Context, name, parent, source string, opts cowcommon.VolumeOptions) error {
	err := b.withPlain(ctx, name, parent, func() error {
		if err := cowcommon.Adopt(ctx, b.Backend, name, parent, source, plain(opts)); err != nil {
			return err
		}
		return b.refuseMarked(ctx, name)
	})
	return fault.WrapWith("adopt volume", name, fault.From(source), err)
}

// CheckAdopt implements cowcommon.Adopter. Whether the tree of the source has a shared root is not known before.
func (b *Backend) CheckAdopt(ctx context.Context, parent, source, planned string) error {
	return cowcommon.CheckAdopt(ctx, b.Backend, parent, source, planned)
}

// refuseMarked removes a volume that came from elsewhere if its tree has the mark of a shared root.
func (b *Backend) refuseMarked(ctx context.Context, name string) error {
	err := b.hold(ctx, name, func(dir string) error {
		root, err := openRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		s, _, err := inspect(root)
		if err == nil && s != stateNone {
			err = fault.New(errdefs.ErrInvalidArgument, "it has a shared root, whose lower is not here")
		}
		return err
	})
	if err != nil {
		err = errors.Join(err, b.Backend.Remove(b.ctx, name))
	}
	return err
}

// withPlain calls do, which makes the volume name, when base is a volume of style snapshot or "".
func (b *Backend) withPlain(ctx context.Context, name, base string, do func() error) error {
	wants := []namelock.Want{exclusive(name)}
	if base != "" {
		wants = append(wants, exclusive(base))
	}
	unlock, err := b.lock(ctx, wants...)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.clearNotes(ctx, name); err != nil {
		return err
	}
	if base != "" {
		if err := b.plain(ctx, base); err != nil {
			return err
		}
	}
	return do()
}
