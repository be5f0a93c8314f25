package cowcommon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/moby/sys/userns"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// Apply extracts an uncompressed layer tar into a volume and returns the sum of the sizes of its files. When it
// returns without an error, all of it survives a power cut. An error leaves the volume part-filled. Of opts it sets
// Xattrs and Empty. Returns errdefs.ErrFailedPrecondition if the volume is sealed.
func Apply(ctx context.Context, backend Backend, name string, tar io.Reader, opts layertar.ApplyOptions) (size int64, err error) {
	v, err := backend.Stat(ctx, name)
	if err != nil {
		return 0, err
	}
	if v.Sealed {
		return 0, fault.New(fault.ErrSealed, "other layers were made from it")
	}
	// Holding the volume keeps it from being sealed half-way.
	dir, err := backend.Mount(ctx, name, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, backend.Unmount(context.WithoutCancel(ctx), name)) }()
	if opts.Empty, err = isEmpty(dir); err != nil {
		return 0, err
	}
	opts.Xattrs = xattrPolicy()
	size, err = layertar.Apply(ctx, dir, tar, opts)
	if err != nil {
		return 0, explainQuota(context.WithoutCancel(ctx), backend, v, err)
	}
	return size, backend.Sync(ctx, name)
}

// noSpace is less space than any layer leaves, in bytes.
const noSpace = 1 << 20

// explainQuota tells the limit of a volume, which is EDQUOT, from a quota above all volumes, which is want of space. The
// kernel says EDQUOT for both.
func explainQuota(ctx context.Context, backend Backend, v Volume, err error) error {
	if !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	free, freeErr := Free(ctx, backend)
	if freeErr != nil || free >= noSpace {
		return err
	}
	if v.Limit.Bytes != 0 {
		usage, usageErr := Usage(ctx, backend, v.Name)
		if usageErr != nil || usage.Against(v.Limit) >= v.Limit.Bytes {
			return err
		}
	}
	return fmt.Errorf("a quota above all layers is reached: remove something or raise it: %w (%s)", syscall.ENOSPC, err.Error())
}

// xattrPolicy is to leave out attributes that the filesystem cannot store and, in a user namespace, those that the
// kernel lets nobody set there.
func xattrPolicy() layertar.XattrPolicy {
	if userns.RunningInUserNS() {
		return layertar.BestEffortXattrs
	}
	return layertar.SupportedXattrs
}

func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}
