package loopstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/loopdevice"
	"github.com/cowshed/cowshed/internal/mounttable"
)

// fsType is the filesystem in an image.
const fsType = "btrfs"

// mounted reports whether the image is the uppermost mount on the directory.
func (s Store) mounted(image *os.File) (bool, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != s.Root, false })
	if err != nil || len(mounts) == 0 {
		return false, err
	}
	top := mounts[len(mounts)-1] // of mounts on top of each other the last is seen
	if top.FSType != fsType {
		return false, nil
	}
	device, err := attached(image, s.Image)
	return device != "" && top.Source == device, err
}

// checkNotElsewhere makes sure that no part of the filesystem in the image is mounted at another place in this mount
// namespace. There it would live on after an unmount of the directory.
func (s Store) checkNotElsewhere(image *os.File) error {
	device, err := attached(image, s.Image)
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Source != device || m.FSType != fsType || m.Mountpoint == s.Root, false
	})
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fault.New(fault.ErrInUse, "something of %s is mounted on %s: unmount it first", s.Root, mounts[0].Mountpoint)
	}
	return nil
}

// claimDevice keeps others from mounting the filesystem in the image until the caller closes the file, which is nil if
// the image has no device. Returns fault.ErrInUse, with the users, if the filesystem is mounted.
//
// The kernel knows all users: mounts in any mount namespace, mounts below other mounts, layers of overlays, and
// directories that are open although their mount is gone.
func (s Store) claimDevice(image *os.File) (*os.File, error) {
	device, err := attached(image, s.Image)
	if err != nil || device == "" {
		return nil, err
	}
	claim, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO): // it was detached meanwhile
		return nil, nil
	case errors.Is(err, unix.EBUSY):
		return nil, s.usedBy(device)
	}
	return claim, err
}

// usedBy is an error that names the users of the filesystem on a device.
func (s Store) usedBy(device string) error {
	uses, err := mounttable.UsesOfSource(fsType, func(source string) bool { return source == device })
	if err != nil {
		return err
	}
	if len(uses) > 0 {
		return mounttable.InUse("the filesystem in "+s.Image, uses)
	}
	return fault.New(fault.ErrInUse, "the filesystem in %s (%s) is in use, by an overlay, an open directory or a mount namespace: end that use first", s.Image, device)
}

// attached returns the loop device that has the image, "" if none has. The device may have it by another path, such as
// that of a bind mount.
func attached(image *os.File, path string) (string, error) {
	var own unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &own); err != nil {
		return "", err
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	var others []string
	for _, file := range files {
		device := filepath.Base(filepath.Dir(filepath.Dir(file)))
		name, err := os.ReadFile(file)
		if err != nil {
			continue // detached meanwhile
		}
		var stat unix.Stat_t
		if strings.TrimSuffix(string(name), "\n") == path && unix.Stat(path, &stat) == nil && stat.Dev == own.Dev && stat.Ino == own.Ino {
			return "/dev/" + device, nil
		}
		others = append(others, device)
	}
	return firstWith(others, func(device string) bool { return hasFile(device, own) }, answerFor), nil
}

// answerFor is how long a loop device may take to say which file it has.
const answerFor = 10 * time.Second

// firstWith asks all loop devices at the same time. It returns the path of the first that has the image, "" if none has.
// A device without an answer in that time counts as another's: its file is on a server that is dead. The filesystem of
// the image has just answered.
func firstWith(devices []string, has func(device string) bool, atMost time.Duration) string {
	answers := make(chan string, len(devices))
	for _, device := range devices {
		go func() {
			if has(device) {
				answers <- "/dev/" + device
			} else {
				answers <- ""
			}
		}()
	}
	late := time.After(atMost)
	for range devices {
		select {
		case found := <-answers:
			if found != "" {
				return found
			}
		case <-late:
			return ""
		}
	}
	return ""
}

// hasFile asks a loop device whether it has a file. It has not if it cannot be asked: processes that may not open the
// device can neither mount nor delete the image. Most devices are of others, so it makes no node for them.
func hasFile(device string, file unix.Stat_t) bool {
	loop, err := os.Open("/dev/" + device)
	if err != nil {
		return false
	}
	defer loop.Close()
	info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
	return err == nil && info.Device == file.Dev && info.Inode == file.Ino
}

// attach gives the image a loop device that detaches itself once its last user is gone, or finds its present device.
// It returns that device open.
func attach(image *os.File, path string, readOnly bool) (*os.File, error) {
	flags := uint32(unix.LO_FLAGS_DIRECT_IO) // where the image's filesystem has it, data is not cached twice
	if readOnly {
		flags |= unix.LO_FLAGS_READ_ONLY
	}
	device, err := attached(image, path)
	if err != nil {
		return nil, err
	}
	if device != "" {
		return os.OpenFile(device, loopdevice.Access(flags), 0)
	}
	return loopdevice.Attach(image, path, flags)
}

// updateLoop tells the image's loop device that the image has become larger.
func (s Store) updateLoop(image *os.File) error {
	device, err := attached(image, s.Image)
	if err != nil || device == "" {
		return err
	}
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("resize %s: %w", device, err)
	}
	return nil
}
