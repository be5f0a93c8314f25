package zfs

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inuse"
	"github.com/cowshed/cowshed/internal/sealing"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// properties returns the properties of every dataset that Cowshed makes, and the limit.
func properties(limit quota.Limit) zfsctl.Values {
	values := zfsctl.Values{
		"mountpoint":            "legacy",
		"canmount":              zfsctl.CanMountNoAuto,
		"com.sun:auto-snapshot": "false",
		markProperty:            markValue,
	}
	if limit.Bytes > 0 {
		values[limit.DatasetProperty()] = limit.Bytes
	}
	return values
}

// replaceLimit returns the properties that give a dataset a limit in place of any that it has.
func replaceLimit(limit quota.Limit) zfsctl.Values {
	values := zfsctl.Values{"quota": uint64(0), "refquota": uint64(0)}
	values[limit.DatasetProperty()] = limit.Bytes
	return values
}

// Create makes an empty volume, with one call. It takes a second one, and a mount, if the root directory of the volume is
// to belong to another user or group than root's. Returns errdefs.ErrInvalidArgument if an empty volume exceeds the limit.
func (b *Backend) Create(ctx context.Context, name string, opts cowcommon.VolumeOptions) error {
	return fault.Wrap("create volume", name, b.create(ctx, name, opts))
}

func (b *Backend) create(ctx context.Context, name string, opts cowcommon.VolumeOptions) (err error) {
	c, err := b.claimNew(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	if opts.UID == 0 && opts.GID == 0 { // as in any new dataset, with mode 0755
		dataset := b.datasetOf(name)
		err = b.make(ctx, c, "create", func(k kernel) error { return k.Create(dataset, properties(opts.Limit)) })
	} else {
		err = b.createStaged(ctx, c, opts)
	}
	if err != nil {
		return b.explain(ctx, b.explainLimit(ctx, err, "", opts.Limit), name, "")
	}
	b.volumes.set(name, dataset{limit: opts.Limit, created: time.Now(), marked: true, own: true})
	return nil
}

// make makes the dataset of a volume under its own name.
func (b *Backend) make(ctx context.Context, c *claim, op string, do func(kernel) error) (err error) {
	return b.intended(ctx, c.name, "", nil, func(intended time.Time) (func() bool, error) {
		return b.makeIntended(ctx, c, intended, op, do)
	})
}

// intended calls do, which makes a volume, with an intent. If do fails, discard destroys the snapshot origin that was
// taken for the volume; it is nil without such a snapshot. known reports whether it is known if the volume was made.
func (b *Backend) intended(ctx context.Context, name, origin string, discard func(context.Context) error, do func(intended time.Time) (known func() bool, err error)) error {
	intended := time.Now()
	if err := b.intend(ctx, name, origin); err != nil {
		return err
	}
	known, err := do(intended)
	return errors.Join(err, b.after(err, func() error {
		if err != nil && discard != nil {
			if err := discard(ctx); err != nil { // the record stays, so that the next start does it
				return err
			}
		}
		if known() { // otherwise the record stays, so that the next start looks at the dataset
			b.forget(name)
		}
		return nil
	}))
}

// makeIntended makes the dataset of a volume that has an intent.
func (b *Backend) makeIntended(ctx context.Context, c *claim, intended time.Time, op string, do func(kernel) error) (known func() bool, err error) {
	isKnown := true
	err = b.act(ctx, step{
		op: op,
		do: do,
		happened: func(ctx context.Context) (happened bool, err error) {
			happened, err = b.isMade(ctx, c.name, intended)
			isKnown = err == nil
			return happened, err
		},
		undo: func(ctx context.Context) error { return b.discard(ctx, b.datasetOf(c.name)) },
	})
	return func() bool { return isKnown }, err
}

// isMade reports whether a claimed volume was made completely. It destroys a half-made volume.
func (b *Backend) isMade(ctx context.Context, name string, intended time.Time) (bool, error) {
	there, err := b.zfs.exists(ctx, b.datasetOf(name))
	if err != nil || !there {
		return false, err
	}
	b.volumes.doubt()
	d, ok, err := b.volumes.get(ctx, name)
	if err != nil || !ok || !isHalfMade(d, intended) {
		return ok && d.marked, err
	}
	err = b.discard(ctx, b.datasetOf(name))
	b.volumes.doubt()
	return false, err
}

// createStaged makes a volume, and gives its root directory an owner.
func (b *Backend) createStaged(ctx context.Context, c *claim, opts cowcommon.VolumeOptions) error {
	return b.stage(ctx, c, func(staged string, discard func(context.Context) error) error {
		return b.act(ctx, step{
			op:       "create",
			do:       func(k kernel) error { return k.Create(staged, properties(opts.Limit)) },
			happened: func(context.Context) (bool, error) { return false, nil }, // if it has, it may lack properties
			undo:     discard,
		})
	}, func(staged string) error {
		dir := filepath.Join(b.views, filepath.Base(staged))
		if err := b.mountAt(ctx, staged, dir, 0, ""); err != nil {
			return err
		}
		// Unmounting writes everything back.
		own := func() error { return os.Chown(dir, opts.UID, opts.GID) }
		return errors.Join(b.explainSpace(ctx, b.zfs.ask(ctx, "chown", own)), b.unmountAt(ctx, dir, false))
	})
}

// stage makes a dataset under a name that no volume can have, completes it, and gives it the claimed name. discard
// destroys the dataset.
func (b *Backend) stage(ctx context.Context, c *claim, create func(staged string, discard func(context.Context) error) error, complete func(staged string) error) (err error) {
	name, unlock, err := b.lockStaged(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.after(err, unlock)) }()
	staged := b.datasetOf(name)
	discard := func(ctx context.Context) error { return b.discardTree(ctx, staged) }
	return staging.Make(staging.Steps{
		Create:   func() error { return create(staged, discard) },
		Complete: func() error { return complete(staged) },
		Publish: func() error {
			dataset := b.datasetOf(c.name)
			err := b.act(ctx, step{
				op:       "rename",
				do:       func(k kernel) error { return k.Rename(staged, dataset) },
				happened: b.isGone(staged), // only the rename can have taken it away
				undo:     func(ctx context.Context) error { return b.discardTree(ctx, dataset) },
			})
			if err != nil {
				return b.explainSpace(ctx, err) // before Discard makes room
			}
			return nil
		},
		Discard: func(cause error) error { return b.after(cause, func() error { return discard(ctx) }) },
	})
}

// lockStaged returns a new name for a dataset in staging, which is locked. Others see by the lock that it is not left over.
func (b *Backend) lockStaged(ctx context.Context) (name string, unlock func() error, err error) {
	name = staging.Name(stagingPrefix)
	lock, ok, err := b.claimVolume(ctx, name)
	if err != nil {
		return "", nil, err
	}
	if !ok {
		return "", nil, inuse.ByAnotherProcess(name)
	}
	return name, func() error { return lock.Unlock(nil) }, nil
}

// checkFree checks whether a new volume could have that name. The kernel decides in the end, but nothing else should be
// changed in vain before that. Returns errdefs.ErrAlreadyExists if the name is taken.
func (b *Backend) checkFree(ctx context.Context, name string) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	if most := zfsctl.MaxName - len(b.datasetOf("")) - len("@"+viewPrefix+staging.Name("")); len(name) > most {
		return fault.New(errdefs.ErrInvalidArgument, "layer id %.32q… has %d bytes, more than the %d for which names in %s leave room", name, len(name), most, b.root)
	}
	d, taken, err := b.volumes.get(ctx, name)
	if taken { // the process that removed it may have been killed before it told others
		if taken, err = b.zfs.exists(ctx, b.datasetOf(name)); !taken {
			b.volumes.invalidate()
		}
	}
	switch {
	case err != nil:
		return err
	case taken && !d.own:
		return fault.New(errdefs.ErrAlreadyExists, "dataset %s is there and was not made by Cowshed", b.datasetOf(name))
	case taken:
		return errdefs.ErrAlreadyExists
	}
	return nil
}

// explain adds the reason to the error of a call that was to make the volume name: the name is taken, source is gone, or
// space is lacking. source is the volume from which the call was to make it, or "".
func (b *Backend) explain(ctx context.Context, err error, name, source string) error {
	if !isRefused(err) {
		return err
	}
	b.volumes.invalidate()
	switch {
	case errors.Is(err, unix.EEXIST):
		if freeErr := b.checkFree(ctx, name); errdefs.IsAlreadyExists(freeErr) {
			return fmt.Errorf("%w: %w", freeErr, err)
		}
	case errors.Is(err, unix.ENOENT) && source != "":
		if _, sourceErr := b.volume(ctx, source); errdefs.IsNotFound(sourceErr) {
			return fmt.Errorf("%w: %w", sourceErr, err)
		}
	}
	return b.explainSpace(ctx, err)
}

// Clone makes name a clone of the snapshot that seals source, with one call, and a second one if source has to be sealed
// first. Returns errdefs.ErrInvalidArgument if the clone exceeds the limit, with the content of source if that counts.
func (b *Backend) Clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) error {
	return fault.WrapWith("clone volume", name, fault.From(source), b.clone(ctx, name, source, opts))
}

func (b *Backend) clone(ctx context.Context, name, source string, opts cowcommon.VolumeOptions) (err error) {
	if err := opts.CheckRoot(); err != nil {
		return err
	}
	c, err := b.claimNew(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	return b.seals().Clone(ctx, source, func(origin string) error {
		err := b.make(ctx, c, "clone", func(k kernel) error {
			return k.Clone(b.datasetOf(name), origin, properties(opts.Limit))
		})
		if err != nil {
			return b.explain(ctx, b.explainLimit(ctx, err, b.datasetOf(source), opts.Limit), name, source)
		}
		b.volumes.set(name, dataset{origin: origin, limit: opts.Limit, created: time.Now(), marked: true, own: true})
		return nil
	})
}

// explainMissing adds the reason to the error of a call about a volume: errdefs.ErrNotFound if the volume is gone, or the
// lack of space.
func (b *Backend) explainMissing(ctx context.Context, err error, name string) error {
	if !isRefused(err) {
		return err
	}
	b.volumes.invalidate()
	if _, missing := b.volume(ctx, name); errdefs.IsNotFound(missing) {
		return fmt.Errorf("%w: %w", missing, err)
	}
	return b.explainSpace(ctx, err)
}

// Rename gives another name to a volume that nobody uses.
func (b *Backend) Rename(ctx context.Context, name, to string) error {
	return fault.WrapWith("rename volume", name, fault.To(to), b.rename(ctx, name, to))
}

func (b *Backend) rename(ctx context.Context, name, to string) (err error) {
	if _, err := b.volume(ctx, name); err != nil {
		return err
	}
	target, err := b.claimNew(ctx, to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.done(err)) }()
	c, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	if err := b.checkIdle(ctx, name); err != nil {
		return err
	}
	dead, err := b.endDeadViews(ctx, name)
	if err != nil {
		return err
	}
	if err := b.checkSnapshotsNotMounted(name); err != nil {
		return err
	}
	for _, snapshot := range dead.snapshots {
		if err := b.discard(ctx, snapshot); err != nil {
			return fmt.Errorf("destroy the snapshot of a dead view: %w", err)
		}
	}
	if err := b.forgetViews(ctx, dead); err != nil {
		return err
	}
	if err := b.renameDataset(ctx, name, to); err != nil {
		return b.explain(ctx, err, to, name)
	}
	b.volumes.changed(func(datasets map[string]dataset) {
		if d, ok := datasets[name]; ok {
			datasets[to] = d
			delete(datasets, name)
		}
		b.renameOrigins(datasets, name, to)
	})
	return nil
}

// renameDataset renames the dataset of a claimed volume.
func (b *Backend) renameDataset(ctx context.Context, name, to string) error {
	return b.act(ctx, step{
		op: "rename",
		do: func(k kernel) error { return k.Rename(b.datasetOf(name), b.datasetOf(to)) },
		happened: func(ctx context.Context) (bool, error) {
			gone, err := b.isGone(b.datasetOf(name))(ctx)
			if err != nil || !gone {
				return false, err
			}
			return b.zfs.exists(ctx, b.datasetOf(to))
		},
	})
}

// renameOrigins notes that a dataset was renamed, from which others were cloned.
func (b *Backend) renameOrigins(datasets map[string]dataset, name, to string) {
	for other, d := range datasets {
		if snapshot, ok := strings.CutPrefix(d.origin, b.datasetOf(name)+"@"); ok {
			d.origin = b.datasetOf(to) + "@" + snapshot
			datasets[other] = d
		}
	}
}

// Remove destroys a volume's dataset and Cowshed's own snapshots of it, in one step. If the volume has clones, its dataset
// is set aside, and is destroyed with the last of them. Returns errdefs.ErrFailedPrecondition if the volume is in use, or
// if datasets or snapshots of others depend on it. The error names these.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return fault.Wrap("remove volume", name, b.remove(ctx, name))
}

func (b *Backend) remove(ctx context.Context, name string) (err error) {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	d, ok, err := b.look(ctx, name)
	if err != nil || !ok {
		return err
	}
	if !d.own {
		return fault.New(errdefs.ErrFailedPrecondition, "dataset %s was not made by Cowshed", b.datasetOf(name))
	}
	c, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.done(err)) }()
	_, err = c.move(ctx, sealing.Doomed)
	return err
}

// Stat describes a volume from memory.
func (b *Backend) Stat(ctx context.Context, name string) (cowcommon.Volume, error) {
	d, err := b.volume(ctx, name)
	if err != nil {
		return cowcommon.Volume{}, fault.Wrap("stat volume", name, err)
	}
	parent := b.parentOf(d, nil)
	if d.parent != 0 {
		err = b.volumes.with(ctx, func(datasets map[string]dataset) { parent = b.parentOf(d, byGUID(datasets)) })
	}
	return b.describe(name, parent, d), fault.Wrap("stat volume", name, err)
}

func (b *Backend) describe(name, parent string, d dataset) cowcommon.Volume {
	return cowcommon.Volume{
		Name:    name,
		Parent:  parent,
		Sealed:  d.sealed,
		Limit:   d.limit,
		Created: d.created,
		Details: map[string]string{
			"Dataset":    b.datasetOf(name),
			"Mountpoint": b.mountpoint(name),
			"Origin":     d.origin,
		},
	}
}

// parentOf is the volume that a dataset was cloned from, or the recorded parent of an adopted one; "" if there is no such
// volume.
func (b *Backend) parentOf(d dataset, byGUID map[uint64]string) string {
	if d.adopted {
		return byGUID[d.parent]
	}
	parent, ok := strings.CutPrefix(sourceOf(d.origin), b.root+"/")
	if !ok || strings.Contains(parent, "/") || isAside(parent) {
		return ""
	}
	return parent
}

// byGUID maps the numbers of volumes to their names.
func byGUID(datasets map[string]dataset) map[uint64]string {
	names := make(map[uint64]string, len(datasets))
	for name, d := range datasets {
		if d.own && d.guid != 0 {
			names[d.guid] = name
		}
	}
	return names
}

// Volumes lists the volumes, from the kernel, and so with changes that were made by hand. Other operations do not wait for
// the list.
func (b *Backend) Volumes(ctx context.Context) iter.Seq2[cowcommon.Volume, error] {
	return func(yield func(cowcommon.Volume, error) bool) {
		datasets, err := b.volumes.fresh(ctx)
		if err != nil {
			yield(cowcommon.Volume{}, fault.Wrap("list volumes", "", err))
			return
		}
		names := byGUID(datasets)
		for name, d := range datasets {
			if d.own && !yield(b.describe(name, b.parentOf(d, names), d), nil) {
				return
			}
		}
	}
}

// Usage returns the size of a dataset's data, which the pool counts. The count lags behind writes by up to a
// transaction group, five seconds by default.
func (b *Backend) Usage(ctx context.Context, name string) (quota.Usage, error) {
	usage, err := b.usage(ctx, name)
	return usage, fault.Wrap("measure volume", name, err)
}

func (b *Backend) usage(ctx context.Context, name string) (quota.Usage, error) {
	if _, err := b.volume(ctx, name); err != nil {
		return quota.Usage{}, err
	}
	d, err := b.stats(ctx, b.datasetOf(name))
	if err != nil {
		return quota.Usage{}, b.explainMissing(ctx, err, name)
	}
	used, ok1 := d.Properties.Number("used")
	referenced, ok2 := d.Properties.Number("referenced")
	if !ok1 || !ok2 {
		return quota.Usage{}, fmt.Errorf("zfs get: %s has no size", b.datasetOf(name))
	}
	return quota.Usage{Bytes: used, Total: referenced}, nil
}

// stats asks the kernel about a dataset.
func (b *Backend) stats(ctx context.Context, dataset string) (zfsctl.Dataset, error) {
	return read(ctx, b.zfs, "get", func(k kernel) (zfsctl.Dataset, error) { return k.Stats(dataset) })
}

// SetLimit replaces a volume's limit. Returns errdefs.ErrFailedPrecondition if the volume already has more data than
// the limit, which ZFS does not allow.
func (b *Backend) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	return fault.Wrap("limit volume", name, b.setLimit(ctx, name, limit))
}

func (b *Backend) setLimit(ctx context.Context, name string, limit quota.Limit) error {
	return b.limiting(ctx, name, func(context.Context) error { return b.replaceLimitOf(ctx, name, limit) })
}

// limiting calls do, which changes the limit of a volume. Nobody else does so meanwhile, so that the last limit to be set
// is the last to be told. Waits for others in do end with the context waiting.
func (b *Backend) limiting(ctx context.Context, name string, do func(waiting context.Context) error) (err error) {
	waiting, cancel, err := b.zfs.waiting(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	unlock, err := b.claimLimit(waiting, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.after(err, unlock)) }()
	if _, err := b.volume(ctx, name); err != nil {
		return err
	}
	// Otherwise a call that is late could reach another volume, which has the name by then.
	done, err := b.rely(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.after(err, done)) }()
	return do(waiting)
}

func (b *Backend) replaceLimitOf(ctx context.Context, name string, limit quota.Limit) error {
	// A limit that a Settle was cut off with is back first, so that the next Settle does not bring it back.
	if err := b.restoreQuota(ctx, b.datasetOf(name)); err != nil {
		return b.explainMissing(ctx, err, name)
	}
	d, err := b.volume(ctx, name)
	if err != nil {
		return err
	}
	set := func(limit quota.Limit) step {
		return step{
			op: "set",
			do: func(k kernel) error { return k.Set(b.datasetOf(name), replaceLimit(limit)) },
			happened: func(ctx context.Context) (bool, error) {
				b.volumes.doubt()
				d, ok, err := b.volumes.get(ctx, name)
				return ok && d.limit == limit, err
			},
		}
	}
	err = b.act(ctx, set(limit))
	if err == nil {
		b.volumes.update(name, func(d *dataset) { d.limit = limit })
		return nil
	}
	if !isRefused(err) && !isLost(err) {
		return b.explainLimited(ctx, err, name, limit)
	}
	return errors.Join(b.explainLimited(ctx, err, name, limit), b.after(err, func() error {
		// The kernel may have set one of two properties.
		b.volumes.doubt()
		ctx, cancel := b.zfs.later(ctx)
		defer cancel()
		there, err := b.zfs.exists(ctx, b.datasetOf(name))
		if there {
			err = b.act(ctx, set(d.limit))
		}
		if isRefused(err) && errors.Is(err, unix.ENOENT) { // it has gone, with its limits
			return nil
		}
		return err
	}))
}
