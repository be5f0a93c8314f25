package btrfs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// Alone calls do with the open root of a writable volume that nobody uses. Others wait for its end before they use the
// volume. Returns fault.ErrInUse if somebody uses the volume, and fault.ErrSealed if it is sealed.
func (b *Backend) Alone(ctx context.Context, name string, do func(root *os.File) error) error {
	return fault.Wrap("claim volume", name, b.alone(ctx, name, do))
}

func (b *Backend) alone(ctx context.Context, name string, do func(root *os.File) error) (err error) {
	v, err := b.claim(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.done()) }()
	if v.info.ReadOnly {
		return fault.ErrSealed
	}
	return do(v.File)
}

// Peek calls do with the open root of a volume, without a use or a claim of it. If another volume has the name afterwards, as after
// Exchange, Peek calls do again: a tree that is removed meanwhile looks empty.
func (b *Backend) Peek(_ context.Context, name string, do func(root *os.File) error) error {
	return b.withNamed("look at", name, func(dir *subvolume) error { return do(dir.File) })
}

// KeepsPaths says that a volume has its path even when it is not mounted.
func (b *Backend) KeepsPaths() bool { return true }

// Orders reports whether a directory is on the filesystem of the volumes. All changes of a filesystem become durable in transactions.
// So a change in such a directory survives a power cut if a later change of a volume does. A transaction need not write out the
// contents of files.
func (b *Backend) Orders(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer d.Close()
	uuid, err := btrfsctl.FilesystemUUID(int(d.Fd()))
	if errors.Is(err, unix.ENOTTY) {
		return false, nil
	}
	return uuid == b.fsUUID, err
}

// CloneSyncs says that Clone makes earlier changes in the home survive a power cut: the kernel commits its transaction when
// it takes a snapshot.
func (b *Backend) CloneSyncs() bool { return true }
