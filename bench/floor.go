package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"golang.org/x/sys/unix"
)

// floor does only the steps that the kernel itself needs for each operation, in one thread, without checks and with
// knowledge that no driver has. An implementation can come close to it. It is no implementation of layers.
type floor struct {
	dir   *os.File // holds the subvolumes
	fsDir string   // of this filesystem in sysfs
	buf   []byte
}

func newFloor(root string) (contender, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	uuid, err := btrfsctl.FilesystemUUID(int(dir.Fd()))
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return &floor{dir: dir, fsDir: filepath.Join("/sys/fs/btrfs", uuid.String()), buf: make([]byte, 1<<20)}, nil
}

func (*floor) name() string { return "floor" }

// apply opens, writes, sets the time and closes. Nothing else.
func (f *floor) apply(id string, layer *layer, format layertar.Format) error {
	if format != layertar.Plain {
		return errNotOffered
	}
	if err := btrfsctl.CreateSubvolume(int(f.dir.Fd()), id, nil); err != nil {
		return err
	}
	root, err := unix.Openat(int(f.dir.Fd()), id, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)

	dir, inDir := -1, ""
	defer func() { unix.Close(dir) }()
	times := [2]unix.Timespec{{Sec: layerTime}, {Sec: layerTime}}
	for _, e := range layer.entries {
		if e.isDir {
			if err := unix.Mkdirat(root, e.name, 0o755); err != nil {
				return fmt.Errorf("mkdir %s: %w", e.name, err)
			}
			unix.Close(dir)
			if dir, err = unix.Openat(root, e.name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
				return fmt.Errorf("open %s: %w", e.name, err)
			}
			inDir = e.name
			continue
		}
		at, name := root, e.name
		if inDir != "" {
			at, name = dir, e.name[len(inDir)+1:]
		}
		fd, err := unix.Openat(at, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return fmt.Errorf("create %s: %w", e.name, err)
		}
		if n, err := unix.Write(fd, e.data); err != nil || n < len(e.data) {
			return fmt.Errorf("write %s: %d bytes: %w", e.name, n, err)
		}
		if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 {
			return fmt.Errorf("set time of %s: %w", e.name, errno)
		}
		unix.Close(fd)
	}
	return btrfsctl.SetReadOnly(root, true)
}

// create is the snapshot ioctl, which takes the limit along.
func (f *floor) create(id, parent string, limit int64) error {
	source, err := unix.Openat(int(f.dir.Fd()), parent, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	var qgroup *btrfsctl.QgroupLimit
	if limit != 0 {
		qgroup = &btrfsctl.QgroupLimit{Flags: btrfsctl.LimitMaxRfer, MaxRfer: uint64(limit)}
	}
	return btrfsctl.Snapshot(int(f.dir.Fd()), id, source, false, qgroup)
}

func (f *floor) edit(id string, edit func(dir string) error) error {
	return edit(filepath.Join(f.dir.Name(), id))
}

func (f *floor) changes(id, parent string) (int, error) {
	_, err := f.diff(id, parent)
	return 0, err
}

// diff of a child is a read-only snapshot and its send stream without data; the diff of a whole layer is
// reading its files.
func (f *floor) diff(id, parent string) (diffResult, error) {
	start := time.Now()
	var n int64
	var err error
	if parent == "" {
		n, err = f.readTree(id)
	} else {
		n, err = f.send(id, parent)
	}
	return diffResult{bytes: n, files: -1, ready: time.Since(start)}, err
}

func (f *floor) send(id, parent string) (n int64, err error) {
	const snapshot = "floor-snapshot"
	dir := int(f.dir.Fd())
	source, err := unix.Openat(dir, id, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(source)
	base, err := unix.Openat(dir, parent, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(base)
	baseInfo, err := btrfsctl.Info(base)
	if err != nil {
		return 0, err
	}
	if err := btrfsctl.Snapshot(dir, snapshot, source, true, nil); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, btrfsctl.DestroySubvolume(dir, snapshot)) }()
	top, err := unix.Openat(dir, snapshot, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(top)

	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	sent := make(chan error, 1)
	go func() {
		err := btrfsctl.Send(top, int(w.Fd()), baseInfo.ID, btrfsctl.SendNoFileData, 1)
		w.Close()
		sent <- err
	}()
	n, err = io.CopyBuffer(io.Discard, onlyReader{r}, f.buf)
	return n, errors.Join(err, <-sent)
}

// onlyReader hides the other methods of a reader, so that io.CopyBuffer uses its buffer.
type onlyReader struct{ io.Reader }

func (f *floor) readTree(id string) (int64, error) {
	root, err := unix.Openat(int(f.dir.Fd()), id, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	return f.readDir(root)
}

// readDir reads all below the directory and closes it.
func (f *floor) readDir(fd int) (total int64, err error) {
	dir := os.NewFile(uintptr(fd), "")
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		child, err := unix.Openat(fd, e.Name(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return total, err
		}
		if e.IsDir() {
			n, err := f.readDir(child)
			total += n
			if err != nil {
				return total, err
			}
			continue
		}
		n, err := f.readFile(child)
		total += n
		if err != nil {
			return total, fmt.Errorf("read %s: %w", e.Name(), err)
		}
	}
	return total, nil
}

// readFile reads the file and closes it.
func (f *floor) readFile(fd int) (total int64, err error) {
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, f.buf)
		if n <= 0 || err != nil {
			return total, err
		}
		total += int64(n)
	}
}

func (f *floor) export(id string, format layertar.Format) error {
	if format != layertar.Plain {
		return errNotOffered
	}
	_, err := f.readTree(id)
	return err
}

// walk reads and describes all names of both trees.
func (f *floor) walk(id, parent string) (int, error) {
	for _, name := range []string{id, parent} {
		root, err := unix.Openat(int(f.dir.Fd()), name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		if err := f.statDir(root); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// statDir describes all names below the directory and closes it.
func (f *floor) statDir(fd int) error {
	defer unix.Close(fd)
	var dirs []string
	for {
		n, err := unix.ReadDirent(fd, f.buf)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		_, _, names := unix.ParseDirent(f.buf[:n], -1, nil)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				dirs = append(dirs, name)
			}
		}
	}
	for _, name := range dirs {
		child, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := f.statDir(child); err != nil {
			return err
		}
	}
	return nil
}

// usage reads one file in sysfs.
func (f *floor) usage(id, _ string) (int64, error) {
	fd, err := unix.Openat(int(f.dir.Fd()), id, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	info, err := btrfsctl.Info(fd)
	if err != nil {
		return 0, err
	}
	data, err := os.ReadFile(fmt.Sprintf("%s/qgroups/0_%d/exclusive", f.fsDir, info.ID))
	if errors.Is(err, os.ErrNotExist) { // quotas are off
		return 0, errNotOffered
	}
	if err != nil {
		return 0, err
	}
	var n int64
	_, err = fmt.Sscan(string(data), &n)
	return n, err
}

// remove is the destroy ioctl.
func (f *floor) remove(id string) error { return btrfsctl.DestroySubvolume(int(f.dir.Fd()), id) }

func (f *floor) close() error { return f.dir.Close() }
