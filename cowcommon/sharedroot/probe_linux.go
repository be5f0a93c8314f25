package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/treeat"
)

// probePrefix begins the names of the directories that probe works in.
const probePrefix = ".probe-"

// probe tries an overlay of directories below dir, which is on the filesystem of the volumes. The mount is attached
// nowhere, so nobody else sees it, and a crash leaves none.
//
// Returns errdefs.ErrNotImplemented, with the reason, if the kernel or the filesystem cannot have shared roots. Want of space,
// memory or descriptors is no such reason.
func probe(dir string) (features, error) {
	base, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return features{}, fmt.Errorf("probe overlayfs: %w", err)
	}
	defer base.Close()
	name := staging.Name(probePrefix)
	has, err := probeIn(filepath.Join(dir, name), int(base.Fd()), name)
	// Without a context: the few names must go, however the probe ends.
	err = errors.Join(err, treeat.RemoveTree(context.Background(), int(base.Fd()), name))
	if isWant(err) {
		return features{}, fmt.Errorf("probe overlayfs: %w", err)
	}
	if err != nil {
		return features{}, fault.New(errdefs.ErrNotImplemented, "overlayfs on %s: %w", dir, err)
	}
	return has, nil
}

// isWant reports whether an error says that something is used up at this moment.
func isWant(err error) bool {
	return fault.IsFull(err) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)
}

// probed are the names in a directory of the lower that a probe makes.
const (
	probedGone    = "gone"
	probedChanged = "changed"
)

func probeIn(path string, base int, name string) (features, error) {
	if err := unix.Mkdirat(base, name, dirMode); err != nil {
		return features{}, err
	}
	dir, err := treeat.Open(base, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return features{}, err
	}
	defer unix.Close(dir)
	for _, name := range []string{"lower", upperName, workName, "lower/" + probedGone, "lower/" + probedChanged} {
		if err := unix.Mkdirat(dir, name, dirMode); err != nil {
			return features{}, err
		}
	}
	if err := probeTypes(dir); err != nil {
		return features{}, err
	}
	has := features{uuidNull: true}
	err = probeMount(path, dir, has)
	if errors.Is(err, unix.EINVAL) { // an older kernel does not know the option
		has = features{}
		err = probeMount(path, dir, has)
	}
	return has, err
}

// probeTypes looks whether the filesystem tells the type of a file with its name.
func probeTypes(dir int) error {
	fd, err := treeat.Open(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := treeat.ReadDir(fd, make([]byte, 4<<10), nil)
	if err != nil {
		return err
	}
	for _, d := range names {
		if d.Type != unix.DT_DIR {
			return fmt.Errorf("the filesystem does not tell the type of %s with its name (d_type)", d.Name)
		}
	}
	return nil
}

// probeMount mounts the overlay, changes its tree, and looks into the upper.
func probeMount(path string, dir int, has features) error {
	options, err := mountOptions(path+"/lower", path+"/"+upperName, path+"/"+workName, has)
	if err != nil {
		return err
	}
	mnt, err := mountDetached(options)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	if err := unix.Unlinkat(mnt, probedGone, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove a directory of the lower: %w", err)
	}
	if err := (treeat.File{Dir: mnt, Name: probedChanged, FD: -1}).SetXattr("trusted.probe", []byte("1")); err != nil {
		return fmt.Errorf("set an extended attribute: %w", err)
	}
	upper, err := treeat.OpenDir(dir, upperName)
	if err != nil {
		return err
	}
	defer unix.Close(upper)
	return probeUpper(upper)
}

// probeUpper looks whether an upper, after the changes of probeMount, has them as a fold will look for them.
func probeUpper(upper int) error {
	gone := entry{upper: upper, name: probedGone}
	if err := gone.know(); err != nil {
		return fmt.Errorf("whiteout: %w", err)
	}
	if is, err := gone.isWhiteout(); err != nil || !is {
		return errors.Join(errors.New("a removed directory leaves no whiteout"), err)
	}
	changed := treeat.File{Dir: upper, Name: probedChanged, FD: -1}
	if _, is, err := overlaymark.Read(changed, "probe", "trusted."); err != nil || !is {
		return errors.Join(errors.New("the filesystem does not keep extended attributes"), err)
	}
	return nil
}

// mountDetached mounts an overlay nowhere, and returns a descriptor of its root. The mount is gone when it is closed.
func mountDetached(options []string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			return -1, fmt.Errorf(`the kernel does not know it at this time ("modprobe overlay" loads it, if this kernel has it): %w`, err)
		}
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, option := range options {
		key, value, _ := strings.Cut(option, "=")
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return -1, fmt.Errorf("option %s: %w", option, withLog(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make the overlay: %w", withLog(fs, err))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, fmt.Errorf("mount the overlay: %w", withLog(fs, err))
	}
	return mnt, nil
}

// withLog adds the kernel's messages about a mount to an error.
func withLog(fs int, err error) error {
	var buf [512]byte
	for {
		n, rerr := unix.Read(fs, buf[:])
		if rerr != nil || n <= 0 {
			return err
		}
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(buf[:n])))
	}
}
