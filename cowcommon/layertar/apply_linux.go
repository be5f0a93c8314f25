package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"

	"github.com/moby/go-archive"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// Apply applies an uncompressed layer tar to the tree at dir, by the rules of the package. It returns the sum of the
// sizes in the headers. It reads r up to the end of the archive and possibly further; the rest belongs to the caller.
//
// After an error the tree holds some part of the layer. Errors that an entry caused are [EntryError]s, which name the
// entry. Among them are [ErrMalformed], [ErrTooLarge] and errors of the kernel (unix.EDQUOT, unix.ENOSPC). When ctx
// ends, Apply stops before the next entry or megabyte of data, but not while it waits in a Read of r. Nothing is left
// running and no descriptor open.
//
// Nobody else may change the tree meanwhile.
func Apply(ctx context.Context, dir string, r io.Reader, opts ApplyOptions) (size int64, err error) {
	a, err := newApplier(ctx, dir, opts)
	if err != nil {
		return 0, fmt.Errorf("layertar: apply: %w", err)
	}
	defer a.close()
	size, err = a.run(r)
	if err != nil {
		return 0, fmt.Errorf("layertar: apply: %w", err)
	}
	a.setter.report(opts.Logger)
	if opts.Report != nil {
		*opts.Report = a.found
	}
	return size, nil
}

// applier applies one layer. One goroutine decides the meaning of entries, in the order of the tar: it resolves
// names, removes files that are in the way, and makes everything except regular files. A pool of workers makes these.
// Each worker knows the directory, and that the name is free. Steps that need a file wait for it.
type applier struct {
	opts   ApplyOptions
	userNS bool
	es     *entries
	dirs   *dirs
	pool   *pool
	setter setter
	plinks plinks
	size   int64
	found  ApplyReport
}

func newApplier(ctx context.Context, dir string, opts ApplyOptions) (*applier, error) {
	a := &applier{opts: opts, userNS: userns.RunningInUserNS()}
	a.setter.xattrs = opts.Xattrs
	workers := opts.Workers
	if workers <= 0 {
		workers = min(maxApplyWorkers, max(1, runtime.GOMAXPROCS(0)/2))
	}
	a.pool = newPool(ctx, workers, stages{create: a.createFile, fill: a.fillFile})
	var err error
	a.dirs, err = openRoot(dir, opts.Empty)
	if err != nil {
		a.pool.close()
		return nil, err
	}
	a.dirs.mkdir, a.dirs.settle = a.implied, a.pool.wait
	return a, nil
}

// maxApplyWorkers bounds the workers of each stage. Workers that create files all need the locks of one filesystem
// tree; workers that fill them mostly do not. So a pair of both gains, where two workers that do both only wait for
// each other. By default half of the processors have no pair. They read the tar, and do the filesystem's background
// work for each file (on btrfs about half as much as in the foreground).
const maxApplyWorkers = 4

func (a *applier) close() {
	a.pool.close()
	a.plinks.close()
	a.dirs.close()
}

func (a *applier) run(r io.Reader) (int64, error) {
	a.es = newEntries(a.pool.ctx, r, a.opts.LooseEnd)
	err := a.entries()
	if err == nil {
		err = a.pool.barrier()
	}
	if err == nil {
		err = a.finish()
	}
	if err != nil {
		// The error is that of the first entry that failed, in whichever order the workers noticed.
		var mine, theirs *EntryError
		if perr := a.pool.failure(); errors.As(perr, &theirs) && (!errors.As(err, &mine) || theirs.Index <= mine.Index) {
			return 0, perr
		}
		return 0, err
	}
	return a.size, nil
}

func (a *applier) entries() error {
	for {
		hdr, err := a.es.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.count(hdr); err != nil {
			return a.es.wrap(err)
		}
		if err := a.entry(hdr); err != nil {
			return a.es.wrap(err)
		}
	}
}

// count adds an entry to the size of the layer.
func (a *applier) count(hdr *tar.Header) error {
	switch {
	case hdr.Size < 0 || hdr.Size > math.MaxInt64-a.size:
		return fmt.Errorf("%w: size %d", ErrMalformed, hdr.Size)
	case hdr.Size > maxSparse && isSparse(hdr):
		return fmt.Errorf("%w: a sparse file of %d bytes", ErrMalformed, hdr.Size)
	}
	a.size += hdr.Size
	if a.opts.MaxBytes > 0 && a.size > a.opts.MaxBytes {
		return fmt.Errorf("%w: more than %d bytes", ErrTooLarge, a.opts.MaxBytes)
	}
	return nil
}

func (a *applier) entry(hdr *tar.Header) error {
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return nil // the root is not the layer's
	}
	if isCowshedName(name) {
		return ErrCowshedName
	}
	if strings.HasPrefix(name, archive.WhiteoutMetaPrefix) && name != archive.WhiteoutOpaqueDir {
		if strings.HasPrefix(name, archive.WhiteoutLinkDir) && hdr.Typeflag == tar.TypeReg {
			return a.keepPlink(name, hdr)
		}
		return nil
	}
	path, base := splitName(name)
	d, err := a.dirs.find(path, true)
	if err != nil {
		return err
	}
	if base == archive.WhiteoutOpaqueDir {
		return a.opaque(d)
	}
	if hidden, ok := strings.CutPrefix(base, archive.WhiteoutPrefix); ok {
		return a.whiteout(d, hidden)
	}
	return a.put(d, base, hdr)
}

// lookup describes a name, once it is no longer being written. Mode is 0 if it does not exist.
func (a *applier) lookup(d *dir, name string) (st unix.Stat_t, err error) {
	t, written := d.written[name]
	if d.fresh && !written {
		return st, nil
	}
	if err := a.pool.wait(t); err != nil {
		return st, err
	}
	fd, err := a.dirs.fd(d)
	if err != nil {
		return st, err
	}
	err = treeat.Lstat(fd, name, &st)
	if err == unix.ENOENT { //nolint:errorlint // a bare errno
		return unix.Stat_t{}, nil
	}
	if err != nil {
		err = fmt.Errorf("stat: %w", err)
	}
	return st, err
}

// remove removes a name of the given mode, 0 if it does not exist, and all that is below it.
func (a *applier) remove(d *dir, name string, mode uint32) error {
	if mode == 0 {
		return nil
	}
	a.overwrite(d, name)
	isDir := mode&unix.S_IFMT == unix.S_IFDIR
	if isDir {
		// Files may be on the way into it.
		if err := a.pool.barrier(); err != nil {
			return err
		}
		a.dirs.forget(d, name)
	}
	if isDir || mode&unix.S_IFMT == unix.S_IFLNK {
		a.dirs.forgetPaths()
	}
	fd, err := a.dirs.fd(d)
	if err != nil {
		return err
	}
	return treeat.RemoveTree(a.pool.ctx, fd, name)
}

// overwrite notes that a name is about to be replaced or removed.
func (a *applier) overwrite(d *dir, name string) {
	_, written := d.written[name]
	a.found.Overwritten = a.found.Overwritten || written || d.children[name] != nil || d.followed[name]
}

// finish sets attributes that have to wait until nothing more is made in a directory.
func (a *applier) finish() error {
	todo := []*dir{a.dirs.root}
	for len(todo) > 0 {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := a.pool.ctx.Err(); err != nil {
			return context.Cause(a.pool.ctx)
		}
		for _, c := range d.children {
			if c.late != nil {
				if err := a.finishDir(c); err != nil {
					return fmt.Errorf("directory %s: %w", treeat.Quote(c.path()), err)
				}
			}
			if len(c.children) > 0 {
				todo = append(todo, c)
			}
		}
	}
	return nil
}

func (a *applier) finishDir(d *dir) error {
	fd, err := a.dirs.fd(d.parent)
	if err != nil {
		return err
	}
	if acl := d.late.defaultACL; acl != nil {
		m := meta{xattrs: []xattr{*acl}}
		var st unix.Stat_t
		if err := treeat.Lstat(fd, d.name, &st); err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		m.uid, m.gid, m.mode = int(st.Uid), int(st.Gid), st.Mode&modeMask
		if err := a.setter.set(treeat.File{Dir: fd, Name: d.name, FD: -1}, &st, &m); err != nil {
			return err
		}
	}
	return a.setter.setTimes(treeat.File{Dir: fd, Name: d.name, FD: -1}, &d.late.times)
}
