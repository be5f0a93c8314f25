package main

import (
	"errors"
	"os"
	"runtime"

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
	runtime.GC()
	return nil
}

// waitCleaned waits until the space of all destroyed subvolumes is free.
func waitCleaned(fd int) error {
	if err := btrfsctl.WakeCleaner(fd); err != nil {
		return err
	}
	err := btrfsctl.WaitAllDropped(fd)
	if errors.Is(err, unix.ENOENT) { // there are none
		return nil
	}
	return err
}

// sync writes out everything.
func (c config) sync() error { return c.onRoot(unix.Syncfs) }

// commit makes what was done to subvolumes and qgroups durable, without writing out file data.
func (c config) commit() error {
	if c.filesystem != "btrfs" {
		return c.sync()
	}
	return c.onRoot(btrfsctl.Commit)
}

func (c config) onRoot(do func(fd int) error) error {
	f, err := os.Open(c.root)
	if err != nil {
		return err
	}
	defer f.Close()
	return do(int(f.Fd()))
}
