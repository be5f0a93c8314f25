package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/plugin"
)

// measuredDocker counts an engine's calls of its graph driver.
type measuredDocker struct {
	plugin.Driver
	metrics *metrics
}

func (d measuredDocker) measure(operation string, f func() error) error {
	end := d.metrics.begin(dockerService, operation)
	err := f()
	end(err)
	return err
}

// Init implements plugin.Driver.
func (d measuredDocker) Init(home string, options []string, uidMaps, gidMaps []user.IDMap) error {
	return d.measure("init", func() error { return d.Driver.Init(home, options, uidMaps, gidMaps) })
}

// Create implements plugin.Driver.
func (d measuredDocker) Create(id, parent, mountLabel string, storageOpt map[string]string) error {
	return d.measure("create", func() error { return d.Driver.Create(id, parent, mountLabel, storageOpt) })
}

// CreateReadWrite implements plugin.Driver.
func (d measuredDocker) CreateReadWrite(id, parent, mountLabel string, storageOpt map[string]string) error {
	return d.measure("create_read_write", func() error { return d.Driver.CreateReadWrite(id, parent, mountLabel, storageOpt) })
}

// Remove implements plugin.Driver.
func (d measuredDocker) Remove(id string) error {
	return d.measure("remove", func() error { return d.Driver.Remove(id) })
}

// Get implements plugin.Driver.
func (d measuredDocker) Get(id, mountLabel string) (dir string, err error) {
	err = d.measure("get", func() error { dir, err = d.Driver.Get(id, mountLabel); return err })
	return dir, err
}

// Put implements plugin.Driver.
func (d measuredDocker) Put(id string) error {
	return d.measure("put", func() error { return d.Driver.Put(id) })
}

// GetMetadata implements plugin.Driver.
func (d measuredDocker) GetMetadata(id string) (metadata map[string]string, err error) {
	err = d.measure("get_metadata", func() error { metadata, err = d.Driver.GetMetadata(id); return err })
	return metadata, err
}

// Cleanup implements plugin.Driver.
func (d measuredDocker) Cleanup() error { return d.measure("cleanup", d.Driver.Cleanup) }

// Changes implements plugin.Driver.
func (d measuredDocker) Changes(id, parent string) (changes []plugin.Change, err error) {
	err = d.measure("changes", func() error { changes, err = d.Driver.Changes(id, parent); return err })
	return changes, err
}

// DiffSize implements plugin.Driver.
func (d measuredDocker) DiffSize(id, parent string) (size int64, err error) {
	err = d.measure("diff_size", func() error { size, err = d.Driver.DiffSize(id, parent); return err })
	return size, err
}

// ApplyDiff implements plugin.Driver.
func (d measuredDocker) ApplyDiff(id, parent string, archive io.Reader) (size int64, err error) {
	err = d.measure("apply_diff", func() error { size, err = d.Driver.ApplyDiff(id, parent, archive); return err })
	d.metrics.layer(dockerService, layerApplied, size, err)
	return size, err
}

// Diff implements plugin.Driver. The operation ends when the reader is closed.
func (d measuredDocker) Diff(id, parent string) io.ReadCloser {
	end := d.metrics.begin(dockerService, "diff")
	r := &measuredReader{ReadCloser: d.Driver.Diff(id, parent)}
	r.end = sync.OnceFunc(func() {
		err := r.result()
		end(err)
		d.metrics.layer(dockerService, layerMade, r.size.Load(), err)
	})
	return r
}

// measuredReader knows how much of a diff was read and how that ended. It may be closed during a Read.
type measuredReader struct {
	io.ReadCloser
	size atomic.Int64
	err  atomic.Pointer[error] // of the last Read
	end  func()
}

// Read implements io.Reader.
func (r *measuredReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.size.Add(int64(n))
	if err != nil {
		r.err.CompareAndSwap(nil, &err)
	}
	return n, err
}

// Close implements io.Closer.
func (r *measuredReader) Close() error {
	err := r.ReadCloser.Close()
	r.end()
	return err
}

// errBrokenOff is the result of a diff that was not read to its end.
var errBrokenOff = fmt.Errorf("the diff was not read to its end: %w", context.Canceled)

func (r *measuredReader) result() error {
	switch err := r.err.Load(); {
	case err == nil:
		return errBrokenOff
	case errors.Is(*err, io.EOF):
		return nil
	default:
		return *err
	}
}
