package sharedroot

import (
	"context"
	"io/fs"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// MountSpec says how others can mount a volume. A shared volume is an overlay of paths. Returns errdefs.ErrNotImplemented
// if a shared volume has no path while it is not mounted, as on ZFS.
func (b *Backend) MountSpec(ctx context.Context, name string, readOnly bool) (spec cowcommon.MountSpec, err error) {
	err = b.untilFolded(ctx, name, func() (err error) {
		spec, err = b.mountSpec(ctx, name, readOnly)
		return err
	})
	return spec, fault.Wrap("describe mount of volume", name, err)
}

func (b *Backend) mountSpec(ctx context.Context, name string, readOnly bool) (spec cowcommon.MountSpec, err error) {
	mounter, ok := cowcommon.As[cowcommon.SpecMounter](b.Backend)
	if !ok {
		return spec, fault.New(errdefs.ErrNotImplemented, "others cannot mount volumes of a %T", b.Backend)
	}
	unlock, err := b.lock(ctx, shared(name))
	if err != nil {
		return spec, err
	}
	defer unlock()
	if err := b.tryRestoreLimit(ctx, name); err != nil { // after a crash
		return spec, err
	}
	s, lower, err := b.look(ctx, name)
	switch {
	case err != nil:
		return spec, err
	case s == stateFolding:
		return spec, errFolding
	case s == stateNone:
		return mounter.MountSpec(ctx, name, readOnly)
	case !b.keepsPaths:
		return spec, fault.New(errdefs.ErrNotImplemented, "its root is shared, and it has no path while it is not mounted")
	}
	has, err := b.supported()
	if err != nil {
		return spec, err
	}
	if err := b.checkOnlyOverlay(name, readOnly); err != nil {
		return spec, err
	}
	spec = cowcommon.MountSpec{Type: "overlay"}
	err = b.hold(ctx, lower, func(lowerDir string) error {
		return b.hold(ctx, name, func(dir string) error {
			work := ""
			if !readOnly && !b.opts.ReadOnly {
				var err error
				if work, err = workIn(dir); err != nil {
					return err
				}
			}
			if spec.Options, err = mountOptions(lowerDir, upperOf(dir), work, has); err != nil {
				return err
			}
			spec.Source = b.sourceOf(lowerDir, dir, name)
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				return &fs.PathError{Op: "statfs", Path: dir, Err: err}
			}
			if st.Flags&unix.ST_NOATIME != 0 {
				spec.Options = append(spec.Options, "noatime")
			}
			return nil
		})
	})
	return spec, err
}

// checkOnlyOverlay checks that the overlay that others are about to mount is the only one of its upper. Returns fault.ErrInUse if
// that of Mount has to stay: the kernel would take the work directory away from it.
func (b *Backend) checkOnlyOverlay(name string, readOnly bool) error {
	b.unmountLeft(name)
	if readOnly || b.opts.ReadOnly {
		return nil
	}
	if is, err := isOverlay(b.point(name)); !is || err != nil {
		return err
	}
	return fault.New(fault.ErrInUse, "the root of volume %s is mounted on %s, perhaps by cowshed mount: unmount it there", name, b.point(name))
}

// CheckMountSpec is that of the Backend inside.
func (b *Backend) CheckMountSpec() error {
	if mounter, ok := cowcommon.As[cowcommon.SpecMounter](b.Backend); ok {
		return mounter.CheckMountSpec()
	}
	return fault.New(errdefs.ErrNotImplemented, "others cannot mount volumes of a %T", b.Backend)
}
