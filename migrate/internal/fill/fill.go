// Package fill gives new volumes the content of layers of old graph roots.
package fill

import (
	"context"
	"errors"
	"hash"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/trees"
	"github.com/cowshed/cowshed/quota"
)

// Report says how the data came.
type Report struct {
	How    migrate.How
	Copied int64 // bytes
}

// Volume describes a volume to be made.
type Volume struct {
	Name   string
	Parent string // "": none
	Limit  quota.Limit
	// Partial is the name of the volume until it is complete. The next user of the home removes remains of that name.
	Partial string
	Logger  *slog.Logger
	// Complete is called with the name before the volume gets its own, for a check, and with how the data came; nil:
	// nothing is.
	Complete func(ctx context.Context, name string, how migrate.How) error
}

// Make makes a volume from the content of a layer. After an error the volume is not there. When Make returns without an
// error, all of the volume survives a power cut. Returns ErrAlreadyExists if there is a volume of that name.
func Make(ctx context.Context, backend cowcommon.Backend, content *migrate.Content, v Volume) (_ Report, err error) {
	report, err := made(ctx, backend, content, v)
	if err == nil && v.Complete != nil {
		err = v.Complete(ctx, v.Partial, report.How)
	}
	if err == nil {
		err = cowcommon.Rename(ctx, backend, v.Partial, v.Name)
	}
	if err != nil {
		err = errors.Join(err, backend.Remove(context.WithoutCancel(ctx), v.Partial))
	}
	return report, fault.Wrap("make layer", v.Name, err)
}

// made makes the volume under its partial name.
func made(ctx context.Context, backend cowcommon.Backend, content *migrate.Content, v Volume) (Report, error) {
	if content.Form == migrate.Whole && content.Volume != "" {
		err := cowcommon.Adopt(ctx, backend, v.Partial, v.Parent, sourceOf(content), cowcommon.VolumeOptions{Limit: v.Limit})
		if !errdefs.IsNotImplemented(err) {
			return Report{How: migrate.Cloned}, err
		}
		v.log().Debug("the layer's volume cannot be cloned, copying it", "layer", v.Name, "reason", err)
	}
	var err error
	if v.Parent == "" {
		err = backend.Create(ctx, v.Partial, cowcommon.VolumeOptions{})
	} else {
		err = backend.Clone(ctx, v.Partial, v.Parent, cowcommon.VolumeOptions{RootStyle: cowcommon.SnapshotRoot})
	}
	if err != nil {
		return Report{}, err
	}
	report, err := mounted(ctx, backend, content, v)
	// The limit comes last: it may be less than the layer has already.
	if err == nil && v.Limit != (quota.Limit{}) {
		err = cowcommon.SetLimit(ctx, backend, v.Partial, v.Limit)
	}
	return report, err
}

// sourceOf is where a Backend finds the volume of a layer.
func sourceOf(content *migrate.Content) string {
	if filepath.IsAbs(content.Volume) {
		return path(content.Dir) // another directory may have that path now
	}
	return content.Volume
}

func (v Volume) log() *slog.Logger {
	if v.Logger == nil {
		return slog.Default()
	}
	return v.Logger
}

// mounted fills the volume, which is a clone of its parent, or empty.
func mounted(ctx context.Context, backend cowcommon.Backend, content *migrate.Content, v Volume) (_ Report, err error) {
	path, err := backend.Mount(ctx, v.Partial, "")
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, backend.Unmount(context.WithoutCancel(ctx), v.Partial)) }()
	dir, err := os.Open(path)
	if err != nil {
		return Report{}, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	report, err := Into(ctx, dir, content, v.log())
	if err != nil {
		return Report{}, err
	}
	return report, backend.Sync(ctx, v.Partial)
}

// Into gives the tree at dir the content of a layer. The tree is like that of the layer below, or empty if there is
// none. Nothing is synced.
func Into(ctx context.Context, dir *os.File, content *migrate.Content, log *slog.Logger) (Report, error) {
	opts := treecopy.Options{Logger: log}
	var report treecopy.Report
	var err error
	switch content.Form {
	case migrate.Overlay:
		report, err = treecopy.Merge(ctx, dir, content.Dir, treecopy.OverlayMarks, opts)
	case migrate.FuseOverlay:
		report, err = treecopy.Merge(ctx, dir, content.Dir, treecopy.FuseOverlayMarks, opts)
	case migrate.Aufs:
		report, err = treecopy.Merge(ctx, dir, content.Dir, treecopy.AufsMarks, opts)
	case migrate.Whole:
		changes, changesErr := trees.Changes(ctx, content.Dir, dir)
		if changesErr != nil {
			return Report{}, changesErr
		}
		report, err = treecopy.Copy(ctx, dir, content.Dir, changes, opts)
	default:
		return Report{}, fault.New(errdefs.ErrNotImplemented, "content in the form %q", content.Form)
	}
	how := migrate.Reflinked
	if report.Copied > 0 {
		how = migrate.Copied
	}
	return Report{How: how, Copied: report.Copied}, err
}

// openView opens the directory of a view, or nil for none.
func openView(view cowcommon.View) (*os.File, error) {
	if view == nil {
		return nil, nil
	}
	return os.Open(view.Dir())
}

// withTrees calls do with the trees of a volume and of the one below, nil for none.
func withTrees(ctx context.Context, backend cowcommon.Backend, name, parent string, do func(got, base *os.File) error) (err error) {
	top, err := backend.View(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	var below cowcommon.View
	if parent != "" {
		if below, err = backend.View(ctx, parent); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, below.Close()) }()
	}
	got, err := openView(top)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, got.Close()) }()
	base, err := openView(below)
	if err != nil {
		return err
	}
	if base != nil {
		defer func() { err = errors.Join(err, base.Close()) }()
	}
	return do(got, base)
}

// Verify compares a volume with the content that it was made of. Returns ErrDataLoss with the first difference.
func Verify(ctx context.Context, backend cowcommon.Backend, name, parent string, content *migrate.Content) error {
	if content.Form == migrate.Whole {
		parent = ""
	}
	return withTrees(ctx, backend, name, parent, func(got, base *os.File) error { return VerifyDir(ctx, got, base, content) })
}

// VerifyTar compares a volume with the tar of its layer, which write writes. Returns ErrDataLoss if the tar has another
// digest, or the volume anything that the tar does not have.
func VerifyTar(ctx context.Context, backend cowcommon.Backend, name, parent string, diffID digest.Digest, write func(w io.Writer) error) error {
	return withTrees(ctx, backend, name, parent, func(got, base *os.File) error { return VerifyDirTar(ctx, got, base, diffID, write) })
}

// VerifyDirTar is VerifyTar for the tree of a volume. base is the tree of the layer below, nil for none.
func VerifyDirTar(ctx context.Context, dir, base *os.File, diffID digest.Digest, write func(w io.Writer) error) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }() // never fails
	hash := digest.SHA256.Hash()
	tar := io.TeeReader(r, hash)
	differs := trees.VerifyTar(ctx, dir, base, tar)
	_, err := io.Copy(io.Discard, tar)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	if err := checkDigest(hash, diffID); err != nil {
		return err
	}
	return differs
}

func checkDigest(hash hash.Hash, diffID digest.Digest) error {
	if got := digest.NewDigest(digest.SHA256, hash); got != diffID {
		return fault.New(errdefs.ErrDataLoss, "the layer's tar has digest %s, not %s", got, diffID)
	}
	return nil
}

// VerifyDigest makes the tar of a volume whose layer's tar nobody has kept. Returns ErrDataLoss if it has another digest:
// the volume is another layer, or the tar was written in another way.
func VerifyDigest(ctx context.Context, backend cowcommon.Backend, name, parent string, diffID digest.Digest) error {
	return withTrees(ctx, backend, name, parent, func(got, base *os.File) error {
		changes, err := trees.Changes(ctx, got, base)
		if err != nil {
			return err
		}
		hash := digest.SHA256.Hash()
		if err := layertar.Write(ctx, hash, path(got), changes, layertar.WriteOptions{}); err != nil {
			return err
		}
		return checkDigest(hash, diffID)
	})
}

// VerifyDir compares a tree with the content that it was made of. base is the tree of the layer below, nil for none.
// Returns ErrDataLoss with the first difference.
func VerifyDir(ctx context.Context, dir, base *os.File, content *migrate.Content) error {
	return trees.Verify(ctx, dir, content.Dir, base, content.Form)
}

// path is a path by which others reach an open directory.
func path(f *os.File) string { return treeat.ProcPath(int(f.Fd()), ".") }
