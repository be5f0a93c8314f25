package plugin

import (
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/graphdriver"
)

// fake is a driver whose methods are the test's, and which fails for layers that do not exist.
type fake struct {
	layers sync.Map // ids

	remove    func(id string) error
	diff      func(id, parent string) (io.ReadCloser, error)
	applyDiff func(diff io.Reader) (int64, error)
	changes   func() ([]archive.Change, error)
	cleanup   func() error
}

var _ graphdriver.Driver = (*fake)(nil)

func (f *fake) String() string { return "fake" }

func (f *fake) Create(id, _ string, _ *graphdriver.CreateOpts) error {
	if _, exists := f.layers.LoadOrStore(id, nil); exists {
		return errdefs.ErrAlreadyExists
	}
	return nil
}

func (f *fake) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return f.Create(id, parent, opts)
}

func (f *fake) Remove(id string) error {
	if f.remove != nil {
		return f.remove(id)
	}
	f.layers.Delete(id)
	return nil
}

func (f *fake) Get(id, _ string) (string, error) {
	if !f.Exists(id) {
		return "", errdefs.ErrNotFound
	}
	return "/layers/" + id, nil
}

func (f *fake) Put(string) error { return nil }

func (f *fake) Exists(id string) bool {
	_, exists := f.layers.Load(id)
	return exists
}

func (f *fake) Status() [][2]string { return [][2]string{{"B", "1"}, {"A", "2"}} }

func (f *fake) GetMetadata(id string) (map[string]string, error) {
	if !f.Exists(id) {
		return nil, errdefs.ErrNotFound
	}
	return map[string]string{"Dir": "/layers/" + id}, nil
}

func (f *fake) Cleanup() error {
	if f.cleanup != nil {
		return f.cleanup()
	}
	return nil
}

func (f *fake) Diff(id, parent string) (io.ReadCloser, error) { return f.diff(id, parent) }

func (f *fake) Changes(string, string) ([]archive.Change, error) { return f.changes() }

func (f *fake) ApplyDiff(_, _ string, diff io.Reader) (int64, error) { return f.applyDiff(diff) }

func (f *fake) DiffSize(string, string) (int64, error) { return 1 << 40, nil }

// opener opens always the same driver.
func (f *fake) opener(InitRequest) (graphdriver.Driver, error) { return f, nil }
