package detect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// notSupported is the answer that something is not available, with the reason.
func notSupported(feature, reason string, err error) error {
	if err == nil {
		return fmt.Errorf("%w: %s: %s", graphdriver.ErrNotSupported, feature, reason)
	}
	return fmt.Errorf("%w: %s: %s: %w", graphdriver.ErrNotSupported, feature, reason, err)
}

// SimpleQuota reports whether the kernel has btrfs's simple quotas. It asks sysfs, since the only way to try
// is to turn them on.
func SimpleQuota() error {
	return simpleQuota(os.DirFS("/sys/fs/btrfs/features"))
}

func simpleQuota(features fs.FS) error {
	if _, err := fs.Stat(features, "."); err != nil {
		return fmt.Errorf("detect: simple quotas: btrfs is not loaded, or /sys is not mounted: %w", err)
	}
	_, err := fs.Stat(features, "simple_quota")
	if errors.Is(err, fs.ErrNotExist) {
		return notSupported("simple quotas", "kernel 6.7 or later is needed", nil)
	}
	if err != nil {
		return fmt.Errorf("detect: simple quotas: %w", err)
	}
	return nil
}

// SubvolSyncWait reports whether the kernel can tell when a destroyed subvolume of the btrfs filesystem of
// dir is gone for good.
func SubvolSyncWait(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("detect: wait for subvolumes: %w", err)
	}
	defer f.Close()
	const never = 1<<48 - 1 // a subvolume id that no filesystem gets to
	switch err := btrfsctl.WaitDropped(int(f.Fd()), never); {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOTTY):
		return notSupported("wait for subvolumes", dir+" is not on btrfs, or the kernel is older than 6.13", err)
	default:
		return fmt.Errorf("detect: wait for subvolumes: %w", err)
	}
}

// OpenAt2 reports whether the kernel can resolve a path without leaving a directory.
func OpenAt2() error { return openAt2() }

var openAt2 = sync.OnceValue(func() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENOSYS):
		return notSupported("openat2", "kernel 5.6 or later is needed", err)
	case errors.Is(err, unix.EPERM):
		return notSupported("openat2", "a seccomp filter that is older than the call is in the way", err)
	default:
		return fmt.Errorf("detect: openat2: %w", err)
	}
})
