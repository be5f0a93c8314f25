package oldgraph

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/internal/treeat"
)

// The names of aufs for its own files.
const (
	whiteout = archive.WhiteoutPrefix     // .wh.
	ownFile  = archive.WhiteoutMetaPrefix // .wh..wh.
	opaque   = archive.WhiteoutOpaqueDir  // .wh..wh..opq
)

// changes are those that a directory of aufs holds.
type changes struct {
	list   []archive.Change
	opaque []string // directories that hide those below
	own    []string // files and directories of aufs itself
}

// readChanges lists the changes that a directory of aufs holds. Returns errdefs.ErrDataLoss if a name is both there and
// removed, or a whiteout names nothing.
func readChanges(ctx context.Context, dir *os.File) (c changes, err error) {
	all, err := treediff.Compare(ctx, descriptorPath(dir), "", nil)
	if err != nil {
		return c, err
	}
	for _, change := range all {
		at := strings.Index(change.Path, "/"+whiteout)
		if at < 0 {
			c.list = append(c.list, change)
			continue
		}
		parent, name := change.Path[:at], change.Path[at+1:]
		switch target := strings.TrimPrefix(name, whiteout); {
		case strings.Contains(name, "/"): // below a file of aufs
		case name == opaque:
			c.opaque = append(c.opaque, parent)
		case strings.HasPrefix(name, ownFile):
			c.own = append(c.own, change.Path)
		case target == "" || target == "." || target == "..":
			return c, fault.New(errdefs.ErrDataLoss, "the whiteout %q has no valid name after its prefix", change.Path)
		default:
			c.list = append(c.list, archive.Change{Path: parent + "/" + target, Kind: archive.ChangeDelete})
		}
	}
	slices.SortFunc(c.list, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(c.list); i++ {
		if c.list[i].Path == c.list[i-1].Path {
			return c, fault.New(errdefs.ErrDataLoss, "the layer has both %q and a whiteout for it", c.list[i].Path)
		}
	}
	return c, nil
}

// writeTar writes the layer tar of a directory of aufs. Marks of opaque directories come first.
func writeTar(ctx context.Context, w io.Writer, dir *os.File) error {
	c, err := readChanges(ctx, dir)
	if err != nil {
		return err
	}
	marks := tar.NewWriter(w)
	for _, parent := range c.opaque {
		if err := marks.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: strings.TrimPrefix(parent+"/", "/") + opaque, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}); err != nil {
			return fmt.Errorf("mark %s as opaque: %w", parent, err)
		}
	}
	if err := marks.Flush(); err != nil {
		return err
	}
	return layertar.Write(ctx, w, descriptorPath(dir), c.list, layertar.WriteOptions{})
}

// splitTar returns the parts of the layer tar of a directory of aufs, in the JSON of tar-split. Closing closes dir.
func splitTar(ctx context.Context, dir *os.File) io.ReadCloser {
	return stream.New(ctx, func(ctx context.Context, w io.Writer) (err error) {
		layer := stream.New(ctx, func(ctx context.Context, w io.Writer) error { return writeTar(ctx, w, dir) }, func() error { return nil })
		defer func() { err = errors.Join(err, layer.Close()) }()
		parts := bufio.NewWriterSize(w, 1<<16)
		input, done, err := asm.NewInputTarStreamWithDone(layer, storage.NewJSONPacker(parts), storage.NewDiscardFilePutter())
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, input)
		if err := errors.Join(err, input.Close(), <-done); err != nil {
			return err
		}
		return parts.Flush()
	}, dir.Close)
}

// descriptorPath is a path that leads to an open file, whatever has its name now.
func descriptorPath(f *os.File) string { return treeat.ProcPath(int(f.Fd()), "") }
