package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
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
		b.restoreLimitAfter(name) // of a fold that a crash has interrupted
		return err
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
	b.restoreLimitAfter(name)
	return err
}

// restoreLimitAfter restores a limit after the fold of a volume, which has happened or not. If that fails, the note stays, and
// the next user of the volume restores the limit.
func (b *Backend) restoreLimitAfter(name string) {
	if err := b.tryRestoreLimit(b.ctx, name); err != nil {
		warnOfLimit(b.log, name, err)
	}
}

// Usage is that of the Backend inside.
func (b *Backend) Usage(ctx context.Context, name string) (quota.Usage, error) {
	return cowcommon.Usage(ctx, b.Backend, name)
}

// SetLimit replaces a volume's limit. A limit that was lifted for a fold, which a crash has interrupted, is not given back.
func (b *Backend) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	return fault.Wrap("limit volume", name, b.setLimit(ctx, name, limit))
}

func (b *Backend) setLimit(ctx context.Context, name string, limit quota.Limit) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	unlock, err := b.lock(ctx, exclusive(name))
	if err != nil {
		return err
	}
	defer unlock()
	former, noted, err := b.index.limit(name)
	if err != nil {
		return err
	}
	if !noted {
		return cowcommon.SetLimit(ctx, b.Backend, name, limit)
	}
	if err := b.index.noteLimit(name, limit); err != nil {
		return err
	}
	err = cowcommon.SetLimit(ctx, b.Backend, name, limit)
	switch {
	case errdefs.IsFailedPrecondition(err): // nothing has changed
		return errors.Join(err, b.index.noteLimit(name, former))
	case err == nil || isGone(err):
		b.tryForget(name, liftedNotes+name)
	}
	return err
}

// tryRestoreLimit is restoreLimit for a user who can go on without. ZFS refuses a limit that is below the volume's size, which
// a fold may have increased. The note stays then, until the volume is smaller.
func (b *Backend) tryRestoreLimit(ctx context.Context, name string) error {
	noted, err := b.applyLimit(ctx, name)
	if errdefs.IsFailedPrecondition(err) {
		warnOfLimit(b.log, name, err)
		return nil
	}
	if noted && err == nil {
		b.tryForget(name, liftedNotes+name) // until then it notes the limit that the volume has
	}
	return err
}

func warnOfLimit(log *slog.Logger, volume string, err error) {
	log.Warn("shared roots: the limit of a volume, which was lifted to change its root style, cannot be restored yet", "volume", volume, "error", err)
}

// restoreLimit gives a volume the limit that was lifted for a fold, if there is a note of it. Nobody folds the volume
// meanwhile. After success there is no note.
func (b *Backend) restoreLimit(ctx context.Context, name string) error {
	noted, err := b.applyLimit(ctx, name)
	if err != nil || !noted {
		return err
	}
	return b.index.forget(liftedNotes + name)
}

// applyLimit is restoreLimit that leaves the note.
func (b *Backend) applyLimit(ctx context.Context, name string) (noted bool, err error) {
	limit, noted, err := b.index.limit(name)
	if err != nil || !noted || b.opts.ReadOnly {
		return false, err
	}
	if err := cowcommon.SetLimit(ctx, b.Backend, name, limit); err != nil && !isGone(err) {
		return true, err
	}
	return true, nil
}

// forgetLimit removes the note of a lifted limit, if there is one.
func (b *Backend) forgetLimit(name string) error {
	if _, noted, err := b.index.limit(name); err == nil && !noted {
		return nil
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

// noteLimit notes a limit so that it survives a power cut.
func (x index) noteLimit(name string, limit quota.Limit) error {
	return errors.Join(x.put(liftedNotes+name, fmt.Sprintf("%d %s", limit.Bytes, limit.Scope)), x.sync())
}

// limit reads the limit that is noted for a volume.
func (x index) limit(name string) (limit quota.Limit, noted bool, err error) {
	note, err := os.Readlink(filepath.Join(x.dir, liftedNotes+name))
	if errors.Is(err, fs.ErrNotExist) {
		return limit, false, nil
	}
	if err != nil {
		return limit, false, err
	}
	var scope string
	if _, err := fmt.Sscanf(note, "%d %s", &limit.Bytes, &scope); err != nil {
		return limit, false, fmt.Errorf("noted limit of volume %s: %w", name, err)
	}
	limit.Scope, err = quota.ParseScope(scope)
	return limit, err == nil, err
}
