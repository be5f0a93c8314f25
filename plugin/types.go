package plugin

import "io"

// DefaultDockerRootDirectory is the default directory where graph drivers will be created.
const DefaultDockerRootDirectory = "/var/lib/docker/graph"

// CreateRequest has the engine's arguments of Create and CreateReadWrite.
type CreateRequest struct {
	ID         string
	Parent     string // "" for none
	MountLabel string
	StorageOpt map[string]string
}

// RemoveRequest has the engine's arguments of Remove.
type RemoveRequest struct {
	ID string
}

// GetRequest has the engine's arguments of Get.
type GetRequest struct {
	ID         string
	MountLabel string
}

// GetResponse is the answer to Get.
type GetResponse struct {
	Dir string // absolute path of the layer's root
}

// PutRequest has the engine's arguments of Put.
type PutRequest struct {
	ID string
}

// ExistsRequest has the engine's arguments of Exists.
type ExistsRequest struct {
	ID string
}

// ExistsResponse is the answer to Exists.
type ExistsResponse struct {
	Exists bool
}

// StatusRequest has the engine's arguments of Status.
type StatusRequest struct{}

// StatusResponse is the answer to Status.
type StatusResponse struct {
	Status [][2]string // names and values, in the order in which they are to be shown
}

// GetMetadataRequest has the engine's arguments of GetMetadata.
type GetMetadataRequest struct {
	ID string
}

// GetMetadataResponse is the answer to GetMetadata.
type GetMetadataResponse struct {
	Metadata map[string]string
}

// CleanupRequest has the engine's arguments of Cleanup.
type CleanupRequest struct{}

// DiffRequest has the engine's arguments of Diff.
type DiffRequest struct {
	ID     string
	Parent string // "" for none
}

// DiffResponse is the answer to Diff: its body is the stream.
type DiffResponse struct {
	Stream io.ReadCloser // an uncompressed tar
}

// ChangesRequest has the engine's arguments of Changes.
type ChangesRequest struct {
	ID     string
	Parent string // "" for none
}

// ChangesResponse is the answer to Changes.
type ChangesResponse struct {
	Changes []Change
}

// ChangeKind is the kind of a change to a file. The numbers are those of the protocol.
type ChangeKind int

const (
	// Modified is the kind of a file that is in both layers and differs.
	Modified ChangeKind = iota
	// Added is the kind of a file that is not in the parent.
	Added
	// Deleted is the kind of a file that is in the parent only.
	Deleted
)

// Change is one file that differs between two layers. The protocol is JSON, so that bytes of a path which
// are not UTF-8 arrive as U+FFFD.
type Change struct {
	Path string // absolute within the layer
	Kind ChangeKind
}

// ApplyDiffRequest has the engine's arguments of ApplyDiff: the body is the stream, and the rest is in the URL's
// query, as id and parent.
type ApplyDiffRequest struct {
	Stream io.Reader // an uncompressed tar
	ID     string
	Parent string // "" for none
}

// ApplyDiffResponse is the answer to ApplyDiff.
type ApplyDiffResponse struct {
	Size int64 // bytes
}

// DiffSizeRequest has the engine's arguments of DiffSize.
type DiffSizeRequest struct {
	ID     string
	Parent string // "" for none
}

// DiffSizeResponse is the answer to DiffSize.
type DiffSizeResponse struct {
	Size int64 // bytes
}

// Capabilities lists the optional abilities of a driver.
type Capabilities struct {
	// ReproducesExactDiffs says that Diff of a layer gives the very bytes that ApplyDiff was given. The engine then
	// need not keep the headers of the original tar. No driver that unpacks a tar to a tree can do that.
	ReproducesExactDiffs bool
}

// CapabilitiesRequest has the engine's arguments of Capabilities.
type CapabilitiesRequest struct{}

// CapabilitiesResponse is the answer to Capabilities.
type CapabilitiesResponse struct {
	Capabilities Capabilities
}

// ErrorResponse is the answer to a request that failed.
type ErrorResponse struct {
	Err string
}

// NewErrorResponse makes an answer that shows msg to the engine's user.
func NewErrorResponse(msg string) *ErrorResponse { return &ErrorResponse{Err: msg} }
