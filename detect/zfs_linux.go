package detect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// ZFS reports whether the ZFS driver can work at path, which need not exist yet, in the dataset that is
// mounted there: nil, or an error of the kinds that the package describes. It runs zpool and zfs once each.
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
// nil, or an error of the kinds that the package describes. It runs zpool and zfs once each.
func ZFSDataset(ctx context.Context, name string) error { return linuxZFS.check(ctx, name) }

// zfsHost is where the parts of ZFS are found. Tests put something else in their places.
type zfsHost struct {
	filesystems string // /proc/filesystems
	device      string // /dev/zfs
	version     func() error
	lookPath    func(command string) (string, error)
	run         func(ctx context.Context, command string, args ...string) ([]byte, error)
	privilege   func() (zfsPrivilege, error)
}

var linuxZFS = zfsHost{
	filesystems: "/proc/filesystems",
	device:      zfsctl.Device,
	version:     zfsctl.CheckVersion,
	lookPath:    admintool.Look,
	run:         runCommand,
	privilege:   readPrivilege,
}

func (h zfsHost) check(ctx context.Context, dataset string) error {
	if err := h.checkPrerequisites(); err != nil {
		return err
	}
	pool, _, _ := strings.Cut(dataset, "/")
	out, err := h.run(ctx, "zpool", "get", "-Hp", "-o", "property,value", "health,readonly", pool)
	if err != nil {
		return fmt.Errorf("%w: cannot ask for the state of the pool %s: %w", graphdriver.ErrIncompatibleFS, pool, err)
	}
	state, err := parsePool(out)
	if err != nil {
		return fmt.Errorf("detect: zpool get of %s: %w", pool, err)
	}
	if reason := state.unusable(pool); reason != "" {
		return fmt.Errorf("%w: %s", graphdriver.ErrIncompatibleFS, reason)
	}
	if state.readOnly {
		return &ReadOnlyError{
			What: "the pool " + pool, Cause: "it is imported read-only",
			Advice: fmt.Sprintf("run \"zpool export %s\" and \"zpool import %[1]s\"", pool),
		}
	}

	out, err = h.run(ctx, "zfs", "get", "-Hp", "-o", "property,value", "type,mounted,readonly,keystatus,zoned", dataset)
	if err != nil {
		return fmt.Errorf("%w: cannot ask for the state of the dataset %s: %w: if it does not exist, \"zfs create %[2]s\" makes it", graphdriver.ErrIncompatibleFS, dataset, err)
	}
	properties, err := parseDataset(out)
	if err != nil {
		return fmt.Errorf("detect: zfs get of %s: %w", dataset, err)
	}
	if reason := properties.unusable(dataset); reason != "" {
		return fmt.Errorf("%w: %s", graphdriver.ErrIncompatibleFS, reason)
	}
	if properties.readOnly {
		return &ReadOnlyError{
			What: dataset, Cause: "its property readonly is on", Advice: fmt.Sprintf("run \"zfs set readonly=off %s\"", dataset),
		}
	}

	privilege, err := h.privilege()
	if err != nil {
		return err
	}
	if reason := privilege.insufficient(dataset, properties.zoned); reason != "" {
		return fmt.Errorf("%w: %s", graphdriver.ErrIncompatibleFS, reason)
	}
	return nil
}

// checkPrerequisites looks for the kernel module, its device and version, and the commands.
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
	for _, command := range []string{"zfs", "zpool"} {
		if _, err := h.lookPath(command); err != nil {
			return fmt.Errorf("%w: the command %s is missing: install the package zfsutils-linux or zfs: %w", graphdriver.ErrPrerequisites, command, err)
		}
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

// commandTimeout is how long zfs or zpool may take to answer. They wait in the kernel while a pool is
// suspended.
const commandTimeout = 30 * time.Second

// runCommand runs a command and returns its output. Its error has the command's error output.
func runCommand(ctx context.Context, command string, args ...string) ([]byte, error) {
	path, err := admintool.Look(command)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(limited, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if limited.Err() != nil {
		return nil, fmt.Errorf("%s %s has not answered for %s; the pool may be suspended: %w", command, strings.Join(args, " "), commandTimeout, limited.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
