package detect

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Numbers of filesystems (f_type of statfs(2), from include/uapi/linux/magic.h), and of ZFS from OpenZFS's
// include/sys/fs/zfs.h.
const (
	magicBtrfs = unix.BTRFS_SUPER_MAGIC
	magicZFS   = 0x2FC12FC1
	magicExt   = unix.EXT4_SUPER_MAGIC // ext2 and ext3 have the same
)

var typeNames = map[uint32]string{
	magicBtrfs:                 "btrfs",
	magicZFS:                   "zfs",
	magicExt:                   "ext4",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.RAMFS_MAGIC:           "ramfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.CIFS_SUPER_MAGIC:      "cifs",
	unix.SMB2_SUPER_MAGIC:      "smb2",
	unix.CEPH_SUPER_MAGIC:      "ceph",
	unix.V9FS_MAGIC:            "9p",
	unix.ECRYPTFS_SUPER_MAGIC:  "ecryptfs",
	unix.SQUASHFS_MAGIC:        "squashfs",
	unix.EROFS_SUPER_MAGIC_V1:  "erofs",
	unix.MSDOS_SUPER_MAGIC:     "vfat",
	unix.PROC_SUPER_MAGIC:      "proc",
	unix.SYSFS_MAGIC:           "sysfs",
}

// Probe returns the filesystem that holds path. If path does not exist, it returns the filesystem of the nearest
// existing ancestor: path would be made there.
func Probe(path string) (Filesystem, error) {
	dir, err := openNearest(path)
	if err != nil {
		return Filesystem{}, fmt.Errorf("detect: filesystem of %s: %w", path, err)
	}
	defer dir.Close()
	f, err := probe(dir)
	if err != nil {
		return Filesystem{}, fmt.Errorf("detect: filesystem of %s: %w", path, err)
	}
	return f, nil
}

// openNearest opens path or its nearest ancestor that exists, as a place and not for reading.
func openNearest(path string) (*os.File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(path, unix.O_PATH, 0)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		if _, linkErr := os.Lstat(path); linkErr == nil {
			return nil, fmt.Errorf("%s is a link to nowhere: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

func probe(place *os.File) (Filesystem, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(place.Fd()), &st); err != nil {
		return Filesystem{}, fmt.Errorf("statfs: %w", err)
	}
	magic := uint32(st.Type) // int32, uint32 or int64 by platform, always of 32 bits
	f := Filesystem{
		Path:     place.Name(),
		Magic:    magic,
		Type:     typeNames[magic],
		ReadOnly: st.Flags&unix.ST_RDONLY != 0,
	}
	mount, err := mountOf(place)
	if err != nil {
		return Filesystem{}, err
	}
	if mount != nil {
		f.Mountpoint = mount.Mountpoint
		f.Source = mount.Source
		f.Root = mount.Root
		f.Options = joinOptions(mount.Options, mount.VFSOptions)
		f.forcedReadOnly = hasOption(mount.Options, "rw") && hasOption(mount.VFSOptions, "ro")
		if f.Type == "" || magic == magicExt {
			f.Type = mount.FSType
		}
	}
	if f.Type == "" {
		f.Type = fmt.Sprintf("%#x", magic)
	}
	return f, nil
}

// mountOf finds the mount that place was opened through, by its id. So it distinguishes mounts on top of each other
// and bind mounts. It is nil if the mount is outside this process's root directory.
func mountOf(place *os.File) (*mountinfo.Info, error) {
	// The link and the descriptor that it names belong to the thread group, so it does not matter
	// which thread reads it.
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(int(place.Fd())))
	if err != nil {
		return nil, err
	}
	id, err := parseMountID(info)
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.ID != id, m.ID == id
	})
	if err != nil || len(mounts) == 0 {
		return nil, err
	}
	return mounts[0], nil
}

// parseMountID reads mnt_id of /proc/PID/fdinfo/FD, of proc(5).
func parseMountID(fdinfo []byte) (int, error) {
	for line := range bytes.Lines(fdinfo) {
		if value, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(value)))
		}
	}
	return 0, errors.New("fdinfo has no mnt_id")
}

// joinOptions joins the options of a mount and of its filesystem, without those of the second that the
// first has too.
func joinOptions(mount, filesystem string) string {
	options := strings.Split(mount, ",")
	seen := make(map[string]bool, len(options))
	for _, o := range options {
		seen[o] = true
	}
	for o := range strings.SplitSeq(filesystem, ",") {
		// A read-only mount of a writable filesystem is read-only.
		if o != "" && !seen[o] && o != "rw" && o != "ro" {
			options = append(options, o)
		}
	}
	return strings.Join(options, ",")
}
