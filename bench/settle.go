package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"golang.org/x/sys/unix"
)

// settle waits until the filesystem has nothing left to do, so that no operation pays for an earlier one.
func (c config) settle() error {
	if err := c.sync(); err != nil {
		return err
	}
	if c.filesystem == "btrfs" {
		if err := c.onRoot(waitCleaned); err != nil {
			return err
		}
	}
	if c.ext4 != "" {
		if err := onDir(c.ext4, unix.Syncfs); err != nil {
			return err
		}
	}
	runtime.GC()
	return nil
}

// waitCleaned waits until the space of all destroyed subvolumes is free. The kernel's cleaner sleeps for half a
// minute when it finds nothing to do, even if somebody still uses a destroyed subvolume. So it is woken again.
func waitCleaned(fd int) error {
	cleaned := make(chan error, 1)
	go func() { cleaned <- btrfsctl.WaitAllDropped(fd) }()
	for {
		if err := btrfsctl.WakeCleaner(fd); err != nil {
			return errors.Join(err, <-cleaned)
		}
		select {
		case err := <-cleaned:
			if errors.Is(err, unix.ENOENT) { // there are none
				return nil
			}
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// makeRoot makes the directory of a contender, on ZFS as a dataset of its own.
func (c config) makeRoot(root string) error {
	if c.filesystem == "zfs" {
		if err := createDataset(root); err != nil {
			return err
		}
	}
	return os.MkdirAll(filepath.Join(root, c.filesystem), 0o710)
}

// removeAll removes the remains of a contender on the filesystem under test, subvolumes and datasets included.
func (c config) removeAll(root string) error {
	if c.filesystem == "zfs" {
		return destroyDatasets(root)
	}
	var subvolumes []string // a nested subvolume after its container
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Ino == btrfsctl.FirstFreeObjectID && (c.ext4 == "" || !strings.HasPrefix(path, c.ext4+"/")) {
			subvolumes = append(subvolumes, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(subvolumes) {
		if err := destroy(path); err != nil {
			return err
		}
	}
	return os.RemoveAll(root)
}

// destroy removes a subvolume.
func destroy(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return btrfsctl.DestroySubvolume(int(dir.Fd()), filepath.Base(path))
}

// sync writes out everything.
func (c config) sync() error {
	if c.filesystem == "zfs" {
		return syncPool(c.pool)
	}
	return c.onRoot(unix.Syncfs)
}

// commit makes changes to subvolumes and qgroups durable, without writing out file data.
func (c config) commit() error {
	return c.onRoot(btrfsctl.Commit)
}

func (c config) onRoot(do func(fd int) error) error { return onDir(c.root, do) }

func onDir(dir string, do func(fd int) error) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(int(f.Fd()))
}
