package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	_ "github.com/cowshed/cowshed/btrfs" // registers the driver
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	_ "github.com/cowshed/cowshed/zfs" // registers the driver
)

// cowshed is this project's driver through its graph driver API, as a program would use it.
type cowshed struct{ driver graphdriver.Driver }

func newCowshed(filesystem, root string, options ...string) (contender, error) {
	driver, err := graphdriver.New(filesystem, graphdriver.Options{Root: root, DriverOptions: options})
	if err != nil {
		return nil, err
	}
	return &cowshed{driver}, nil
}

func (*cowshed) name() string { return "cowshed" }

func (c *cowshed) apply(id string, layer *layer, format layertar.Format) error {
	f, err := layer.open(format)
	if err != nil {
		return err
	}
	defer f.Close()
	tar, _, err := layertar.Decompress(f)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := c.driver.Create(id, "", nil); err != nil {
		return err
	}
	_, err = c.driver.ApplyDiff(id, "", tar)
	return err
}

func (c *cowshed) create(id, parent string, limit int64) error {
	return c.driver.CreateReadWrite(id, parent, &graphdriver.CreateOpts{StorageOpt: storageOpt(limit)})
}

func (c *cowshed) edit(id string, f func(dir string) error) error {
	dir, err := c.driver.Get(id, "")
	if err != nil {
		return err
	}
	return errors.Join(f(dir), c.driver.Put(id))
}

func (c *cowshed) changes(id, parent string) (int, error) {
	changes, err := c.driver.Changes(id, parent)
	return len(changes), err
}

func (c *cowshed) diff(id, parent string) (diffResult, error) {
	start := time.Now()
	tar, err := c.driver.Diff(id, parent)
	if err != nil {
		return diffResult{}, err
	}
	result, err := readDiff(start, tar)
	return result, errors.Join(err, tar.Close())
}

func (c *cowshed) export(id string, format layertar.Format) error {
	tar, err := c.driver.Diff(id, "")
	if err != nil {
		return err
	}
	err = compressDiff(tar, func(w io.Writer) (io.WriteCloser, error) { return layertar.Compress(w, format, 0) })
	return errors.Join(err, tar.Close())
}

func (c *cowshed) walk(id, parent string) (n int, err error) {
	top, err := c.driver.Get(id, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.driver.Put(id)) }()
	base, err := c.driver.Get(parent, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.driver.Put(parent)) }()
	changes, err := treediff.Compare(context.Background(), top, base, nil)
	return len(changes), err
}

func (c *cowshed) usage(id, _ string) (int64, error) {
	driver, ok := c.driver.(*cowdriver.Driver)
	if !ok {
		return 0, errNotOffered
	}
	usage, err := driver.Usage(context.Background(), id)
	return int64(usage.Bytes), err
}

// commit seals a layer, as a commit does. The layer keeps its name.
func (c *cowshed) commit(_, id string) error {
	driver, ok := c.driver.(*cowdriver.Driver)
	if !ok {
		return errNotOffered
	}
	return cowcommon.Seal(context.Background(), driver.Backend(), id)
}

func (c *cowshed) remove(id string) error { return c.driver.Remove(id) }

// close also checks that the native comparison was measured and not a silent walk.
func (c *cowshed) close() error {
	var walked error
	if driver, ok := c.driver.(*cowdriver.Driver); ok {
		walked = checkNative(driver.CompareStats())
	}
	return errors.Join(walked, c.driver.Cleanup())
}

func checkNative(stats cowcommon.CompareStats) error {
	if len(stats.Walked) > 0 {
		return fmt.Errorf("cowshed walked trees instead of comparing natively: %v", stats.Walked)
	}
	return nil
}
