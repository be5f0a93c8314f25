package btrfs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/dirlist"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/internal/sealing"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/quota"
)

// Create makes an empty volume.
func (b *Backend) Create(ctx context.Context, name string, opts cowcommon.VolumeOptions) error {
	limit, after, err := b.quotas.Inherit(ctx, opts.Limit, 0)
	if err == nil {
		err = b.stage(ctx, name, opts, after, recipe{
			create: func(staged string) error {
				return b.createStaged(staged, limit)
			},
			finish: func(dir *subvolume) error {
				return errors.Join(dir.Chown(opts.UID, opts.GID), dir.Chmod(0o755))
			},
		})
	}
	return fault.Wrap("create volume", name, err)
}

// Clone makes name a snapshot of source. If the kernel takes the limit along and there is no label, Clone is that one
// call. Then the volume has its final name from the start. With simple quotas the kernel takes the limit along.
func (b *Backend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	return fault.WrapWith("clone volume", name, fault.From(source), b.clone(ctx, name, source, opts))
}

func (b *Backend) clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	if err := errors.Join(opts.CheckRoot(), b.checkFree(name)); err != nil {
		return err
	}
	if opts.Limit.Bytes != 0 {
		// Turning quotas on takes as long as counting does, so it comes before a claim for which others wait.
		if _, err := b.quotas.Enable(ctx, opts.Limit.Scope); err != nil {
			return err
		}
	}
	return b.seals().Clone(ctx, source, func(src *subvolume) error { return b.cloneFrom(ctx, name, src, opts) })
}

func (b *Backend) cloneFrom(ctx context.Context, name string, src *subvolume, opts cowcommon.VolumeOptions) error {
	limit, after, err := b.quotas.Inherit(ctx, opts.Limit, src.info.ID)
	if err != nil {
		return err
	}
	if !after && opts.MountLabel == "" {
		return snapshotTo(src, b.dirs.subvolumes, name, limit)
	}
	return b.stage(ctx, name, opts, after, recipe{create: func(staged string) error {
		return snapshotTo(src, b.dirs.staging, staged, limit)
	}})
}

// checkFree reports whether a volume could get that name. The call that gives the name decides, but before that nothing
// else should be changed in vain.
func (b *Backend) checkFree(name string) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	err := unix.Faccessat(int(b.dirs.subvolumes.Fd()), name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		return errdefs.ErrAlreadyExists
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// A record of moby's driver is about an earlier layer of that name, and not about the new layer.
	return b.forgetRecordedLimit(name)
}

// recipe has the steps that make a volume.
type recipe struct {
	create  func(staged string) error                                                              // makes the subvolume, in the directory staging
	finish  func(dir *subvolume) error                                                             // completes it; may be nil
	publish func(staged string, dir *subvolume, rename func(from *os.File, as string) error) error // gives it its name by rename; may be nil
}

// stage makes a volume under a name of its own in staging, and completes it. It sets the limit if setLimit says so, and
// the label. Then it gives the volume its real name in one step.
func (b *Backend) stage(ctx context.Context, name string, opts cowcommon.VolumeOptions, setLimit bool, r recipe) error {
	if err := b.checkFree(name); err != nil {
		return err
	}
	staged := staging.Name(name + "~")
	var dir *subvolume
	defer func() {
		if dir != nil {
			dir.Close()
		}
	}()
	return staging.Make(staging.Steps{
		Create: func() (err error) {
			if err = r.create(staged); err == nil {
				dir, err = b.openSubvolume(b.dirs.staging, staged)
			}
			return err
		},
		Complete: func() error {
			if r.finish != nil {
				if err := r.finish(dir); err != nil {
					return err
				}
			}
			if setLimit {
				if err := b.quotas.SetLimit(ctx, dir.info.ID, opts.Limit); err != nil {
					return err
				}
			}
			if opts.MountLabel != "" {
				if err := label.Relabel(dir.Name(), opts.MountLabel, false); err != nil {
					return fmt.Errorf("label %q: %w", opts.MountLabel, err)
				}
			}
			return nil
		},
		Publish: func() (err error) {
			rename := func(from *os.File, as string) error {
				return alreadyExists(unix.Renameat2(int(from.Fd()), as, int(b.dirs.subvolumes.Fd()), name, unix.RENAME_NOREPLACE))
			}
			if r.publish != nil {
				err = r.publish(staged, dir, rename)
			} else {
				err = rename(b.dirs.staging, staged)
			}
			if err != nil {
				return err
			}
			return b.commit()
		},
		Discard: func(error) error { return b.destroy(b.dirs.staging, staged) }, // does nothing after the rename
	})
}

// createStaged makes an empty subvolume in the directory staging.
func (b *Backend) createStaged(name string, limit quota.Inherited) error {
	return btrfsctl.CreateSubvolume(int(b.dirs.staging.Fd()), name, btrfsctl.NewLimit(limit.MaxReferenced, limit.MaxExclusive))
}

// snapshotTo makes name in the directory dir a writable snapshot of src.
func snapshotTo(src *subvolume, dir *os.File, name string, limit quota.Inherited) error {
	return snapshotError(btrfsctl.Snapshot(int(dir.Fd()), name, src.fd(), false, btrfsctl.NewLimit(limit.MaxReferenced, limit.MaxExclusive)))
}

// snapshotError turns errors of the kernel's snapshot call into typed errors.
func snapshotError(err error) error {
	switch {
	case errors.Is(err, unix.ETXTBSY):
		return fault.New(errdefs.ErrFailedPrecondition, "a swap file is active in it: %w", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESTALE):
		return fault.New(errdefs.ErrNotFound, "it has just been removed: %w", err)
	}
	return alreadyExists(err)
}

func alreadyExists(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return errdefs.ErrAlreadyExists
	}
	return err
}

// Rename gives a volume another name.
func (b *Backend) Rename(ctx context.Context, name, to string) error {
	return fault.WrapWith("rename volume", name, fault.To(to), b.rename(ctx, name, to))
}

func (b *Backend) rename(ctx context.Context, name, to string) (err error) {
	if err := b.checkFree(to); err != nil {
		return err
	}
	v, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.done()) }()
	subvolumes := int(b.dirs.subvolumes.Fd())
	if err := unix.Renameat2(subvolumes, name, subvolumes, to, unix.RENAME_NOREPLACE); err != nil {
		return alreadyExists(err)
	}
	if err := b.renameRecordedLimit(name, to); err != nil {
		return errors.Join(err, unix.Renameat2(subvolumes, to, subvolumes, name, unix.RENAME_NOREPLACE))
	}
	return b.commit()
}

// Remove destroys a volume. A volume without nested subvolumes goes in one call. A volume with nested subvolumes is
// first hidden by a rename or, where there is no room for that, by a mark.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return fault.Wrap("remove volume", name, b.remove(ctx, name))
}

func (b *Backend) remove(ctx context.Context, name string) (err error) {
	v, err := b.claim(ctx, name)
	if errors.Is(err, errDoomed) {
		return b.destroyDoomed(name)
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.done()) }()
	if _, err := v.move(ctx, sealing.Doomed); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ETXTBSY) {
			err = fault.New(fault.ErrInUse, "it is being sent, has an active swap file, or is the filesystem's default subvolume: %w", err)
		}
		return err
	}
	b.sweepSometimes()
	return b.forgetRecordedLimit(name)
}

// Stat describes a volume.
func (b *Backend) Stat(_ context.Context, name string) (v cowcommon.Volume, err error) {
	err = b.withVolume("stat", name, func(dir *subvolume) (err error) {
		v, err = b.describe(name, dir)
		return err
	})
	return v, err
}

func (b *Backend) describe(name string, dir *subvolume) (cowcommon.Volume, error) {
	info := dir.info
	limit, err := b.quotas.Limit(info.ID)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return cowcommon.Volume{}, err
	}
	madeFrom, err := b.parentOf(dir.fd(), info)
	if err != nil {
		return cowcommon.Volume{}, fmt.Errorf("find parent: %w", err)
	}
	parent, err := b.parentName(madeFrom)
	if err != nil {
		return cowcommon.Volume{}, fmt.Errorf("find parent: %w", err)
	}
	return cowcommon.Volume{
		Name:    name,
		Parent:  parent,
		Sealed:  info.ReadOnly,
		Limit:   limit,
		Created: info.Created,
		Details: map[string]string{
			"Path":        dir.Name(),
			"SubvolumeID": strconv.FormatUint(info.ID, 10),
			"UUID":        info.UUID.String(),
		},
	}, nil
}

// parentName returns the name of the volume with that UUID, or "" if no volume has it.
func (b *Backend) parentName(uuid btrfsctl.UUID) (string, error) {
	if uuid == (btrfsctl.UUID{}) {
		return "", nil
	}
	link, err := b.linkByUUID(uuid)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	if err != nil || link.ParentID != b.dirs.subvolumesID || link.DirID != b.dirs.subvolumesIno {
		return "", err
	}
	return link.Name, nil
}

// linkByUUID finds where the subvolume with that UUID is linked. While it is renamed or exchanged it has no link for a moment.
// linkByUUID waits for the end of that. It returns unix.ENOENT if there is no such subvolume, or if it is removed.
func (b *Backend) linkByUUID(uuid btrfsctl.UUID) (link btrfsctl.Link, err error) {
	pauses := poll.Pauses{First: 10 * time.Microsecond, Longest: time.Millisecond, AtMost: time.Second}
	err = poll.WhileBusy(b.ctx, pauses, func() (busy bool, err error) {
		id, err := btrfsctl.IDByUUID(int(b.fs.Fd()), uuid)
		if err != nil {
			return false, err
		}
		link, err = btrfsctl.LinkByID(int(b.fs.Fd()), id)
		return errors.Is(err, unix.ENOENT), err
	})
	return link, err
}

// Volumes lists the volumes, also those that are exchanged meanwhile. It leaves out files that are not subvolumes, and names that no volume can have.
func (b *Backend) Volumes(ctx context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(yield func(cowcommon.Volume, error) bool) {
		entries, err := dirlist.Read(b.dirs.subvolumes.Name())
		if err != nil {
			yield(cowcommon.Volume{}, fault.Wrap("list volumes", "", err))
			return
		}
		for _, entry := range entries {
			if ctx.Err() != nil {
				yield(cowcommon.Volume{}, fault.Wrap("list volumes", "", context.Cause(ctx)))
				return
			}
			if !entry.IsDir() || cowcommon.CheckID(entry.Name()) != nil {
				continue
			}
			v, err := b.Stat(ctx, entry.Name())
			if errors.Is(err, errStub) {
				b.log.Warn("btrfs: not a layer", "error", err)
			}
			if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errNotSubvolume) {
				continue
			}
			if !yield(v, err) {
				return
			}
		}
	}
}

// Sync writes the volume's unwritten data to disk, and commits them.
func (b *Backend) Sync(_ context.Context, name string) error {
	// btrfs has no way to write back one subvolume only.
	return b.withVolume("sync", name, func(dir *subvolume) error { return unix.Syncfs(dir.fd()) })
}
