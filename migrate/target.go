package migrate

import (
	"context"
	"io"
)

// How says how the data of a layer comes to the target.
type How string

const (
	// Cloned is a copy-on-write copy of the whole volume.
	Cloned How = "cloned"
	// Reflinked means that files share their data with the source's.
	Reflinked How = "reflinked"
	// Copied means that data is copied.
	Copied How = "copied"
)

// Coming says how a layer would come. The zero value stands for a layer that is in the target already, or for no layer.
type Coming struct {
	How    How
	Volume string // Content.Volume of the layer
}

// Item is one thing that a target makes, with all that is known about it.
type Item struct {
	// One of them is set.
	Layer     *Layer
	Image     *Image
	Container *Container
}

// Target makes layers, images and containers in Cowshed. Each method is atomic: after a crash the thing is there as a
// whole, or not at all. Making a thing that is there already does nothing.
type Target interface {
	// Check returns an error if something of the inventory cannot come to the target: a name or ID that is taken by
	// something else, a filesystem that is too full, an engine that is running. It changes nothing.
	Check(ctx context.Context, source Source, inv *Inventory) error
	// How says how a layer's data would come, and how many bytes that takes. below says how the layer below would come.
	// It changes nothing.
	How(ctx context.Context, layer *Layer, content *Content, below Coming) (How, int64, error)
	// BlobSize says how many bytes the blob beside a layer takes at most, and is 0 if no blob is written. It changes
	// nothing.
	BlobSize(ctx context.Context, layer *Layer) (int64, error)

	// Has reports whether the thing is there.
	Has(ctx context.Context, item Item) (bool, error)
	// MakeLayer makes a layer, whose parent is there. parts is nil if there are none.
	MakeLayer(ctx context.Context, layer *Layer, content *Content, parts io.Reader) error
	// MakeImage makes an image, whose layers are there.
	MakeImage(ctx context.Context, image *Image) error
	// MakeContainer makes a container, whose layers and image are there.
	MakeContainer(ctx context.Context, container *Container) error
	// Commit is the last step: afterwards the engine finds all that was made. It is called again after a crash, and after
	// a later run that has made more.
	Commit(ctx context.Context) error

	// Settle makes a layer independent of the source's layer, which is removed next. The layer below was settled
	// before. It is repeated after a crash. Returns errdefs.ErrNotFound if the layer is not there.
	Settle(ctx context.Context, layer *Layer) error
	// CheckSettle returns an error that Settle would return if the caller settled all of these layers, as far as the
	// error can be known before. It changes nothing. Returns errdefs.ErrNotFound if a layer is not there.
	CheckSettle(ctx context.Context, layers ...*Layer) error

	// Verify compares a thing with its source. Returns errdefs.ErrDataLoss if it differs.
	Verify(ctx context.Context, item Item, source Source) error
	// Undo takes back a Commit, or a part of one, and removes remains of a run that was cut off. Without them it does
	// nothing. It is called before Remove.
	Undo(ctx context.Context) error
	// Remove removes one thing. An absent thing is no error. Things are removed in the reverse order of making. An image
	// of the item may lack its Config.
	Remove(ctx context.Context, item Item) error

	// Close releases the target.
	Close() error
}
