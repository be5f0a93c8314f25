package main

import (
	"errors"
	"io"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// errNotOffered says that a contender has no such operation.
var errNotOffered = errors.New("not offered")

// contender is one implementation of layers on the filesystem under test. All layers are on that one
// filesystem; contenders see only their own.
type contender interface {
	// name is how the report calls it.
	name() string
	// apply adds an image layer: it makes a layer, fills it from the layer's tar in a format and makes it fit to
	// be a parent.
	apply(id string, layer *layer, format layertar.Format) error
	// create makes a writable layer on parent, limited to limit bytes unless that is 0.
	create(id, parent string, limit int64) error
	// edit gives f the tree of a writable layer.
	edit(id string, f func(dir string) error) error
	// changes lists the differences between a layer and its parent and returns the number of entries.
	changes(id, parent string) (int, error)
	// diff reads the tar of the differences between a layer and its parent, or of all of the layer if parent is "".
	diff(id, parent string) (diffResult, error)
	// export reads the tar of all of a layer, compressed with the default level of the contender.
	export(id string, format layertar.Format) error
	// walk compares the trees of a layer and its parent and returns how many changes there are.
	walk(id, parent string) (int, error)
	// usage says how much a writable layer holds beyond its parent, in bytes.
	usage(id, parent string) (int64, error)
	// remove removes a layer.
	remove(id string) error
	// close releases the contender's resources; its layers have been removed.
	close() error
}

// diffResult describes a diff that has been read.
type diffResult struct {
	bytes int64         // length of the tar
	files int           // regular files in it; -1 if they were not counted
	ready time.Duration // until the last byte was read; the call may take longer than that
}

// compressDiff reads a plain tar to its end through a compressor, as programs do that use a graph driver.
func compressDiff(tar io.Reader, compressor func(w io.Writer) (io.WriteCloser, error)) error {
	zw, err := compressor(io.Discard)
	if err != nil {
		return err
	}
	_, err = io.Copy(zw, tar)
	return errors.Join(err, zw.Close())
}
