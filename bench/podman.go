//go:build cgo

package main

import (
	"errors"
	"io"
	"path/filepath"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	graphdriver "go.podman.io/storage/drivers"
	_ "go.podman.io/storage/drivers/btrfs" // registers the driver
	"go.podman.io/storage/pkg/archive"
)

// podman is the graph driver of podman, buildah and CRI-O.
type podman struct{ driver graphdriver.Driver }

func newPodman(filesystem, root string) (contender, error) {
	driver, err := graphdriver.GetDriver(filesystem, graphdriver.Options{
		Root: root, RunRoot: filepath.Join(root, "run"),
	})
	if err != nil {
		return nil, err
	}
	return &podman{driver}, nil
}

func (*podman) name() string { return "podman" }

func (p *podman) apply(id string, layer *layer, format layertar.Format) error {
	f, err := layer.open(format)
	if err != nil {
		return err
	}
	defer f.Close()
	tar, err := archive.DecompressStream(f)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := p.driver.Create(id, "", nil); err != nil {
		return err
	}
	_, err = p.driver.ApplyDiff(id, graphdriver.ApplyDiffOpts{Diff: tar})
	return err
}

func (p *podman) create(id, parent string, limit int64) error {
	return p.driver.CreateReadWrite(id, parent, &graphdriver.CreateOpts{StorageOpt: storageOpt(limit)})
}

func (p *podman) edit(id string, f func(dir string) error) error {
	dir, err := p.driver.Get(id, graphdriver.MountOpts{})
	if err != nil {
		return err
	}
	return errors.Join(f(dir), p.driver.Put(id))
}

func (p *podman) changes(id, parent string) (int, error) {
	changes, err := p.driver.Changes(id, nil, parent, nil, "")
	return len(changes), err
}

func (p *podman) diff(id, parent string) (diffResult, error) {
	start := time.Now()
	tar, err := p.driver.Diff(id, nil, parent, nil, "")
	if err != nil {
		return diffResult{}, err
	}
	result, err := readDiff(start, tar)
	return result, errors.Join(err, tar.Close())
}

func (p *podman) export(id string, format layertar.Format) error {
	tar, err := p.driver.Diff(id, nil, "", nil, "")
	if err != nil {
		return err
	}
	how := map[layertar.Format]archive.Compression{
		layertar.Plain: archive.Uncompressed, layertar.Gzip: archive.Gzip, layertar.Zstd: archive.Zstd,
	}[format]
	err = compressDiff(tar, func(w io.Writer) (io.WriteCloser, error) { return archive.CompressStream(w, how) })
	return errors.Join(err, tar.Close())
}

// walk is the same as listing changes.
func (p *podman) walk(id, parent string) (int, error) { return p.changes(id, parent) }

func (p *podman) usage(id, _ string) (int64, error) {
	usage, err := p.driver.ReadWriteDiskUsage(id)
	if err != nil {
		return 0, err
	}
	return usage.Size, nil
}

func (p *podman) remove(id string) error { return p.driver.Remove(id) }

func (p *podman) close() error { return p.driver.Cleanup() }
