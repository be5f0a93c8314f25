package aufs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/atomicfile"
)

const (
	layersDir = "layers"
	diffDir   = "diff"
	mountsDir = "mnt"
)

// Driver keeps layers as directories of changes, and mounts them by aufs. Only a layer that has no parent can be reached
// without aufs in the kernel: for others, Get and all that needs it return ErrAufsNotSupported.
type Driver struct {
	sync.Mutex // Protects concurrent modification to active

	root   string
	active map[string]int // calls of Get without their Put
	naive  graphdriver.NaiveDiffDriver
}

var _ graphdriver.Driver = (*Driver)(nil)

// String returns "aufs".
func (*Driver) String() string { return "aufs" }

func (a *Driver) layers(id string) string { return filepath.Join(a.root, layersDir, id) }
func (a *Driver) diff(id string) string   { return filepath.Join(a.root, diffDir, id) }
func (a *Driver) mount(id string) string  { return filepath.Join(a.root, mountsDir, id) }

// Status describes the driver.
func (a *Driver) Status() [][2]string {
	ids, _ := os.ReadDir(filepath.Join(a.root, layersDir)) // a root that cannot be read has no number
	return [][2]string{{"Root Dir", a.root}, {"Dirs", fmt.Sprint(len(ids))}}
}

// Exists reports whether there is a layer of that ID.
func (a *Driver) Exists(id string) bool {
	if cowcommon.CheckID(id) != nil {
		return false
	}
	_, err := os.Lstat(a.layers(id))
	return err == nil
}

// Create makes a layer with no changes. The list of the layers below comes last, and makes it exist.
func (a *Driver) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	return fault.Wrap("create layer", id, a.create(id, parent, opts))
}

// CreateReadWrite is Create.
func (a *Driver) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return a.Create(id, parent, opts)
}

func (a *Driver) create(id, parent string, opts *graphdriver.CreateOpts) error {
	if err := cowcommon.CheckID(id); err != nil {
		return err
	}
	if opts != nil && len(opts.StorageOpt) > 0 {
		return fault.New(errdefs.ErrInvalidArgument, "aufs has no storage options")
	}
	a.Lock()
	defer a.Unlock()
	if a.Exists(id) {
		return errdefs.ErrAlreadyExists
	}
	var below []string
	if parent != "" {
		above, err := a.below(parent)
		if err != nil {
			return fault.Wrap("parent", parent, err)
		}
		below = append([]string{parent}, above...)
	}
	for _, dir := range []string{a.diff(id), a.mount(id)} {
		// The remains of an interrupted call or removal have no list.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	list := strings.Join(below, "\n")
	if list != "" {
		list += "\n"
	}
	return atomicfile.Write(a.layers(id), []byte(list), 0o644)
}

// below lists the layers below a layer, nearest first.
func (a *Driver) below(id string) ([]string, error) {
	if err := cowcommon.CheckID(id); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(a.layers(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.As(errdefs.ErrNotFound, err)
	}
	below := strings.Fields(string(data))
	for _, id := range below {
		if cowcommon.CheckID(id) != nil {
			return nil, fault.New(errdefs.ErrDataLoss, "the list of layers below has %.100q", id)
		}
	}
	return below, err
}

// Remove removes a layer. If Migrate has made a symbolic link in place of its changes, only the link is removed.
func (a *Driver) Remove(id string) error { return fault.Wrap("remove layer", id, a.remove(id)) }

func (a *Driver) remove(id string) error {
	if err := cowcommon.CheckID(id); err != nil {
		return err
	}
	a.Lock()
	defer a.Unlock()
	if a.active[id] > 0 {
		return fault.New(fault.ErrInUse, "%d times", a.active[id])
	}
	if err := os.Remove(a.layers(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(os.RemoveAll(a.mount(id)), os.RemoveAll(a.diff(id)))
}

// Get returns the tree of a layer, which it mounts if there are layers below.
func (a *Driver) Get(id, mountLabel string) (string, error) {
	dir, err := a.get(id, mountLabel)
	return dir, fault.Wrap("get layer", id, err)
}

func (a *Driver) get(id, mountLabel string) (string, error) {
	below, err := a.below(id)
	if err != nil {
		return "", err
	}
	a.Lock()
	defer a.Unlock()
	dir := a.diff(id)
	if len(below) > 0 {
		dir = a.mount(id)
		branches := []string{a.diff(id)}
		for _, layer := range below {
			branches = append(branches, a.diff(layer))
		}
		if a.active[id] == 0 {
			if err := mountBranches(dir, branches, mountLabel); err != nil {
				return "", err
			}
		}
	}
	a.active[id]++
	return dir, nil
}

// Put gives one Get back, and unmounts the layer after the last one.
func (a *Driver) Put(id string) error { return fault.Wrap("put layer", id, a.put(id)) }

func (a *Driver) put(id string) error {
	if err := cowcommon.CheckID(id); err != nil {
		return err
	}
	a.Lock()
	defer a.Unlock()
	if a.active[id] == 0 {
		return nil
	}
	if a.active[id]--; a.active[id] > 0 {
		return nil
	}
	delete(a.active, id)
	below, err := a.below(id)
	if err != nil || len(below) == 0 {
		return err
	}
	return Unmount(a.mount(id))
}

// GetMetadata returns the directory of the layer's changes.
func (a *Driver) GetMetadata(id string) (map[string]string, error) {
	if _, err := a.below(id); err != nil {
		return nil, fault.Wrap("describe layer", id, err)
	}
	return map[string]string{"DiffDir": a.diff(id)}, nil
}

// Cleanup unmounts all layers.
func (a *Driver) Cleanup() error {
	a.Lock()
	defer a.Unlock()
	var errs []error
	for id := range a.active {
		if below, err := a.below(id); err == nil && len(below) > 0 {
			errs = append(errs, fault.Wrap("unmount layer", id, Unmount(a.mount(id))))
		}
	}
	clear(a.active)
	return errors.Join(errs...)
}

// Diff returns a tar of the layer's changes since parent.
func (a *Driver) Diff(id, parent string) (io.ReadCloser, error) { return a.naive.Diff(id, parent) }

// Changes lists the layer's changes since parent. If parent is "", all are additions.
func (a *Driver) Changes(id, parent string) ([]archive.Change, error) {
	return a.naive.Changes(id, parent)
}

// ApplyDiff extracts a layer tar into the layer, and returns its size in bytes.
func (a *Driver) ApplyDiff(id, parent string, diff io.Reader) (size int64, err error) {
	return a.naive.ApplyDiff(id, parent, diff)
}

// DiffSize is the size of the layer's changes since parent, in bytes.
func (a *Driver) DiffSize(id, parent string) (size int64, err error) {
	return a.naive.DiffSize(id, parent)
}

// Migrate is the function Migrate for this driver.
func (a *Driver) Migrate(pth string, setupInit func(p string) error) error {
	return Migrate(a, pth, setupInit)
}
