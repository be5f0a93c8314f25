package sharedroot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// longestRead is the default of Options.LongestRead.
const longestRead = 50 * time.Millisecond

// ReadUnused implements cowcommon.UnusedReader for shared volumes over base, where volumes have paths. The tree is an overlay
// that is mounted nowhere, so a crash leaves nothing.
//
// The volume is claimed meanwhile, so that nobody mounts it through this package. A program that has asked for its MountSpec
// before can still mount it. This is found out afterwards.
func (b *Backend) ReadUnused(ctx context.Context, name, base string, do func(ctx context.Context, top, base cowcommon.View) error) error {
	return fault.Wrap("read volume", name, b.readUnused(ctx, name, base, do))
}

func (b *Backend) readUnused(ctx context.Context, name, base string, do func(ctx context.Context, top, base cowcommon.View) error) (err error) {
	if !b.keepsPaths || b.opts.ReadOnly {
		return fault.New(errdefs.ErrNotImplemented, "it has no path of its own")
	}
	unlock, err := b.lock(ctx, shared(name))
	if err != nil {
		return err
	}
	defer unlock()
	noted, err := b.index.lower(name)
	if err != nil {
		return err
	}
	if noted == "" || noted != base {
		return errNotOver(base)
	}
	below, err := b.Backend.View(ctx, base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, below.Close()) }()
	return b.Alone(ctx, name, func(root *os.File) error {
		switch s, _, err := inspectNoted(root, noted); {
		case err != nil:
			return err
		case s != stateShared:
			return errNotOver(base)
		}
		return b.whileUnused(root, func() error {
			ctx, cancel := context.WithTimeout(ctx, cmp.Or(b.opts.LongestRead, longestRead))
			defer cancel()
			return b.readTree(ctx, root, name, base, below, do)
		})
	})
}

func errNotOver(base string) error {
	return fault.New(errdefs.ErrNotImplemented, "its root is not shared over volume %s", base)
}

// readTree calls do with views of the volume whose root is open, and of base.
func (b *Backend) readTree(
	ctx context.Context, root *os.File, name, base string, below cowcommon.View, do func(ctx context.Context, top, base cowcommon.View) error,
) error {
	has, err := b.supported()
	if err != nil {
		return err
	}
	lower, err := openRoot(below.Dir())
	if err != nil {
		return err
	}
	defer lower.Close()
	// fsconfig(2) takes at most 255 bytes, and a home may have a long path.
	options, err := mountOptions(layerOf(lower, "."), layerOf(root, upperOf(".")), "", has)
	if err != nil {
		return err
	}
	mnt, err := mountDetached(options)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	tree := openTree(root.Name())
	over := &overlay{point: treeat.ProcPath(mnt, "."), lower: base, tree: tree, below: below}
	left := func() error { return nil } // the caller of do closes both
	return do(ctx, &view{b: b, volume: name, tree: tree, over: over, close: left}, &view{b: b, volume: base, tree: below, close: left})
}

// layerOf is a short path of a layer below an open directory.
func layerOf(dir *os.File, name string) string { return treeat.ProcPath(int(dir.Fd()), name) }

// openTree is the tree of a volume that somebody has claimed.
type openTree string

// Dir is the path of the tree.
func (t openTree) Dir() string { return string(t) }

// Close does nothing.
func (t openTree) Close() error { return nil }

// whileUnused calls do, and returns fault.ErrInUse if an overlay of the volume whose root is open was mounted before its
// end. The work of do counts for nothing then.
func (b *Backend) whileUnused(root *os.File, do func() error) error {
	before, err := lastMount(root)
	if err != nil {
		return err
	}
	if err := b.checkNoUpper(root); err != nil {
		return err
	}
	err = do()
	after, lookErr := lastMount(root)
	if lookErr == nil && after != before {
		lookErr = fault.New(fault.ErrInUse, "it was mounted meanwhile")
	}
	return errors.Join(err, lookErr)
}

// scratchPrefix begins the names of directories of checkNoUpper. No volume has such a name.
const scratchPrefix = "@upper-"

// checkNoUpper checks that no overlay has the upper of a volume, not even an overlay that is mounted nowhere and has open files.
// With index=on the kernel refuses such an upper as a layer of another overlay. The latter keeps its own files in memory, is
// mounted nowhere, and ends at once.
func (b *Backend) checkNoUpper(root *os.File) (err error) {
	if err := b.makeRoots(); err != nil {
		return err
	}
	scratchDir, err := os.MkdirTemp(b.roots, scratchPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratchDir)) }()
	scratch, err := openRoot(scratchDir)
	if err != nil {
		return err
	}
	defer scratch.Close()
	upper, work := layerOf(scratch, upperName), layerOf(scratch, workName)
	if err := errors.Join(os.Mkdir(upper, dirMode), os.Mkdir(work, dirMode)); err != nil {
		return err
	}
	mnt, err := mountDetached([]string{"lowerdir=" + layerOf(root, upperOf(".")), "upperdir=" + upper, "workdir=" + work, "index=on"})
	if errors.Is(err, unix.EBUSY) {
		return fault.New(fault.ErrInUse, "an overlay has its upper")
	}
	if err != nil {
		return fmt.Errorf("look for its overlays: %w", err)
	}
	return unix.Close(mnt)
}

// removeScratch removes directories of checkNoUpper that a crash has left.
func (b *Backend) removeScratch() error {
	left, err := filepath.Glob(filepath.Join(b.roots, scratchPrefix+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// mountMark identifies a mount of an overlay.
type mountMark struct {
	inode   uint64
	changed unix.Timespec
}

// lastMount is the mark of the last overlay of a volume that could be written to. The kernel makes a directory in the work
// directory for each, in place of that of the overlay before. Without it there was none.
func lastMount(root *os.File) (m mountMark, err error) {
	path := sharedmark.Dir + "/" + workName + "/work"
	var st unix.Stat_t
	err = treeat.Lstat(int(root.Fd()), path, &st)
	if errors.Is(err, unix.ENOENT) {
		return mountMark{}, nil
	}
	if err != nil {
		return mountMark{}, fmt.Errorf("look for mounts: %w", &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	return mountMark{st.Ino, st.Ctim}, nil
}
