package detect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// ZFS reports whether the ZFS driver can work at path, which need not exist yet, in the dataset that is
// mounted there: nil, or an error of the kinds that the package describes. It asks the kernel, and starts no process.
func ZFS(ctx context.Context, path string) error {
	f, err := Probe(path)
	if err != nil {
		return err
	}
	if f.Magic != magicZFS {
		return fmt.Errorf("%w: %s is on %s, not on ZFS: choose a directory on ZFS, or name a dataset with zfs.fsname%s",
			graphdriver.ErrPrerequisites, path, f, missingFilesystem("zfs"))
	}
	if strings.Contains(f.Source, "@") {
		return fmt.Errorf("%w: %s is in the snapshot %s, which is read-only: choose a directory in a filesystem", graphdriver.ErrIncompatibleFS, path, f.Source)
	}
	if f.Source == "" {
		return fmt.Errorf("detect: dataset of %s: its mount is outside this process's root directory", path)
	}
	if err := ZFSDataset(ctx, f.Source); err != nil {
		return err
	}
	if f.ReadOnly {
		return &ReadOnlyError{What: f.String(), Cause: "it is mounted read-only", Advice: fmt.Sprintf("run \"mount -o remount,rw %s\"", f.Mountpoint)}
	}
	return nil
}

// ZFSDataset reports whether the ZFS driver can keep layers in the dataset name, the value of zfs.fsname:
// nil, or an error of the kinds that the package describes. It asks the kernel, and starts no process. Returns
// errdefs.ErrUnavailable if the kernel does not answer.
func ZFSDataset(ctx context.Context, name string) error { return linuxZFS.check(ctx, name) }

// zfsHost is where the parts of ZFS are found. Tests put something else in their places.
type zfsHost struct {
	filesystems string // /proc/filesystems
	device      string // /dev/zfs
	version     func() error
	pool        func(pool string) (health string, err error) // without a call that may wait for the pool
	ask         func(ctx context.Context, dataset string) (facts, error)
	privilege   func() (zfsPrivilege, error)
}

var linuxZFS = zfsHost{
	filesystems: "/proc/filesystems",
	device:      zfsctl.Device,
	version:     zfsctl.CheckVersion,
	pool:        func(pool string) (string, error) { return zfsctl.Health(zfsctl.Kstats, pool) },
	ask:         askKernel,
	privilege:   readPrivilege,
}

func (h zfsHost) check(ctx context.Context, dataset string) error {
	if err := h.checkPrerequisites(); err != nil {
		return err
	}
	pool, _, _ := strings.Cut(dataset, "/")
	health, err := h.pool(pool)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no pool %s: \"zpool import %[2]s\" brings an exported pool back", graphdriver.ErrIncompatibleFS, pool)
	}
	if err != nil {
		return fmt.Errorf("detect: state of the pool %s: %w", pool, err)
	}
	if reason := whyUnhealthy(pool, health); reason != "" {
		return fmt.Errorf("%w: %s", graphdriver.ErrIncompatibleFS, reason)
	}
	found, err := h.ask(ctx, dataset)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: there is no dataset %s: \"zfs create %[2]s\" makes it: %w", graphdriver.ErrIncompatibleFS, dataset, err)
	case errdefs.IsFailedPrecondition(err): // another interface than the known one
		return fmt.Errorf("%w: %w", graphdriver.ErrPrerequisites, err)
	case err != nil:
		return fmt.Errorf("detect: state of the dataset %s: %w", dataset, err)
	case found.poolReadOnly:
		return &ReadOnlyError{
			What: "the pool " + pool, Cause: "it is imported read-only",
			Advice: fmt.Sprintf("run \"zpool export %s\" and \"zpool import %[1]s\"", pool),
		}
	}
	if reason := found.unusable(dataset); reason != "" {
		return fmt.Errorf("%w: %s", graphdriver.ErrIncompatibleFS, reason)
	}
	if found.readOnly {
		return &ReadOnlyError{
			What: dataset, Cause: "its property readonly is on", Advice: fmt.Sprintf("run \"zfs set readonly=off %s\"", dataset),
		}
	}

	privilege, err := h.privilege()
	if err != nil {
		return err
	}
	if reason := privilege.insufficient(dataset, found.zoned); reason != "" {
		return fmt.Errorf("%w: %s", graphdriver.ErrIncompatibleFS, reason)
	}
	return nil
}

// checkPrerequisites looks for the kernel module, its device and version.
func (h zfsHost) checkPrerequisites() error {
	known, err := os.ReadFile(h.filesystems)
	if err != nil {
		return fmt.Errorf("detect: filesystems of the kernel: %w", err)
	}
	if !knowsFilesystem(known, "zfs") {
		return fmt.Errorf("%w: the ZFS kernel module is not loaded: install ZFS for this kernel (package zfs-dkms or zfs-kmod) and run \"modprobe zfs\"", graphdriver.ErrPrerequisites)
	}
	_, err = os.Stat(h.device)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing: in a container, pass the device in", graphdriver.ErrPrerequisites, h.device)
	}
	if err != nil {
		return fmt.Errorf("detect: %w", err)
	}
	if err := h.version(); err != nil {
		return fmt.Errorf("%w: %w", graphdriver.ErrPrerequisites, err)
	}
	return nil
}

// zfsPrivilege has the privileges of this process.
type zfsPrivilege struct {
	initialNamespace bool // it is in the initial user namespace
	sysAdmin         bool // it has CAP_SYS_ADMIN in its user namespace
}

func readPrivilege() (zfsPrivilege, error) {
	initial, err := InitialUserNamespace()
	if err != nil {
		return zfsPrivilege{}, err
	}
	sysAdmin, err := Capable(unix.CAP_SYS_ADMIN)
	return zfsPrivilege{initialNamespace: initial, sysAdmin: sysAdmin}, err
}

// insufficient says why p does not suffice to make, mount and destroy datasets below dataset, or "".
//
// Delegation by zfs allow does not matter: on Linux mounting takes CAP_SYS_ADMIN whatever is delegated, and a process
// with that capability needs no delegation (zfs-allow(8), Caveats). Within a user namespace the capability counts for
// datasets that have been handed to that namespace (zfs-zone(8), OpenZFS 2.2).
func (p zfsPrivilege) insufficient(dataset string, zoned bool) string {
	switch {
	case !p.sysAdmin:
		return "this process lacks CAP_SYS_ADMIN, without which no dataset can be mounted on Linux, whatever \"zfs allow\" delegates: run it as root, and in a container with that capability"
	case p.initialNamespace && zoned:
		return dataset + " is handed to a user namespace (zoned=on): choose another dataset, or run \"zfs set zoned=off " + dataset + "\""
	case !p.initialNamespace && !zoned:
		return "this process is in a nested user namespace, and " + dataset + " has not been handed to it: run \"zfs set zoned=on " + dataset + "\" and \"zfs zone /proc/PID/ns/user " + dataset + "\" outside"
	default:
		return ""
	}
}
