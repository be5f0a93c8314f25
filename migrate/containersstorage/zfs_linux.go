package containersstorage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/admintool"
)

// datasetOf is the dataset that holds a directory, in which containers/storage makes those of its layers.
func datasetOf(dir string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return "", err
	}
	var holder *mountinfo.Info
	for _, m := range mounts {
		if holder == nil || len(m.Mountpoint) >= len(holder.Mountpoint) {
			holder = m // the last of several mounts covers the others
		}
	}
	if holder == nil || holder.FSType != "zfs" {
		return "", fault.New(errdefs.ErrFailedPrecondition, "the root is not on ZFS: name the dataset that has those of the layers")
	}
	return holder.Source, nil
}

// checkDataset returns errdefs.ErrNotFound if a layer has no dataset.
func (s *Source) checkDataset(ctx context.Context, layer string) error {
	ctx, cancel := context.WithTimeout(ctx, zfsTimeout)
	defer cancel()
	return fault.As(errdefs.ErrNotFound, runZFS(ctx, "list", "-H", "-o", "name", s.dataset(layer)))
}

// zfsTimeout is for a command that changes nothing.
const zfsTimeout = time.Minute

func runZFS(ctx context.Context, args ...string) error {
	zfs, err := admintool.Look("zfs")
	if err != nil {
		return fault.As(errdefs.ErrFailedPrecondition, err)
	}
	var text bytes.Buffer
	command := exec.CommandContext(ctx, zfs, args...)
	command.Stderr = &text
	if err := command.Run(); err != nil {
		return fmt.Errorf("zfs %s: %w: %s", args[0], err, strings.TrimSpace(text.String()))
	}
	return nil
}

// openDataset mounts a dataset on no directory, for reading, and opens its root. The mount ends when the caller closes the
// root. If the dataset is mounted elsewhere for writing, its filesystem stays writable, and the mount does not.
func openDataset(ctx context.Context, dataset string) (*os.File, error) {
	dir, err := mountDetached(dataset, true)
	if errors.Is(err, unix.EBUSY) {
		dir, err = mountDetached(dataset, false)
	}
	if errors.Is(err, unix.ENOENT) {
		err = fault.As(errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, fault.Wrap("mount dataset", dataset, err)
	}
	return dir, ctx.Err()
}

func mountDetached(dataset string, readOnly bool) (*os.File, error) {
	filesystem, err := unix.Fsopen("zfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(filesystem)
	if err := unix.FsconfigSetString(filesystem, "source", dataset); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	if readOnly {
		if err := unix.FsconfigSetFlag(filesystem, "ro"); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(filesystem); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	mount, err := unix.Fsmount(filesystem, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	return os.NewFile(uintptr(fd), dataset), nil
}

// destroyDatasets destroys the datasets of the layers. A layer's children are destroyed before it.
func (s *Source) destroyDatasets(ctx context.Context) error {
	records, err := s.readLayers()
	if err != nil {
		return err
	}
	l := &lister{source: s, layers: map[string]*layer{}}
	for i := range records {
		l.layers[records[i].ID] = &layer{layerRecord: &records[i]}
	}
	for _, id := range l.childrenFirst() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.checkDataset(ctx, id) != nil {
			continue // an earlier call has destroyed it
		}
		// The command is not stopped: that would leave it to do its work later.
		if err := runZFS(context.WithoutCancel(ctx), "destroy", "-r", s.dataset(id)); err != nil {
			return err
		}
	}
	return nil
}
