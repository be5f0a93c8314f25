package testfs

import (
	cryptorand "crypto/rand"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Space is a part of a filesystem that [Fill] can fill.
type Space uint8

const (
	// Data is the space for the contents of files.
	Data Space = iota
	// Metadata is the space for everything else. Only btrfs keeps it apart. On ZFS it is the last bytes, which Data may leave.
	Metadata
)

// fillerName is the directory, at the top of the filesystem, of the files that fill it.
const fillerName = "filler"

// Fill fills the filesystem mounted on mnt until percent of its usable space of that kind are in use. 100 means that
// nothing more fits, be it one block or one directory entry. Filling again, to a higher level, adds to the present
// files. They are in the directory "filler": remove it to have the space back.
//
// Filling Metadata takes all space that btrfs has not yet divided up for data, so that no new chunk helps metadata
// out. It leaves half of that space free. Fill Data first if both are to be full. Make the filesystem small: 256 MiB
// are full in a second.
func Fill(t testing.TB, mnt string, what Space, percent int) {
	t.Helper()
	f := filler{mnt: mnt, dir: filepath.Join(mnt, fillerName)}
	if err := os.Mkdir(f.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatalf("testfs: fill %s: %v", mnt, err)
	}
	fill := f.fillData
	switch {
	case what == Metadata && f.onBtrfs():
		fill = f.fillMetadata
	case what == Metadata:
		fill = f.fillEntries
	}
	if err := fill(percent); err != nil {
		t.Fatalf("testfs: fill %s: %v", mnt, err)
	}
}

type filler struct {
	mnt, dir string
}

// fillData takes space for one file, in ever smaller pieces.
func (f filler) fillData(percent int) error {
	file, err := os.OpenFile(filepath.Join(f.dir, "data"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	for size, piece := info.Size(), int64(32<<20); piece >= 4096; {
		// The kernel does not count space until it is committed.
		room, err := f.room(percent)
		if err := errors.Join(err, unix.Syncfs(int(file.Fd()))); err != nil {
			return err
		}
		if room < piece || piece > 1<<20 && f.free() < piece {
			piece /= 2
			continue
		}
		err = f.take(file, size, piece)
		if fault.IsFull(err) {
			piece /= 2
			continue
		}
		if err != nil {
			return err
		}
		size += piece
	}
	return unix.Syncfs(int(file.Fd()))
}

// room is how many bytes may be taken before percent are in use, and without bound at 100.
func (f filler) room(percent int) (int64, error) {
	if percent >= 100 {
		return 1 << 62, nil
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(f.mnt, &stat); err != nil {
		return 0, err
	}
	used, free := int64(stat.Blocks-stat.Bfree), int64(stat.Bavail)
	return ((used+free)*int64(percent)/100 - used) * stat.Bsize, nil
}

// take makes the file longer. On btrfs that needs no writing.
func (f filler) take(file *os.File, at, size int64) error {
	if f.onBtrfs() {
		return unix.Fallocate(int(file.Fd()), 0, at, size)
	}
	bytes := make([]byte, size)
	_, _ = cryptorand.Read(bytes) // never fails
	if _, err := file.WriteAt(bytes, at); err != nil {
		return err
	}
	return file.Sync()
}

// free is how many bytes the filesystem says are free. Files on btrfs may take more, and are asked.
func (f filler) free() int64 {
	var stat unix.Statfs_t
	if f.onBtrfs() || unix.Statfs(f.mnt, &stat) != nil {
		return 1 << 62
	}
	return int64(stat.Bavail) * stat.Bsize
}

func (f filler) onBtrfs() bool {
	var stat unix.Statfs_t
	return unix.Statfs(f.mnt, &stat) == nil && stat.Type == unix.BTRFS_SUPER_MAGIC
}

// fillEntries makes ever smaller files, until no empty one fits. ZFS counts space when a transaction group is written.
func (f filler) fillEntries(percent int) error {
	if percent < 100 {
		return nil
	}
	for size := 64 << 10; ; {
		content := make([]byte, size)
		_, _ = cryptorand.Read(content) // never fails
		err := os.WriteFile(filepath.Join(f.dir, "entry-"+cryptorand.Text()[:12]), content, 0o600)
		if err := errors.Join(ignoreFull(err), runZFS("zpool", "sync")); err != nil {
			return err
		}
		switch {
		case err == nil:
		case size == 0:
			return nil
		default:
			size /= 16
		}
	}
}

// fillMetadata makes files with attributes, and where no more file fits gives those that there are more attributes,
// which asks for less at a time.
func (f filler) fillMetadata(percent int) error {
	if err := f.pinData(); err != nil {
		return err
	}
	made, err := filepath.Glob(filepath.Join(f.dir, "node-*"))
	if err != nil {
		return err
	}
	nodes := len(made)
	node := func(n int) string { return filepath.Join(f.dir, "node-"+strconv.Itoa(n)) }
	makeNode := func(attribute []byte) error {
		file, err := os.OpenFile(node(nodes), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer file.Close()
		nodes++
		return unix.Fsetxattr(int(file.Fd()), "user.filler", attribute, 0)
	}
	addAttribute := func(attribute []byte) error {
		return unix.Lsetxattr(node(rand.N(nodes)), "user."+strconv.Itoa(rand.Int()), attribute, 0)
	}
	if err := errors.Join(f.addMetadata(makeNode), f.addMetadata(addAttribute)); err != nil {
		return err
	}
	for i := range nodes * (100 - percent) / 100 {
		if err := os.Remove(node(nodes - 1 - i)); err != nil {
			return err
		}
	}
	return f.sync()
}

// addMetadata adds ever smaller attributes until none fits.
func (f filler) addMetadata(add func(attribute []byte) error) error {
	for attribute := make([]byte, 14<<10); len(attribute) > 0; {
		var err error
		for i := 0; i < 16 && err == nil; i++ {
			err = add(attribute)
		}
		// Delayed work is carried out: until then it takes more room than it needs.
		if err := errors.Join(ignoreFull(err), f.sync()); err != nil {
			return err
		}
		if fault.IsFull(err) {
			attribute = attribute[:len(attribute)/2]
		}
	}
	return nil
}

func (f filler) sync() error {
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// pinData has a small file in every part of the filesystem that could become metadata.
func (f filler) pinData() error {
	var made []string
	for {
		path := filepath.Join(f.dir, "pin-"+cryptorand.Text()[:12])
		file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return ignoreFull(err)
		}
		err = errors.Join(unix.Fallocate(int(file.Fd()), 0, 0, 1<<20), file.Close())
		if fault.IsFull(err) {
			made = append(made, path)
			break
		}
		if err != nil {
			return err
		}
		made = append(made, path)
	}
	for i, path := range made {
		if i%2 == 1 || i == len(made)-1 {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func ignoreFull(err error) error {
	if fault.IsFull(err) {
		return nil
	}
	return err
}
