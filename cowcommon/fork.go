package cowcommon

import (
	"context"
	"errors"
)

// Forker is a Backend that can take the moment of a volume, in use or not, without sealing the volume.
type Forker interface {
	// Fork makes moment a sealed volume with the content of source as it is now. It makes each of names a writable clone
	// of moment with opts. source stays as it is: neither its use nor its seal changes. The Parent of each name is moment.
	// Each name has the root style of source, unless opts name another. If Fork fails, it leaves nothing. A crash may leave
	// moment with some of names. Returns ErrNotImplemented if no snapshot has all of source, as if volumes are nested in it.
	Fork(ctx context.Context, source, moment string, names []string, opts VolumeOptions) error
	// CheckWhole returns ErrNotImplemented if no snapshot or clone has all of a volume, as if volumes are nested in it.
	CheckWhole(ctx context.Context, name string) error
}

// CheckWhole is Forker.CheckWhole. It finds nothing if the backend is no Forker.
func CheckWhole(ctx context.Context, backend Backend, name string) error {
	if f, ok := As[Forker](backend); ok {
		return f.CheckWhole(ctx, name)
	}
	return nil
}

// Fork is Forker.Fork. If the backend is no Forker, Fork clones source while source is mounted, and seals the clone.
// Returns ErrNotImplemented if the backend cannot seal either.
func Fork(ctx context.Context, backend Backend, source, moment string, names []string, opts VolumeOptions) error {
	if f, ok := As[Forker](backend); ok {
		return f.Fork(ctx, source, moment, names, opts)
	}
	if _, ok := As[Sealer](backend); !ok {
		return cannot("fork", backend)
	}
	return forkByClones(ctx, backend, source, moment, names, opts)
}

func forkByClones(ctx context.Context, backend Backend, source, moment string, names []string, opts VolumeOptions) error {
	var made []string
	clone := func(ctx context.Context, name, source string, opts VolumeOptions) error {
		err := backend.Clone(ctx, name, source, opts)
		if err == nil {
			made = append(made, name)
		}
		return err
	}
	err := func() error {
		// The clone of a volume in use does not seal it.
		if _, err := backend.Mount(ctx, source, ""); err != nil {
			return err
		}
		v, err := backend.Stat(ctx, source)
		if err == nil {
			err = clone(ctx, moment, source, VolumeOptions{RootStyle: v.RootStyle})
		}
		err = errors.Join(err, backend.Unmount(context.WithoutCancel(ctx), source))
		if err == nil {
			err = SealAsIs(ctx, backend, moment)
		}
		if err != nil {
			return err
		}
		if opts.RootStyle == DefaultRoot {
			opts.RootStyle = v.RootStyle
		}
		for _, name := range names {
			if err := clone(ctx, name, moment, opts); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		for i := range made {
			err = errors.Join(err, backend.Remove(context.WithoutCancel(ctx), made[len(made)-1-i]))
		}
	}
	return err
}

// Exchanger is a Backend that can exchange the names of two volumes in one step.
type Exchanger interface {
	// Exchange gives each of two volumes the name of the other. Limits and seals stay with their volumes, and root styles
	// too, unless both share different volumes. A crash leaves the state of before or of after. Returns
	// ErrFailedPrecondition if a volume is in use; its name has not changed then. Returns fault.ErrSealed if name is sealed.
	Exchange(ctx context.Context, name, other string) error
}

// Exchange is Exchanger.Exchange. Returns ErrNotImplemented if the backend is no Exchanger.
func Exchange(ctx context.Context, backend Backend, name, other string) error {
	e, ok := As[Exchanger](backend)
	if !ok {
		return cannot("exchange volumes", backend)
	}
	return e.Exchange(ctx, name, other)
}
