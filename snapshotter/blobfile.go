package snapshotter

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// WithBlobFiles makes Apply read a blob in the content store's file, if that can be opened. Sending a blob from
// process to process takes about as much processor time as extracting it. root returns the directory of the store,
// with the blobs in containerd's layout (blobs/<algorithm>/<digest>). The store decides whether the client may see
// the blob, and the digest is checked as ever.
func WithBlobFiles(root func(ctx context.Context) (string, error)) DifferOption {
	return func(d *Differ) { d.store = fileStore{d.store, root, d.snapshotter.log} }
}

// fileStore is a content store whose blobs are read in its files.
type fileStore struct {
	content.Store
	root func(ctx context.Context) (string, error)
	log  *slog.Logger
}

// ReaderAt implements content.Provider.
func (s fileStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	info, err := s.Info(ctx, desc.Digest)
	if err != nil {
		return nil, err
	}
	file, err := s.open(ctx, info.Digest, info.Size)
	if err != nil {
		s.log.Debug("snapshotter: a blob is read by requests to the content store", "blob", info.Digest, "reason", err)
		return s.Store.ReaderAt(ctx, desc)
	}
	return file, nil
}

func (s fileStore) open(ctx context.Context, blob digest.Digest, size int64) (_ content.ReaderAt, err error) {
	root, err := s.root(ctx)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(root, "blobs", blob.Algorithm().String(), blob.Encoded()))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = fault.New(errdefs.ErrDataLoss, "%s has %d bytes and not %d", f.Name(), info.Size(), size)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return blobFile{f, size}, nil
}

// blobFile implements content.ReaderAt.
type blobFile struct {
	*os.File
	size int64
}

// Size implements content.ReaderAt.
func (f blobFile) Size() int64 { return f.size }
