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

// openDataset opens a dataset for reading. It is mounted for a moment, and stays reachable by the open directory alone.
func openDataset(ctx context.Context, dataset string) (dir *os.File, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	point, err := os.MkdirTemp("", "cowshed-migrate-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(point)) }()
	if err := unix.Mount(dataset, point, "zfs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = fault.As(errdefs.ErrNotFound, err)
		}
		return nil, fmt.Errorf("mount dataset %s: %w", dataset, err)
	}
	dir, err = os.OpenFile(point, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if unmountErr := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); unmountErr != nil {
		err = errors.Join(err, fmt.Errorf("unmount dataset %s: %w", dataset, unmountErr))
	}
	if err != nil && dir != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return dir, err
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
