package plugin

import (
	"io"

	"github.com/moby/sys/user"
)

// Driver is what a [Handler] serves. Its methods are called in parallel. The text of an error is what the
// engine's user gets to see.
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

	// Diff returns a tar of what the layer changed of parent. An error, be it that there is no such layer, is
	// what Read returns. Close may be called at any time, also while a Read is under way, and ends it.
	Diff(id, parent string) io.ReadCloser

	// Changes lists what the layer changed of parent.
	Changes(id, parent string) ([]Change, error)

	// ApplyDiff extracts an uncompressed tar into the layer and returns the size of its files in bytes.
	ApplyDiff(id, parent string, archive io.Reader) (int64, error)

	// DiffSize is the size in bytes of what the layer changed of parent.
	DiffSize(id, parent string) (int64, error)

	// Capabilities says what the driver can do beyond that.
	Capabilities() Capabilities
}
