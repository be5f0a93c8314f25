package graphdriver

import (
	"io"

	"github.com/moby/go-archive"
	"github.com/vbatts/tar-split/tar/storage"
)

// CreateOpts are the optional arguments of Create and CreateReadWrite.
type CreateOpts struct {
	// MountLabel is the SELinux label of the layer's files, or "".
	MountLabel string

	// StorageOpt holds options by name. Every driver that can limit layers knows "size": how much the layer may add
	// to its parent's data, such as "10G". Units are powers of 1024. Drivers over a copy-on-write Backend know "root_style":
	// "snapshot" or "shared", as cowcommon.RootStyle describes them.
	//
	// A name that the driver does not know is an error, found before anything is created. So is a size that is not a
	// positive whole number of bytes, or does not fit 64 bits. If the driver cannot enforce sizes, any size is an
	// error. A limit is never dropped silently.
	StorageOpt map[string]string
}

// ProtoDriver has the methods that a driver must have by itself: everything except diffs, which [NewNaiveDiffDriver]
// can add to any driver.
//
// Programs use [Driver].
type ProtoDriver interface {
	// String is the driver's name, as it was registered.
	String() string

	// CreateReadWrite makes a layer for a container to write to, equal to parent, or empty where parent is "". opts
	// may be nil. It works like Create, and adds the driver's settings for read-write layers, such as a default
	// limit.
	//
	// The new layer does not inherit its parent's limit.
	//
	// Errors: those of Create.
	CreateReadWrite(id, parent string, opts *CreateOpts) error

	// Create makes a layer that is to hold image content, equal to parent as it is at this moment, or
	// empty where parent is "". opts may be nil.
	//
	// The root of an empty layer has mode 0755 whatever the umask, and belongs to the root of the
	// driver's id map. That of a child is its parent's.
	//
	// Once Create has returned, the layer is there complete, its limit included. When it fails, there is
	// no layer of that id unless there was one before, and that one is unchanged.
	//
	// Returns ErrAlreadyExists if there is a layer of that id, whatever its parent. Returns ErrNotFound if there is no
	// such parent, and ErrInvalidArgument if an id or an option is invalid.
	Create(id, parent string, opts *CreateOpts) error

	// Remove destroys the layer and everything inside it, nested volumes included. Removing an absent layer is not an
	// error.
	//
	// Callers remove children before their parents, and call Put for each Get. A driver may refuse
	// (ErrFailedPrecondition) to remove a layer that has children or is held, or else removes it; it never damages
	// another layer, and once the children are gone and the layer is put, Remove succeeds.
	//
	// Errors: ErrInvalidArgument, ErrFailedPrecondition.
	Remove(id string) error

	// Get makes the layer's tree reachable and returns the absolute path of its root. The path is valid
	// until the matching Put. Calls are counted, and all that are open at once return the same path.
	//
	// mountLabel is an SELinux mount label or "". It takes effect with the first of several calls.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	Get(id, mountLabel string) (fs string, err error)

	// Put releases one Get. Without a matching Get it does nothing: such a Put is not an error, whether or not the
	// layer exists, and does not release a later Get of others.
	//
	// Errors: ErrInvalidArgument.
	Put(id string) error

	// Exists says whether there is a layer of that id. It is false for an id that cannot be.
	Exists(id string) bool

	// Status describes the driver and its filesystem as they are now, for people: pairs of a name and a
	// value, in the order in which they are to be shown, each name once.
	Status() [][2]string

	// GetMetadata describes a layer by the driver's own names. The map is the caller's and may be empty.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	GetMetadata(id string) (map[string]string, error)

	// Cleanup releases the driver's resources: mounts, descriptors, processes. Layers stay. The driver is not used
	// afterwards, except that Cleanup may be called again and then does nothing.
	Cleanup() error
}

// DiffDriver compares layers and turns the difference into layer tars and back.
//
// All methods that take id and parent compare any two layers of the driver; parent "" stands for the empty tree. A
// comparison with the layer's own parent is the common case, and the fast one. The three methods that read agree:
// Diff has an entry for each of Changes, except sockets, which a tar cannot hold. DiffSize is the size that ApplyDiff
// returns for Diff's tar.
//
// A driver may promise that these three show the layer as it was at one moment, even while a container writes to it.
// Without that promise, reading a layer during writes gives an error, or an answer that mixes several moments.
type DiffDriver interface {
	// Diff returns a tar of the layer's changes since parent. The same two trees give the same bytes.
	//
	// The caller reads to io.EOF and closes; an error on the way arrives from Read, and the data read so far is then
	// no diff. Closing early is allowed and leaves no goroutine, descriptor or mount.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	Diff(id, parent string) (io.ReadCloser, error)

	// Changes lists the layer's changes since parent, sorted by path. Paths are absolute within the layer. A
	// directory that holds a change is itself listed as modified, except the root, which is never listed; of a tree
	// that was removed, only the top is. With parent "" all is added.
	//
	// A file is modified when its type, mode, owner, device number, size, time of modification or capabilities differ.
	// A driver that sees the writes themselves also lists a file that was written to, even if all of these are the
	// same.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	Changes(id, parent string) ([]archive.Change, error)

	// ApplyDiff extracts an uncompressed layer tar into the layer, which the caller has made as a child of parent. It
	// returns the sum of the sizes in the tar's headers, in bytes. Nothing outside the layer is touched, whatever the
	// tar holds.
	//
	// When it fails, the layer may hold a part of the diff, and can only be removed. Errors of diff itself can be
	// matched in the returned error.
	//
	// Returns ErrFailedPrecondition if the layer is sealed. Other errors: ErrNotFound, ErrInvalidArgument.
	ApplyDiff(id, parent string, diff io.Reader) (size int64, err error)

	// DiffSize is the size of the layer's changes since parent, in bytes. It is the sum of the sizes of the regular
	// files in Diff. A file with several names there counts once.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	DiffSize(id, parent string) (size int64, err error)
}

// Driver keeps layers and compares them.
type Driver interface {
	ProtoDriver
	DiffDriver
}

// DiffGetterDriver is a driver that can serve single files of a layer's diff. With these, github.com/vbatts/tar-split
// can reassemble a tar of which only the headers were kept.
type DiffGetterDriver interface {
	Driver

	// DiffGetter opens the layer for reading by file. The caller closes it.
	//
	// Errors: ErrNotFound, ErrInvalidArgument.
	DiffGetter(id string) (FileGetCloser, error)
}

// FileGetCloser serves the contents of a layer's regular files by the names that they have in its diff.
//
// Get returns os.ErrNotExist if the name does not exist, and another error if it is not a regular file. No name, and
// no symbolic link in the layer, leads outside it. Readers got before Close stay usable.
type FileGetCloser interface {
	storage.FileGetter

	// Close releases the resources of the FileGetCloser. Closing twice does nothing.
	Close() error
}
