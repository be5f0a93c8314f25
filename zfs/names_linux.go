package zfs

import (
	"context"
	"os"
	"strings"

	"github.com/cowshed/cowshed/detect"
)

// Names lists the layers of the driver that Init would open on home with these options. Programs use it to help people
// type the names. It locks, mounts and cleans up nothing.
func Names(ctx context.Context, home string, options []string) ([]string, error) {
	opts, err := parseOptions(options)
	if err != nil {
		return nil, err
	}
	root := opts.FSName
	if root == "" {
		if _, err := os.Stat(home); err != nil {
			return nil, err
		}
		found, err := detect.Probe(home)
		if err != nil || found.Type != Name {
			return nil, err
		}
		root = found.Source
	}
	pool, _, _ := strings.Cut(root, "/")
	zfs, err := openControl(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer zfs.kernel.Close()
	datasets, err := (&index{zfs: zfs, root: root}).read(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for name, d := range datasets {
		if d.own {
			names = append(names, name)
		}
	}
	return names, nil
}
