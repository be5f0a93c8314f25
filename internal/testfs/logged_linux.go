package testfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/writelog"
)

// marksSize is the size of the end of a logged disk, which the filesystem leaves free for marks.
const marksSize = 1 << 20

// LoggedBtrfs is [Btrfs] on a disk that logs all writes, as package writelog reads them: QEMU serves the image
// through FUSE, over its driver blklogwrites. finish unmounts the filesystem and returns the log's file and the
// disk's final content. The marks are where the filesystem ends.
func LoggedBtrfs(t testing.TB, opts ...BtrfsOption) (mnt string, marks Marks, finish func() (log, image string)) {
	t.Helper()
	c := newBtrfsConfig(opts)
	Root(t)
	dir := workDir(t)
	disk, log, image, stop := logWrites(t, dir, c.size+marksSize)
	mnt = filepath.Join(dir, "btrfs")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	makeBtrfs(t, disk, c)
	unmount := mountLoop(t, disk, mnt)
	turnQuotaOn(t, mnt, c)
	marks, err := OpenMarks(disk, c.size)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	return mnt, marks, func() (string, string) {
		if err := marks.Close(); err != nil {
			t.Errorf("testfs: %v", err)
		}
		unmount()
		stop()
		return log, image
	}
}

// logWrites starts a process that serves a new disk, kept in the file image, as the file disk. The process logs all
// writes in the file log. It ends when stop is called, or else with the test.
func logWrites(t testing.TB, dir string, size int64) (disk, log, image string, stop func()) {
	t.Helper()
	daemon, err := admintool.Look("qemu-storage-daemon")
	if err != nil {
		Skip(t, "needs qemu-storage-daemon (package qemu-system-common): %v", err)
	}
	image = filepath.Join(dir, "disk.img")
	disk, log = filepath.Join(dir, "disk"), filepath.Join(dir, "disk.log")
	for file, size := range map[string]int64{image: size, log: 0, disk: 0} {
		if err := makeSparse(file, size); err != nil {
			t.Fatalf("testfs: %v", err)
		}
	}
	// The files themselves are in the page cache of this machine, which loses none of it: flushing them costs time only.
	cmd := exec.Command(daemon,
		"--blockdev", "driver=file,node-name=image,discard=unmap,cache.no-flush=on,filename="+image,
		"--blockdev", "driver=file,node-name=log,cache.no-flush=on,filename="+log,
		"--blockdev", "driver=blklogwrites,node-name=disk,file=image,log=log,log-sector-size=4096",
		"--export", "type=fuse,id=export,node-name=disk,writable=on,mountpoint="+disk)
	var said bytes.Buffer // and not the output of the test, for whose end go test waits
	cmd.Stderr = &said
	Start(t, cmd)
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := errors.Join(cmd.Process.Signal(unix.SIGTERM), Wait(t, cmd)); err != nil {
			t.Errorf("testfs: %s: %v: %s", daemon, err, &said)
		}
	}
	t.Cleanup(stop)
	if !eventually(patience, func() bool {
		info, err := os.Stat(disk)
		return err == nil && info.Size() == size || Ended(t, cmd)
	}) || Ended(t, cmd) {
		t.Fatalf("testfs: %s does not serve %s", daemon, disk)
	}
	return disk, log, image, stop
}

// MountBtrfs mounts a btrfs image on a new directory, until the test ends or unmount is called.
func MountBtrfs(t testing.TB, image string) (mnt string, unmount func()) {
	t.Helper()
	mnt, err := os.MkdirTemp(filepath.Dir(image), "mounted-")
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	unmountLoop := mountLoop(t, image, mnt)
	return mnt, func() {
		unmountLoop()
		if err := os.Remove(mnt); err != nil {
			t.Errorf("testfs: %v", err)
		}
	}
}

// Marks writes the blocks of [writelog.Block] to a logged disk.
type Marks struct {
	disk *os.File
	at   int64
	page []byte // aligned, as direct I/O needs it
}

// OpenMarks opens the disk to write marks at that offset, which nothing else uses.
func OpenMarks(disk string, at int64) (Marks, error) {
	f, err := os.OpenFile(disk, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return Marks{}, err
	}
	page, err := unix.Mmap(-1, 0, writelog.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return Marks{}, errors.Join(fmt.Errorf("mmap: %w", err), f.Close())
	}
	return Marks{disk: f, at: at, page: page}, nil
}

// Write writes mark n. It is in the log when Write returns; the disk is not flushed.
func (m Marks) Write(n uint64) error {
	copy(m.page, writelog.Block(n))
	_, err := m.disk.WriteAt(m.page, m.at)
	return err
}

// Close closes the disk.
func (m Marks) Close() error { return errors.Join(m.disk.Close(), unix.Munmap(m.page)) }
