package zfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// ZFS does not destroy a dataset while a clone of it exists. The dataset of a volume that is removed before its clones is
// set aside: it is renamed to a name that no volume can have, and goes with its last clone (destroy.lua). Until then
// nobody uses it but the kernel, for the clones.

// asideName is the dataset, below that of the Backend, of those that were set aside. So they cost nothing when volumes are
// listed. It is there while there are any. The kernel may refuse to move a dataset into it, for lack of space. Such a
// dataset stays beside it, under this name with a space and a random part.
const asideName = "cowshed removed"

// asideProperties are those of the dataset asideName. It is never mounted.
func asideProperties() zfsctl.Values {
	return zfsctl.Values{"mountpoint": "none", "canmount": zfsctl.CanMountOff, "com.sun:auto-snapshot": "false"}
}

// isAside reports whether the dataset of that name, below that of the Backend, was set aside.
func isAside(name string) bool {
	rest, ok := strings.CutPrefix(name, asideName)
	return ok && (strings.HasPrefix(rest, "/") || strings.HasPrefix(rest, " "))
}

// setAside sets the dataset of a claimed volume aside, because it has clones. The step that makes the volume disappear is
// the rename. If the last clone goes at the same time, or a crash follows, the dataset is destroyed at the next start.
func (b *Backend) setAside(ctx context.Context, c *claim) error {
	if err := b.checkIdle(ctx, c.name); err != nil {
		return err
	}
	to := asideName + "/" + staging.Name("")
	err := b.makeAside(ctx)
	if err == nil {
		err = b.renameDataset(ctx, c.name, to)
	}
	if isRefused(err) { // there is no space, or the last dataset in asideName has just gone, and asideName with it
		to = asideName + " " + staging.Name("")
		err = b.renameDataset(ctx, c.name, to)
	}
	if err != nil {
		err = b.explainMissing(ctx, err, c.name)
		return errors.Join(err, b.after(err, func() error { return b.discardEmptyAside(ctx) }))
	}
	b.volumes.changed(func(datasets map[string]dataset) {
		if d, ok := datasets[c.name]; ok {
			delete(datasets, c.name)
			if !strings.Contains(to, "/") {
				d.own = false
				datasets[to] = d
			}
		}
		b.renameOrigins(datasets, c.name, to)
	})
	if err := b.destroyAside(ctx, b.datasetOf(to)); err != nil { // the volume is gone nevertheless
		b.log.Warn("zfs: a removed volume is destroyed later", "volume", c.name, "dataset", b.datasetOf(to), "error", err)
	}
	return nil
}

// makeAside makes the dataset for those that are set aside, if it is not there.
func (b *Backend) makeAside(ctx context.Context) error {
	there, err := b.zfs.exists(ctx, b.datasetOf(asideName))
	if err != nil || there {
		return err
	}
	err = b.act(ctx, step{
		op:       "create",
		do:       func(k kernel) error { return k.Create(b.datasetOf(asideName), asideProperties()) },
		happened: b.isThere(b.datasetOf(asideName)), // without its properties it works as well
		undo:     b.discardEmptyAside,
	})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// discardEmptyAside destroys the dataset asideName, unless there are datasets in it.
func (b *Backend) discardEmptyAside(ctx context.Context) error {
	err := b.discard(ctx, b.datasetOf(asideName))
	if isRefused(err) {
		return nil
	}
	return err
}

// destroyAside destroys a dataset that was set aside, unless it has clones. Of one with clones it frees the data that no
// clone has.
func (b *Backend) destroyAside(ctx context.Context, dataset string) error {
	ctx, cancel := b.zfs.later(ctx)
	defer cancel()
	result, err := b.runDestroy(ctx, dataset, nil)
	switch {
	case err != nil:
		return err
	case result.errno == 0, result.errno == unix.ENOENT, result.errno == unix.EEXIST:
		return nil
	case len(result.blockers) > 0:
		return fault.New(fault.ErrInUse, "%s depend on it", result.names())
	}
	return &zfsctl.Error{Op: "destroy", Name: result.busy, Err: result.errno}
}

// asides lists the datasets that were set aside. datasets are those directly below the dataset of the Backend.
func (b *Backend) asides(ctx context.Context, datasets map[string]dataset) ([]zfsctl.Dataset, error) {
	asides, err := read(ctx, b.zfs, "list", func(k kernel) (in []zfsctl.Dataset, err error) {
		for d, err := range k.Children(b.datasetOf(asideName)) { // none if there is no such dataset
			if err != nil {
				return nil, err
			}
			in = append(in, d)
		}
		return in, nil
	})
	if err != nil {
		return nil, err
	}
	for name := range datasets {
		if !isAside(name) {
			continue
		}
		d, err := b.stats(ctx, b.datasetOf(name))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		asides = append(asides, d)
	}
	return asides, nil
}

// originsOf are the snapshots from which these datasets were cloned, and those that were set aside.
func originsOf(datasets map[string]dataset, asides []zfsctl.Dataset) map[string]bool {
	origins := make(map[string]bool)
	for _, d := range datasets {
		origins[d.origin] = true
	}
	for _, d := range asides {
		origins[d.Origin] = true
	}
	return origins
}

// destroyUnneeded destroys the datasets that were set aside and from which none of these datasets was cloned, directly or
// through other clones. Such datasets are left by a crash, or when others have destroyed or promoted a clone.
func (b *Backend) destroyUnneeded(ctx context.Context, datasets map[string]dataset, warn func(what string, err error)) error {
	asides, err := b.asides(ctx, datasets)
	if err != nil {
		return err
	}
	needed := make(map[string]bool)
	for origin := range originsOf(datasets, asides) {
		needed[sourceOf(origin)] = true
	}
	for _, d := range asides {
		if needed[d.Name] {
			continue
		}
		if err := b.destroyAside(ctx, d.Name); err != nil {
			warn(d.Name, err)
		}
	}
	if len(asides) > 0 {
		return nil
	}
	// A crash may have left it empty, and without its properties.
	name := b.datasetOf(asideName)
	there, err := b.zfs.exists(ctx, name)
	if err != nil || !there {
		return err
	}
	if err := errors.Join(b.unmountDataset(ctx, name), b.discardEmptyAside(ctx)); err != nil {
		warn(name, err)
	}
	return nil
}

// sourceOf is the dataset of a snapshot.
func sourceOf(snapshot string) string {
	dataset, _, _ := strings.Cut(snapshot, "@")
	return dataset
}

// Retained implements cowcommon.Retainer with the datasets that were set aside.
func (b *Backend) Retained(ctx context.Context) (cowcommon.Retained, error) {
	retained, err := b.retained(ctx)
	return retained, fault.Wrap("measure removed volumes", "", err)
}

func (b *Backend) retained(ctx context.Context) (retained cowcommon.Retained, err error) {
	datasets, err := b.volumes.all(ctx)
	if err != nil {
		return cowcommon.Retained{}, err
	}
	asides, err := b.asides(ctx, datasets)
	if err != nil {
		return cowcommon.Retained{}, err
	}
	for _, d := range asides {
		used, _ := d.Properties.Number("used")
		retained.Volumes++
		retained.Bytes += used
	}
	return retained, nil
}

// Examine implements cowcommon.Examiner: it reports the space of removed volumes.
func (b *Backend) Examine(ctx context.Context) []cowcommon.Finding {
	f := cowcommon.Finding{Verdict: cowcommon.OK, Check: "removed layers"}
	retained, err := b.Retained(ctx)
	switch {
	case err != nil:
		f.Verdict, f.Detail = cowcommon.Fail, err.Error()
	case retained.Volumes == 0:
		return nil
	default:
		f.Detail = fmt.Sprintf("%d keep %s until the layers made from them are removed", retained.Volumes, quota.FormatSize(retained.Bytes))
	}
	return []cowcommon.Finding{f}
}
