package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/mounttable"
)

// databases are files of bolt, which an engine has locked as long as it runs. A "*" stands for all names.
var databases = []string{
	"volumes/metadata.db",
	"network/files/local-kv.db",
	"buildkit/*.db",
	"content/metadata.db",
	"containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
}

// InUse implements migrate.Source. An engine has its databases locked. Containers that outlive it have their layers mounted.
func (s *Source) InUse(ctx context.Context) (err error) {
	defer func() { err = fault.Wrap("see who uses", s.root.Path(), err) }()
	if err := s.checkLocks(ctx); err != nil {
		return err
	}
	for _, dir := range s.keeper.uses() {
		if err := s.checkMounts(dir); err != nil {
			return err
		}
	}
	if d, ok := s.keeper.(*datasets); ok {
		if err := d.checkMounts(); err != nil {
			return err
		}
	}
	return s.checkMountpoints()
}

// checkLocks returns ErrFailedPrecondition if an engine runs.
func (s *Source) checkLocks(ctx context.Context) error {
	for _, pattern := range databases {
		files, err := s.glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := s.checkLock(ctx, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// glob lists the names of a pattern whose last part may have a "*".
func (s *Source) glob(pattern string) (files []string, err error) {
	dir, last := path.Split(pattern)
	if !strings.Contains(last, "*") {
		return []string{pattern}, nil
	}
	names, err := s.list(path.Clean(dir))
	for _, name := range names {
		if ok, _ := path.Match(last, name); ok { // a constant pattern
			files = append(files, dir+name)
		}
	}
	return files, err
}

// checkLock returns ErrFailedPrecondition if a process has a database locked.
func (s *Source) checkLock(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := s.root.OpenFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	err = unix.Fstat(int(file.Fd()), &stat)
	free := false
	if err == nil {
		free, err = flock.TryShared(file)
	}
	if err := errors.Join(err, flock.Release(file)); err != nil || free {
		return err
	}
	by := "a process that cannot be seen from here"
	if holders := mounttable.Holders(mounttable.File{Device: stat.Dev, Inode: stat.Ino}); len(holders) > 0 {
		by = mounttable.DescribeProcess(holders[0])
	}
	return fault.New(fault.ErrInUse, "%s has %s locked: stop the engine", by, s.root.Join(name))
}

// checkMounts returns ErrFailedPrecondition if something in a directory is mounted somewhere.
func (s *Source) checkMounts(name string) error {
	dir, err := s.root.OpenDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	filesystem, err := mounttable.New(int(dir.Fd()))
	if err != nil {
		return err
	}
	at, _, err := mountOf(dir)
	if err != nil {
		return err
	}
	uses, err := filesystem.UsesOf(at)
	if err != nil {
		return fault.Wrap("find the mounts of", dir.Name(), err)
	}
	// Docker mounts the driver's directory on itself, and does not unmount it when it is killed. That uses no layer.
	uses = slices.DeleteFunc(uses, func(u mounttable.Use) bool { return u.Layer == "" && u.Mountpoint == dir.Name() })
	if len(uses) == 0 {
		return nil
	}
	has, err := s.namesIn(name)
	if err != nil {
		return err
	}
	uses = slices.DeleteFunc(uses, func(u mounttable.Use) bool { return isElsewhere(u.Layer, has) })
	return mounttable.InUse("a layer in "+dir.Name(), uses)
}

// namesIn are the IDs and short names of the layers in a directory.
func (s *Source) namesIn(dir string) (map[string]bool, error) {
	has := map[string]bool{}
	for _, name := range []string{dir, path.Join(dir, linkDir)} {
		names, err := s.list(name)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			has[n] = true
		}
	}
	return has, nil
}

// isElsewhere reports whether the path of an overlay's layer is that of another root's layer. The kernel tells such paths
// only, whose ends are the same in all roots. IDs and short names are not.
func isElsewhere(layer string, has map[string]bool) bool {
	named := false
	for name := range strings.SplitSeq(layer, "/") {
		if isLayerID(name) || isLink(name) {
			if has[name] {
				return false
			}
			named = true
		}
	}
	return named
}

// isLink reports whether name is a short name of a layer.
func isLink(name string) bool {
	return len(name) == 26 && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
}

// checkMountpoints returns ErrFailedPrecondition if something is mounted below the directories of the driver. It would be
// taken for a layer's content.
func (s *Source) checkMountpoints() error {
	for _, dir := range []string{s.driver, s.image} {
		below := s.root.Join(dir) + "/"
		mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
			return !strings.HasPrefix(m.Mountpoint, below), false
		})
		if err != nil {
			return err
		}
		if len(mounts) > 0 {
			return fault.New(fault.ErrInUse, "%s is mounted on %s: unmount it", mounts[0].Source, mounts[0].Mountpoint)
		}
	}
	return nil
}

// mountOf finds the mount that an open directory is in, and the directory's path from the top of its filesystem.
func mountOf(dir *os.File) (at string, _ *mountinfo.Info, err error) {
	id, err := mountID(dir)
	if err != nil {
		return "", nil, err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.ID != id, m.ID == id })
	if err != nil {
		return "", nil, err
	}
	if len(mounts) == 0 {
		return "", nil, fault.New(errdefs.ErrNotFound, "the mount that %s is in cannot be seen from here", dir.Name())
	}
	now, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return "", nil, err
	}
	return path.Join(mounts[0].Root, strings.TrimPrefix(now, mounts[0].Mountpoint)), mounts[0], nil
}

// mountID is the ID of the mount that an open file is in.
func mountID(file *os.File) (int, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(file.Fd())))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if value, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(value))
		}
	}
	return 0, fault.New(errdefs.ErrInternal, "the kernel does not tell the mount of %s", file.Name())
}
