package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

// liftedNotes begins the names of symbolic links in the index. Their targets are the limits of volumes that are lifted for
// a fold. No volume has such a name.
const liftedNotes = ".limit-"

// foldUnlimited calls fold, and again without the limit of the volume if the limit is in the way: renames take space. A
// crash leaves the limit in the index.
func (b *Backend) foldUnlimited(ctx context.Context, name string, fold func() error) error {
	err := fold()
	if !errors.Is(err, unix.EDQUOT) {
		return errors.Join(err, b.restoreLimit(b.ctx, name)) // of a fold that a crash has interrupted
	}
	v, statErr := b.Backend.Stat(ctx, name)
	if statErr != nil || v.Limit.Bytes == 0 {
		return errors.Join(err, statErr) // the limit of somebody else
	}
	if err := b.index.noteLimit(name, v.Limit); err != nil {
		return err
	}
	if err = cowcommon.SetLimit(ctx, b.Backend, name, quota.Limit{}); err == nil {
		err = fold()
	}
	return errors.Join(err, b.restoreLimit(b.ctx, name))
}

// restoreLimit gives a volume the limit that was lifted for a fold, if there is a note of it.
func (b *Backend) restoreLimit(ctx context.Context, name string) error {
	limit, err := b.index.limit(name)
	if err != nil || limit.Bytes == 0 {
		return err
	}
	if err := cowcommon.SetLimit(ctx, b.Backend, name, limit); err != nil && !isGone(err) {
		return err
	}
	return b.index.forget(liftedNotes + name)
}

// restoreLimits does so for all volumes, after a crash.
func (b *Backend) restoreLimits(ctx context.Context) {
	notes, err := filepath.Glob(filepath.Join(b.index.dir, liftedNotes+"*"))
	for _, note := range notes {
		name := strings.TrimPrefix(filepath.Base(note), liftedNotes)
		err = errors.Join(err, b.restoreLimit(ctx, name))
	}
	if err != nil {
		b.log.Warn("shared roots: the limits of volumes are not restored", "error", err)
	}
}

func (x index) noteLimit(name string, limit quota.Limit) error {
	err := os.Symlink(fmt.Sprintf("%d %s", limit.Bytes, limit.Scope), filepath.Join(x.dir, liftedNotes+name))
	if errors.Is(err, fs.ErrExist) {
		return nil // of an earlier fold, and not restored since
	}
	return err
}

// limit reads the limit that is noted for a volume, the zero Limit if there is none.
func (x index) limit(name string) (limit quota.Limit, err error) {
	note, err := os.Readlink(filepath.Join(x.dir, liftedNotes+name))
	if errors.Is(err, fs.ErrNotExist) {
		return limit, nil
	}
	if err != nil {
		return limit, err
	}
	var scope string
	if _, err := fmt.Sscanf(note, "%d %s", &limit.Bytes, &scope); err != nil {
		return limit, fmt.Errorf("noted limit of volume %s: %w", name, err)
	}
	limit.Scope, err = quota.ParseScope(scope)
	return limit, err
}
