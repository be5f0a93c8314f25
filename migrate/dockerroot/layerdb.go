package dockerroot

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inflate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// partsFile holds the parts of a layer's tar: all of it besides the data of its files.
const partsFile = "tar-split.json.gz"

// removingSuffix ends the name of a directory in the layerdb whose removal has begun: CHAIN-RANDOM-removing.
const removingSuffix = "-removing"

// imageLayer is a layer of the layerdb.
type imageLayer struct {
	chain, diff digest.Digest
	parent      digest.Digest // "" for a base
	id          string        // in the driver
	size        int64
	depth       int // 1 for a base; 0: not yet known
	// err says why the layer is not whole, or that one below is not.
	err error
}

// readImageLayer reads the directory of a layer. The layer is there after an error too, with the fields that are right.
func readImageLayer(root *rootdir.Dir, db, name string) *imageLayer {
	l := &imageLayer{chain: digest.NewDigestFromEncoded(digest.SHA256, name)}
	l.err = l.read(root, path.Join(db, name))
	return l
}

func (l *imageLayer) read(root *rootdir.Dir, name string) error {
	dir, err := root.Sub(name)
	if err != nil {
		return typed(err)
	}
	defer dir.Close()
	// The ID comes first: it names the layer in messages.
	data, err := dir.ReadFile("cache-id", maxLine)
	if err != nil {
		return typed(err)
	}
	if l.id, err = parseID(data, isCacheID); err != nil {
		return fault.Wrap("read", "cache-id", err)
	}
	if l.diff, err = readDigest(dir, "diff"); err != nil {
		return err
	}
	if l.parent, err = readDigest(dir, "parent"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if is := l.computeChain(); is != l.chain {
		return fault.New(errdefs.ErrDataLoss, "diff and parent make the chain ID %s", is)
	}
	// Docker ignores a layer without a size, and so does an engine that gets the layerdb from a target.
	if data, err = dir.ReadFile("size", maxLine); err != nil {
		return typed(err)
	}
	if l.size, err = parseSize(data); err != nil {
		return fault.Wrap("read", "size", err)
	}
	parts, err := openParts(dir)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil // the tar is made from the tree then
	}
	if err != nil {
		return err
	}
	return parts.Close()
}

// computeChain is the chain ID that follows from the layer's own diff ID and its parent's chain ID.
func (l *imageLayer) computeChain() digest.Digest {
	if l.parent == "" {
		return l.diff
	}
	return digest.FromString(string(l.parent) + " " + string(l.diff))
}

// readDigest reads a digest.
func readDigest(dir *rootdir.Dir, name string) (digest.Digest, error) {
	data, err := dir.ReadFile(name, maxLine)
	if err != nil {
		return "", typed(err)
	}
	d, err := parseDigest(string(data))
	return d, fault.Wrap("read", name, err)
}

// parseSize reads a number of bytes.
func parseSize(data []byte) (int64, error) {
	n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil || n < 0 {
		return 0, fault.New(errdefs.ErrInvalidArgument, "%s is no number of bytes", shown(string(data)))
	}
	return n, nil
}

// Parts implements migrate.Source. Reading it returns ErrDataLoss where the data are damaged, and ErrResourceExhausted
// where there are far too many.
func (s *Source) Parts(ctx context.Context, layer string) (_ io.ReadCloser, err error) {
	defer func() { err = fault.Wrap("read the parts of layer", shown(layer), err) }()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	chain, err := s.chainOf(ctx, layer)
	if err != nil {
		return nil, err
	}
	dir, err := s.root.Sub(path.Join(s.image, "layerdb/sha256", chain))
	if err != nil {
		return nil, typed(err)
	}
	defer dir.Close()
	return openParts(dir)
}

// chainOf is the name of a layer's directory in the layerdb.
func (s *Source) chainOf(ctx context.Context, layer string) (string, error) {
	s.mu.Lock()
	chains := s.chains
	s.mu.Unlock()
	if chains == nil {
		layers, _, err := s.readLayerDB(ctx)
		if err != nil {
			return "", err
		}
		chains = s.keepChains(layers)
	}
	chain, ok := chains[layer]
	if !ok {
		return "", fault.New(errdefs.ErrNotFound, "it is no layer of an image")
	}
	return chain, nil
}

// keepChains keeps where layers are in the layerdb. An ID that several claim is left out.
func (s *Source) keepChains(layers *imageLayers) map[string]string {
	owners := owners{}
	for _, l := range layers.list {
		owners.claim(l.id)
	}
	chains := make(map[string]string, len(layers.list))
	for _, l := range layers.list {
		if l.err == nil && owners.check(l.id) == nil {
			chains[l.id] = l.chain.Encoded()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.chains = chains
	return chains
}

// parts are the uncompressed parts of a layer's tar.
type parts struct {
	file io.Closer
	data io.Reader
	left int64 // bytes that may come
}

// openParts opens the parts of a layer, and reads the header of their compression.
func openParts(dir *rootdir.Dir) (*parts, error) {
	file, err := dir.OpenFile(partsFile)
	if err != nil {
		return nil, typed(err)
	}
	data, err := inflate.NewReader(file)
	if err != nil {
		return nil, errors.Join(damaged(err), file.Close())
	}
	return &parts{file: file, data: data, left: maxParts}, nil
}

func (p *parts) Read(buf []byte) (int, error) {
	n, err := p.data.Read(buf)
	if p.left -= int64(n); p.left < 0 {
		return 0, fault.New(errdefs.ErrResourceExhausted, "%s has more than %d bytes", partsFile, int64(maxParts))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = damaged(err)
	}
	return n, err
}

func (p *parts) Close() error { return p.file.Close() }

// damaged is the error of parts that cannot be decompressed. An error of the file itself stays as it is.
func damaged(err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return err
	}
	return fault.New(errdefs.ErrDataLoss, "%s is damaged: %w", partsFile, err)
}
