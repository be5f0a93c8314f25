package sharedroot

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/namelock"
	"github.com/cowshed/cowshed/internal/staging"
)

// view is a view of a volume: that of the Backend inside, or an overlay of two such views.
type view struct {
	b      *Backend
	volume string
	tree   cowcommon.View // of the volume itself
	key    string         // of the overlay in Backend.views; "" if the volume is of style snapshot; else:
	over   *overlay
	close  func() error // once
}

// overlay is a read-only overlay over the frozen trees of a shared volume and its lower.
type overlay struct {
	point       string
	lower       string // the name of that volume
	tree, below cowcommon.View
	lock        namelock.Lock // of mountKey
}

// viewPrefix begins the names of mount points of views. No volume has such a name.
const viewPrefix = "@view-"

// View opens the tree of a volume as the Backend inside does. For a shared volume it mounts an overlay over that tree and
// that of the lower.
func (b *Backend) View(ctx context.Context, name string) (v cowcommon.View, err error) {
	err = b.untilFolded(ctx, name, func() (err error) {
		v, err = b.view(ctx, name)
		return err
	})
	if err != nil {
		return nil, fault.Wrap("view volume", name, err)
	}
	return v, nil
}

func (b *Backend) view(ctx context.Context, name string) (cowcommon.View, error) {
	unlock, err := b.lock(ctx, shared(name))
	if err != nil {
		return nil, err
	}
	defer unlock()
	v := &view{b: b, volume: name}
	if v.tree, err = b.Backend.View(ctx, name); err != nil {
		return nil, err
	}
	s, lower, err := b.inspectDir(name, v.tree.Dir())
	if err == nil && s == stateFolding {
		err = errFolding
	}
	if err == nil && s == stateShared {
		v.key = staging.Name(viewPrefix)
		v.over, err = b.views.Acquire(ctx, v.key, inuse.Viewed, func() (*overlay, error) {
			return b.openOverlay(ctx, filepath.Join(b.roots, v.key), lower, v.tree)
		})
	}
	if err != nil {
		return nil, errors.Join(err, v.tree.Close())
	}
	v.close = sync.OnceValue(v.release)
	return v, nil
}

// openOverlay mounts an overlay of a view of a shared volume over its lower.
func (b *Backend) openOverlay(ctx context.Context, point, lower string, tree cowcommon.View) (*overlay, error) {
	if err := b.makeRoots(); err != nil {
		return nil, err
	}
	lock, err := namelock.Shared(ctx, b.uses, mountKey(filepath.Base(point)))
	if err != nil {
		return nil, err
	}
	below, err := b.Backend.View(ctx, lower)
	if err == nil {
		if err = b.mountOverlay(point, below.Dir(), tree.Dir(), "", ""); err != nil {
			err = errors.Join(err, below.Close())
		}
	}
	if err != nil {
		return nil, errors.Join(err, lock.Unlock(nil))
	}
	return &overlay{point: point, lower: lower, tree: tree, below: below, lock: lock}, nil
}

// close unmounts the overlay, and closes the views below it. Files of it that are still open stay readable.
func (o *overlay) close() error {
	return errors.Join(mountdir.Remove(o.point, true), o.lock.Unlock(nil), o.tree.Close(), o.below.Close())
}

// Dir is the absolute path of the view's root.
func (v *view) Dir() string {
	if v.over != nil {
		return v.over.point
	}
	return v.tree.Dir()
}

// Live is that of the view inside. An overlay has none: it shows the tree of the lower, which is in use anyway.
func (v *view) Live() *layertar.Live {
	if live, ok := v.tree.(cowcommon.LiveView); ok && v.over == nil {
		return live.Live()
	}
	return nil
}

// Close releases the view.
func (v *view) Close() error { return v.close() }

func (v *view) release() error {
	if v.over == nil {
		return v.tree.Close()
	}
	err := v.b.views.Release(v.key, inuse.Viewed, (*overlay).close)
	return fault.Wrap("close view of volume", v.volume, err)
}

// Hints says where two views may differ. Between a shared volume and its lower these are the names in the upper. Between
// two volumes that are shared over the same lower, and between two of style snapshot, the Backend inside says it.
func (b *Backend) Hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	hints, err := b.hints(ctx, base, top)
	if err != nil {
		return nil, treediff.WithoutHints(ctx, "upper", err)
	}
	return hints, nil
}

func (b *Backend) hints(ctx context.Context, base, top cowcommon.View) (*treediff.Hints, error) {
	t, isTop := top.(*view)
	u, isBase := base.(*view)
	switch {
	case !isShared(base) && !isShared(top):
		return cowcommon.Hints(ctx, b.Backend, inside(base), inside(top))
	case isTop && isBase && t.over != nil && u.over == nil && u.volume == t.over.lower:
		return t.over.hints(ctx)
	case isTop && isBase && t.over != nil && u.over != nil && t.over.lower == u.over.lower:
		hints, err := cowcommon.Hints(ctx, b.Backend, u.tree, t.tree)
		if err != nil {
			return nil, err
		}
		return betweenUppers(hints, u.tree.Dir(), t.tree.Dir())
	}
	return nil, &treediff.NoHintsError{Reason: "root style", Err: errors.New("one of the volumes is shared over another than the other")}
}

func (o *overlay) hints(ctx context.Context) (*treediff.Hints, error) {
	upper, err := openRoot(upperOf(o.tree.Dir()))
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	lower, err := openRoot(o.below.Dir())
	if err != nil {
		return nil, err
	}
	defer lower.Close()
	return changes(ctx, upper, lower)
}

func isShared(v cowcommon.View) bool {
	own, ok := v.(*view)
	return ok && own.over != nil
}

// inside returns the view of the Backend inside, nil for nil.
func inside(v cowcommon.View) cowcommon.View {
	if own, ok := v.(*view); ok {
		return own.tree
	}
	return v
}

// errShared says that only a part of the tree is in the volume.
var errShared = fault.New(errdefs.ErrNotImplemented, "it has a shared root")

// StreamKind implements cowcommon.Identifier.
func (b *Backend) StreamKind() string {
	kind, _ := cowcommon.StreamKind(b.Backend) // "" if there is none
	return kind
}

// Identify implements cowcommon.Identifier. Returns errdefs.ErrNotImplemented for a shared volume.
func (b *Backend) Identify(ctx context.Context, v cowcommon.View) (cowcommon.Identity, error) {
	if isShared(v) {
		return cowcommon.Identity{}, fault.Wrap("identify volume", v.(*view).volume, errShared)
	}
	return cowcommon.Identify(ctx, b.Backend, inside(v))
}

// Send writes the native stream of a view. Returns errdefs.ErrNotImplemented for a shared volume, whose tree no stream of
// the filesystem holds.
func (b *Backend) Send(ctx context.Context, w io.Writer, base, top cowcommon.View) error {
	for _, v := range []cowcommon.View{base, top} {
		if isShared(v) {
			return fault.New(errdefs.ErrNotImplemented, "send volume %s: its root is shared; change its root style to snapshot", v.(*view).volume)
		}
	}
	return cowcommon.Send(ctx, b.Backend, w, inside(base), inside(top))
}
