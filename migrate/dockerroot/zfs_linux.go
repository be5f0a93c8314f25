package dockerroot

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// datasets is the driver zfs: a layer is the dataset PARENT/ID. Docker mounts it on zfs/graph/ID while it is used.
type datasets struct {
	root   *rootdir.Dir
	parent string
	byID   map[string]dataset // nil: not listed
}

// dataset is a layer.
type dataset struct {
	quota  int64  // bytes, 0: none
	origin string // ID of the dataset that it is a clone of, "" for none
}

var goodDataset = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.:/ -]*$`)

// newDatasets finds the dataset that the root is in, unless it is given.
func newDatasets(ctx context.Context, root *rootdir.Dir, parent string) (keeper, error) {
	if parent == "" {
		dir, err := root.OpenDir(".")
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		_, mount, err := mountOf(dir)
		if err != nil {
			return nil, err
		}
		if mount.FSType != "zfs" {
			return nil, fault.New(errdefs.ErrNotFound, "the root is on %s, not on ZFS: give the dataset of Docker's option zfs.fsname", mount.FSType)
		}
		parent = mount.Source
	}
	if !goodDataset.MatchString(parent) {
		return nil, fault.New(errdefs.ErrInvalidArgument, "%s is no dataset", shown(parent))
	}
	return &datasets{root: root, parent: parent}, ctx.Err()
}

// refresh lists the datasets.
func (d *datasets) refresh(ctx context.Context) (keeper, error) {
	byID, err := d.list(ctx)
	return &datasets{root: d.root, parent: d.parent, byID: byID}, err
}

func (d *datasets) list(ctx context.Context) (map[string]dataset, error) {
	out, err := zfs(ctx, "list", "-H", "-p", "-d", "1", "-t", "filesystem", "-o", "name,quota,origin", d.parent)
	if err != nil {
		return nil, err
	}
	byID := map[string]dataset{}
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		id, ok := strings.CutPrefix(fields[0], d.parent+"/")
		if !ok || !isLayerID(id) || len(fields) != 3 {
			continue
		}
		quota, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, fault.New(errdefs.ErrInternal, "zfs: quota %s", shown(fields[1]))
		}
		origin, _, _ := strings.Cut(strings.TrimPrefix(fields[2], d.parent+"/"), "@")
		byID[id] = dataset{quota: quota, origin: origin}
	}
	return byID, nil
}

// check ignores the parent: a dataset whose origin was promoted has another.
func (d *datasets) check(id string, _ int) error {
	if _, ok := d.byID[id]; !ok {
		return fault.New(errdefs.ErrNotFound, "dataset %s does not exist", d.name(id))
	}
	return nil
}

func (d *datasets) name(id string) string { return d.parent + "/" + id }

func (d *datasets) limit(id string) int64 { return d.byID[id].quota }

// open mounts the dataset on no directory. The mount ends when the content is closed, or the process ends.
func (d *datasets) open(ctx context.Context, id string) (*migrate.Content, error) {
	name := d.name(id)
	dir, err := mountDetached(name, true)
	if errors.Is(err, unix.EBUSY) {
		dir, err = mountDetached(name, false) // it is mounted elsewhere, for writing
	}
	if errors.Is(err, unix.ENOENT) {
		err = fault.As(errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, fault.Wrap("mount dataset", name, err)
	}
	return &migrate.Content{Dir: dir, Form: migrate.Whole, Volume: name}, ctx.Err()
}

// mountDetached mounts a dataset, for reading only, and opens its root. The filesystem itself may be writable.
func mountDetached(name string, readOnly bool) (*os.File, error) {
	context, err := unix.Fsopen("zfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(context)
	if err := unix.FsconfigSetString(context, "source", name); err != nil {
		return nil, err
	}
	if readOnly {
		if err := unix.FsconfigSetFlag(context, "ro"); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, err
	}
	const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	mount, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (d *datasets) uses() []string { return nil }

// checkMounts returns ErrFailedPrecondition if a layer is mounted.
func (d *datasets) checkMounts() error {
	uses, err := mounttable.UsesOfSource("zfs", func(source string) bool {
		id, ok := strings.CutPrefix(source, d.parent+"/")
		return ok && isLayerID(id)
	})
	if err != nil {
		return err
	}
	return mounttable.InUse("a layer in "+d.parent, uses)
}

// remove destroys the datasets, clones before their origins. Other clones of them, which no layer is, are not destroyed: the
// dataset that they depend on is an error.
func (d *datasets) remove(ctx context.Context) error {
	byID, err := d.list(ctx)
	if err != nil {
		return err
	}
	for _, id := range clonesFirst(byID) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := zfs(ctx, "destroy", "-r", d.name(id)); err != nil {
			return err
		}
	}
	return removeTree(ctx, d.root, "zfs", false)
}

// clonesFirst sorts datasets, so that each comes before its origin.
func clonesFirst(byID map[string]dataset) []string {
	clones := map[string][]string{}
	var order []string // origins first
	for id, d := range byID {
		if _, ok := byID[d.origin]; ok {
			clones[d.origin] = append(clones[d.origin], id)
		} else {
			order = append(order, id)
		}
	}
	for i := 0; i < len(order); i++ {
		order = append(order, clones[order[i]]...)
	}
	slices.Reverse(order)
	return order
}

// zfs runs the command.
func zfs(ctx context.Context, args ...string) (string, error) {
	tool, err := admintool.Look("zfs")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fault.New(errdefs.ErrFailedPrecondition, "%s %s: %w: %s", path.Base(tool), strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return out.String(), nil
}
