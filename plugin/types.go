package plugin

import "io"

// DefaultDockerRootDirectory is the default directory where graph drivers will be created.
const DefaultDockerRootDirectory = "/var/lib/docker/graph"

// CreateRequest is what the engine sends to Create and CreateReadWrite.
type CreateRequest struct {
	ID         string
	Parent     string // "" for none
	MountLabel string
	StorageOpt map[string]string
}

// RemoveRequest is what the engine sends to Remove.
type RemoveRequest struct {
	ID string
}

// GetRequest is what the engine sends to Get.
type GetRequest struct {
	ID         string
	MountLabel string
}

// GetResponse is the answer to Get.
type GetResponse struct {
	Dir string // absolute path of the layer's root
}

// PutRequest is what the engine sends to Put.
type PutRequest struct {
	ID string
}

// ExistsRequest is what the engine sends to Exists.
type ExistsRequest struct {
	ID string
}

// ExistsResponse is the answer to Exists.
type ExistsResponse struct {
	Exists bool
}

// StatusRequest is what the engine sends to Status.
type StatusRequest struct{}

// StatusResponse is the answer to Status.
type StatusResponse struct {
	Status [][2]string // names and values, in the order in which they are to be shown
}

// GetMetadataRequest is what the engine sends to GetMetadata.
type GetMetadataRequest struct {
	ID string
}

// GetMetadataResponse is the answer to GetMetadata.
type GetMetadataResponse struct {
	Metadata map[string]string
}

// CleanupRequest is what the engine sends to Cleanup.
type CleanupRequest struct{}

// DiffRequest is what the engine sends to Diff.
type DiffRequest struct {
	ID     string
	Parent string // "" for none
}

// DiffResponse is the answer to Diff: its body is the stream.
type DiffResponse struct {
	Stream io.ReadCloser // an uncompressed tar
}

// ChangesRequest is what the engine sends to Changes.
type ChangesRequest struct {
	ID     string
	Parent string // "" for none
}

// ChangesResponse is the answer to Changes.
type ChangesResponse struct {
	Changes []Change
}

// ChangeKind says what was done to a file. The numbers are those of the protocol.
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

// ApplyDiffRequest is what the engine sends to ApplyDiff: the body is the stream, and the rest is in the
// URL's query, as id and parent.
type ApplyDiffRequest struct {
	Stream io.Reader // an uncompressed tar
	ID     string
	Parent string // "" for none
}

// ApplyDiffResponse is the answer to ApplyDiff.
type ApplyDiffResponse struct {
	Size int64 // bytes
}

// DiffSizeRequest is what the engine sends to DiffSize.
type DiffSizeRequest struct {
	ID     string
	Parent string // "" for none
}

// DiffSizeResponse is the answer to DiffSize.
type DiffSizeResponse struct {
	Size int64 // bytes
}

// Capabilities says what a driver can do beyond what every driver can.
type Capabilities struct {
	// ReproducesExactDiffs says that Diff of a layer gives the very bytes that ApplyDiff was given, so that
	// the engine need not keep the headers of the original tar. No driver can that unpacks a tar to a tree.
	ReproducesExactDiffs bool
}

// CapabilitiesRequest is what the engine sends to Capabilities.
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
