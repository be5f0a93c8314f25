package plugin

import (
	"io"

	"github.com/moby/sys/user"
)

// Driver is the driver behind a [Handler]. Its methods are called in parallel. The engine's user sees the text of an
// error.
type Driver interface {
	// Init opens the driver on the directory home. It is called before any other method, and again whenever
	// the engine was started again.
	Init(home string, options []string, uidMaps, gidMaps []user.IDMap) error

	// Create makes a layer for image content, equal to parent, or empty where parent is "".
	Create(id, parent, mountLabel string, storageOpt map[string]string) error

	// CreateReadWrite makes a layer for a container to write to.
	CreateReadWrite(id, parent, mountLabel string, storageOpt map[string]string) error

	// Remove destroys a layer.
	Remove(id string) error

	// Get makes a layer's tree reachable and returns the path of its root, which the engine uses itself.
	Get(id, mountLabel string) (string, error)

	// Put releases one Get.
	Put(id string) error

	// Exists says whether there is a layer of that id.
	Exists(id string) bool

	// Status describes the driver, for people.
	Status() [][2]string

	// GetMetadata describes a layer.
	GetMetadata(id string) (map[string]string, error)

	// Cleanup is called when the engine stops.
	Cleanup() error

	// Diff returns a tar of the layer's changes since parent. All errors come from Read, also that there is no such
	// layer. Close may be called at any time, also during a Read, and ends it.
	Diff(id, parent string) io.ReadCloser

	// Changes lists the layer's changes since parent.
	Changes(id, parent string) ([]Change, error)

	// ApplyDiff extracts an uncompressed tar into the layer and returns the size of its files in bytes.
	ApplyDiff(id, parent string, archive io.Reader) (int64, error)

	// DiffSize is the size in bytes of the layer's changes since parent.
	DiffSize(id, parent string) (int64, error)

	// Capabilities returns the driver's optional abilities.
	Capabilities() Capabilities
}
