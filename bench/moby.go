package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/moby/go-archive/compression"
	"github.com/moby/moby/v2/daemon/graphdriver"
	_ "github.com/moby/moby/v2/daemon/graphdriver/zfs" // registers the driver
)

// moby is the graph driver of Docker Engine.
type moby struct{ driver graphdriver.Driver }

func newMoby(filesystem, root string) (contender, error) {
	driver, err := graphdriver.New(filesystem, graphdriver.Options{Root: root})
	if err != nil {
		return nil, err
	}
	return &moby{driver}, nil
}

func (*moby) name() string { return "moby" }

func (m *moby) apply(id string, layer *layer, format layertar.Format) error {
	f, err := layer.open(format)
	if err != nil {
		return err
	}
	defer f.Close()
	tar, err := compression.DecompressStream(f)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := m.driver.Create(id, "", nil); err != nil {
		return err
	}
	_, err = m.driver.ApplyDiff(id, "", tar)
	return err
}

func (m *moby) create(id, parent string, limit int64) error {
	return m.driver.CreateReadWrite(id, parent, &graphdriver.CreateOpts{StorageOpt: storageOpt(limit)})
}

func (m *moby) edit(id string, f func(dir string) error) error {
	dir, err := m.driver.Get(id, "")
	if err != nil {
		return err
	}
	return errors.Join(f(dir), m.driver.Put(id))
}

func (m *moby) changes(id, parent string) (int, error) {
	changes, err := m.driver.Changes(id, parent)
	return len(changes), err
}

func (m *moby) diff(id, parent string) (diffResult, error) {
	start := time.Now()
	tar, err := m.driver.Diff(id, parent)
	if err != nil {
		return diffResult{}, err
	}
	result, err := readDiff(start, tar)
	return result, errors.Join(err, tar.Close())
}

func (m *moby) export(id string, format layertar.Format) error {
	how := compression.None
	switch format {
	case layertar.Gzip:
		how = compression.Gzip
	case layertar.Zstd:
		return errNotOffered
	case layertar.Plain:
	}
	tar, err := m.driver.Diff(id, "")
	if err != nil {
		return err
	}
	err = compressDiff(tar, func(w io.Writer) (io.WriteCloser, error) { return compression.CompressStream(w, how) })
	return errors.Join(err, tar.Close())
}

// walk is the same as listing changes.
func (m *moby) walk(id, parent string) (int, error) { return m.changes(id, parent) }

func (m *moby) usage(id, parent string) (int64, error) { return m.driver.DiffSize(id, parent) }

func (m *moby) remove(id string) error { return m.driver.Remove(id) }

func (m *moby) close() error { return m.driver.Cleanup() }

// storageOpt is the option for a limit that all graph drivers know.
func storageOpt(limit int64) map[string]string {
	if limit == 0 {
		return nil
	}
	return map[string]string{"size": fmt.Sprint(limit)}
}
