package detect

import (
	"crypto/rand"
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

// noDataSend has the answer to NoDataSend by the UUID of a filesystem, if it is a definite one.
var noDataSend sync.Map

// NoDataSend reports whether this process can have the kernel compare two subvolumes of the btrfs filesystem
// of dir: by a send stream without file data. It tries, with an empty subvolume that it makes in dir and
// destroys; a crash in between leaves it there, named "cowshed-probe-" and something random. Definite answers
// are remembered for each filesystem.
func NoDataSend(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("detect: send without data: %w", err)
	}
	defer f.Close()
	uuid, err := btrfsctl.FilesystemUUID(int(f.Fd()))
	if errors.Is(err, unix.ENOTTY) {
		return notSupported("send without data", dir+" is not on btrfs", err)
	}
	if err != nil {
		return fmt.Errorf("detect: send without data: filesystem of %s: %w", dir, err)
	}
	if answer, ok := noDataSend.Load(uuid); ok {
		err, _ := answer.(error)
		return err
	}
	err = tryNoDataSend(int(f.Fd()))
	if err == nil || errors.Is(err, graphdriver.ErrNotSupported) {
		noDataSend.Store(uuid, err)
	}
	return err
}

func tryNoDataSend(dirfd int) (err error) {
	defer func() {
		switch {
		case errors.Is(err, unix.EPERM):
			err = notSupported("send without data", whyRefused(), err)
		case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
			err = notSupported("send without data", "the kernel does not have it", err)
		case err != nil:
			err = fmt.Errorf("detect: send without data: %w", err)
		}
	}()
	name := "cowshed-probe-" + rand.Text()
	if err := btrfsctl.CreateSubvolume(dirfd, name, nil); err != nil {
		return fmt.Errorf("make subvolume %s: %w", name, err)
	}
	err = sendNowhere(dirfd, name)
	if destroyErr := btrfsctl.DestroySubvolume(dirfd, name); destroyErr != nil {
		return errors.Join(err, fmt.Errorf("destroy subvolume %s: %w", name, destroyErr))
	}
	return err
}

// sendNowhere seals the subvolume name of the directory dirfd and sends it to no one.
func sendNowhere(dirfd int, name string) error {
	subvolume, err := unix.Openat(dirfd, name, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open subvolume %s: %w", name, err)
	}
	defer unix.Close(subvolume)
	if err := btrfsctl.SetReadOnly(subvolume, true); err != nil {
		return fmt.Errorf("seal subvolume %s: %w", name, err)
	}
	// A stream of nothing fits into a pipe. The kernel cannot write to /dev/null.
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	defer writer.Close()
	return btrfsctl.Send(subvolume, int(writer.Fd()), 0, btrfsctl.SendNoFileData, 1)
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
