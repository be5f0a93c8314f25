package image

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	registrystream "github.com/google/go-containerregistry/pkg/v1/stream"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// registryUpload is an upload to a registry, of a blob that is being made.
type registryUpload struct {
	*io.PipeWriter
	layer  *uploadedLayer
	cancel context.CancelFunc
	ended  chan struct{} // closed when err is set
	err    error
}

// startUpload begins an upload. It cannot be tried again, because the blob is nowhere else.
func startUpload(ctx context.Context, ref Reference, opts RegistryOptions) (*registryUpload, error) {
	at, err := registryName(ref, opts)
	if err != nil {
		return nil, err
	}
	data, w := io.Pipe()
	u := &registryUpload{PipeWriter: w, layer: &uploadedLayer{data: data}, ended: make(chan struct{})}
	ctx, u.cancel = context.WithCancel(ctx)
	never := remote.WithRetryPredicate(func(error) bool { return false })
	go func() {
		defer close(u.ended)
		u.err = registryError(remote.WriteLayer(at.Context(), u.layer, append(remoteOptions(ctx, opts), never)...))
		err := u.err
		if err == nil {
			err = io.ErrClosedPipe
		}
		_ = data.CloseWithError(err) // never fails
	}()
	return u, nil
}

// Write implements io.Writer. After the connection has ended, the error of the upload says why.
func (u *registryUpload) Write(data []byte) (int, error) {
	n, err := u.PipeWriter.Write(data)
	if errors.Is(err, io.ErrClosedPipe) {
		if <-u.ended; u.err != nil {
			err = u.err
		}
	}
	return n, err
}

// end implements upload.
func (u *registryUpload) end(ctx context.Context, b *blob) error {
	u.layer.know(b.digest, b.size)
	if err := u.Close(); err != nil {
		return err
	}
	select {
	case <-u.ended:
		return u.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// giveUp ends the upload, if it has not ended.
func (u *registryUpload) giveUp() {
	u.cancel()
	_ = u.CloseWithError(context.Canceled) // never fails
	<-u.ended
}

// uploadedLayer shows go-containerregistry a blob whose digest is not known until the blob was read.
type uploadedLayer struct {
	mu     sync.Mutex
	data   io.ReadCloser // nil: it was read
	digest digest.Digest // "": not known yet
	size   int64
}

var _ v1.Layer = (*uploadedLayer)(nil)

// know sets the digest and the size, before the end of the blob is read.
func (l *uploadedLayer) know(d digest.Digest, size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.digest, l.size = d, size
}

// Digest implements v1.Layer.
func (l *uploadedLayer) Digest() (v1.Hash, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.digest == "" {
		return v1.Hash{}, registrystream.ErrNotComputed
	}
	return v1.NewHash(l.digest.String())
}

// DiffID implements v1.Layer. A registry does not ask for it.
func (l *uploadedLayer) DiffID() (v1.Hash, error) { return v1.Hash{}, registrystream.ErrNotComputed }

// Size implements v1.Layer.
func (l *uploadedLayer) Size() (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.digest == "" {
		return 0, registrystream.ErrNotComputed
	}
	return l.size, nil
}

// MediaType implements v1.Layer. Registries keep blobs without one.
func (l *uploadedLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(layertar.Gzip.MediaType()), nil
}

// Uncompressed implements v1.Layer.
func (l *uploadedLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.ErrUnsupported
}

// Compressed implements v1.Layer.
func (l *uploadedLayer) Compressed() (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	data := l.data
	if data == nil {
		return nil, fault.Said(errdefs.ErrUnavailable, "the registry wants a layer a second time, which is made while it is sent: try again")
	}
	l.data = nil
	return data, nil
}

// has implements haver.
func (p *pusher) has(ctx context.Context, blob digest.Digest, size int64) bool {
	at, err := registryName(p.ref, p.opts)
	if err != nil {
		return false // finish says so
	}
	layer, err := remote.Layer(at.Context().Digest(blob.String()), remoteOptions(ctx, p.opts)...)
	if err != nil {
		return false
	}
	there, err := layer.Size()
	return err == nil && there == size
}

// failingReader fails each Read.
type failingReader struct{ err error }

// Read implements io.Reader.
func (f failingReader) Read([]byte) (int, error) { return 0, f.err }
