package dataset

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/admintool"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

var goodName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.:/ -]*$`)

// Holder is the dataset that a root is in, unless it is given. Returns errdefs.ErrFailedPrecondition if the root is not on
// ZFS, and errdefs.ErrInvalidArgument if the name cannot be that of a dataset.
func Holder(root *rootdir.Dir, given string) (string, error) {
	if given == "" {
		dir, err := root.OpenDir(".")
		if err != nil {
			return "", err
		}
		defer dir.Close()
		mount, _, err := rootuse.MountOf(dir)
		if err != nil {
			return "", err
		}
		if mount.FSType != "zfs" {
			return "", fault.New(errdefs.ErrFailedPrecondition, "the root is on %s, not on ZFS: give the dataset that has those of the layers (the driver's option zfs.fsname)", mount.FSType)
		}
		given = mount.Source
	}
	if !goodName.MatchString(given) {
		return "", fault.New(errdefs.ErrInvalidArgument, "%.100q is no dataset", given)
	}
	return given, nil
}

// Children lists the datasets in a holder, by ID, which is the last part of the name.
func Children(ctx context.Context, holder string) (map[string]Dataset, error) {
	out, err := run(ctx, "list", "-H", "-p", "-d", "1", "-t", "filesystem", "-o", "name,quota,origin", holder)
	if err != nil {
		return nil, err
	}
	return parse(out, holder)
}

// parse reads the output of "zfs list" for a holder and its children.
func parse(out, holder string) (map[string]Dataset, error) {
	byID := map[string]Dataset{}
	for line := range strings.Lines(out) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		id, ok := strings.CutPrefix(fields[0], holder+"/")
		if !ok || len(fields) != 3 {
			continue
		}
		quota, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return nil, fault.New(errdefs.ErrInternal, "zfs: quota %.100q", fields[1])
		}
		origin, _, _ := strings.Cut(strings.TrimPrefix(fields[2], holder+"/"), "@")
		byID[id] = Dataset{Quota: quota, Origin: origin}
	}
	return byID, nil
}

// InUse returns fault.ErrInUse if a child is mounted that is a layer.
func InUse(holder string, isLayer func(id string) bool) error {
	uses, err := mounttable.UsesOfSource("zfs", func(source string) bool {
		id, ok := strings.CutPrefix(source, holder+"/")
		return ok && isLayer(id)
	})
	if err != nil {
		return err
	}
	return mounttable.InUse("a layer in "+holder, uses)
}

// Destroy destroys children of a holder with their snapshots, clones before their origins. Other clones of them are not
// destroyed: the dataset that they depend on is an error.
func Destroy(ctx context.Context, holder string, layers map[string]Dataset) error {
	for _, id := range clonesFirst(layers) {
		if err := ctx.Err(); err != nil {
			return err
		}
		// The command is not stopped: that would leave it to do its work later.
		if _, err := run(context.WithoutCancel(ctx), "destroy", "-r", holder+"/"+id); err != nil {
			return err
		}
	}
	return nil
}

// clonesFirst sorts datasets, so that each comes before its origin.
func clonesFirst(byID map[string]Dataset) []string {
	clones := map[string][]string{}
	var order []string // origins first
	for id, d := range byID {
		if _, ok := byID[d.Origin]; ok {
			clones[d.Origin] = append(clones[d.Origin], id)
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

// run runs the command zfs.
func run(ctx context.Context, args ...string) (string, error) {
	tool, err := admintool.Look("zfs")
	if err != nil {
		return "", fault.As(errdefs.ErrFailedPrecondition, err)
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
