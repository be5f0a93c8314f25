package btrfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/quota"
)

// Usage reads the volume's qgroup.
func (b *Backend) Usage(_ context.Context, name string) (usage quota.Usage, err error) {
	err = b.withVolume("measure", name, func(dir *subvolume) (err error) {
		usage, err = b.quotas.Usage(dir.info.ID)
		return err
	})
	return usage, err
}

// SetLimit sets the limit of the volume's qgroup, durably. If an exchange gives the name to another volume meanwhile,
// that volume has the limit too.
func (b *Backend) SetLimit(ctx context.Context, name string, limit quota.Limit) error {
	return b.withNamed("limit", name, func(dir *subvolume) error {
		err := b.quotas.SetLimit(ctx, dir.info.ID, limit)
		if err == nil {
			err = b.forgetRecordedLimit(name)
		}
		if err == nil {
			err = b.commit()
		}
		return err
	})
}

// applyRecordedLimit sets the limit that moby's driver recorded in quotas/<name>. That driver recorded limits because
// it set them anew at every mount. If the volume has a limit already, that limit stays.
func (b *Backend) applyRecordedLimit(ctx context.Context, name string, dir *subvolume) error {
	if b.records == "" || b.readOnly {
		return nil
	}
	path := filepath.Join(b.records, name)
	record, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	bytes, ok := parseRecordedLimit(record)
	if !ok {
		b.log.Warn("btrfs: recorded limit cannot be read, so the layer has none", "path", path, "record", string(record))
		return nil
	}
	limit, err := b.quotas.Limit(dir.info.ID)
	if err == nil && limit.Bytes == 0 {
		err = b.quotas.SetLimit(ctx, dir.info.ID, quota.Limit{Bytes: bytes, Scope: b.opts.Scope})
	}
	if errdefs.IsFailedPrecondition(err) || errdefs.IsNotImplemented(err) || errdefs.IsNotFound(err) {
		// The options or the filesystem do not allow this limit. The layer can be used all the same.
		b.log.Warn("btrfs: recorded limit cannot be set, so the layer has none", "path", path, "error", err)
		return nil
	}
	return err
}

// renameRecordedLimit renames the record of moby's driver along with its volume.
func (b *Backend) renameRecordedLimit(name, to string) error {
	if b.records == "" {
		return nil
	}
	err := os.Rename(filepath.Join(b.records, name), filepath.Join(b.records, to))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// parseRecordedLimit reads a number of bytes in the form that moby's driver writes. ok is false unless the number is
// positive.
func parseRecordedLimit(record []byte) (bytes uint64, ok bool) {
	bytes, err := strconv.ParseUint(strings.TrimSpace(string(record)), 10, 63)
	return bytes, err == nil && bytes != 0
}

// forgetRecordedLimit deletes an outdated record of moby's driver. Otherwise Mount would apply it to this layer again,
// or to a later layer of the same name.
func (b *Backend) forgetRecordedLimit(name string) error {
	if b.records == "" {
		return nil
	}
	err := os.Remove(filepath.Join(b.records, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
