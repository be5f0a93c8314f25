package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestApplyFromFile: where the store's files are known a layer is read there, and else by requests.
func TestApplyFromFile(t *testing.T) {
	h := newDifferHost(t, Options{})
	layer := wideLayer(t)
	desc := h.put(ocispec.MediaTypeImageLayer, layer)
	root := filepath.Join(t.TempDir(), "store")
	file := filepath.Join(root, "blobs", "sha256", desc.Digest.Encoded())
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	wrong := append([]byte(nil), layer...)
	wrong[len(wrong)/2]++
	for name, c := range map[string]struct {
		file     []byte
		root     error
		requests bool
		want     error
	}{
		"file":       {file: layer},
		"no file":    {requests: true},
		"cut off":    {file: layer[:5000], requests: true},
		"damaged":    {file: wrong, want: errdefs.ErrFailedPrecondition},
		"no store":   {file: layer, root: errors.New("not known"), requests: true},
		"unreadable": {file: nil, requests: true},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.RemoveAll(file))
			if c.file != nil {
				require.NoError(t, os.WriteFile(file, c.file, 0o600))
			}
			if name == "unreadable" {
				require.NoError(t, os.Mkdir(file, 0o755))
			}
			var requests atomic.Int64
			differ := NewDiffer(h.Snapshotter, countingStore{h.store, &requests}, WithBlobFiles(func(context.Context) (string, error) { return root, c.root }))
			applied, err := differ.Apply(t.Context(), desc, h.prepare(name, ""))
			require.ErrorIs(t, err, c.want)
			assert.Equal(t, c.requests, requests.Load() > 0)
			if c.want == nil {
				assert.Equal(t, desc.Digest, applied.Digest)
				assert.Len(t, h.content(name, "dir/99"), 64<<10)
			}
		})
	}
	t.Run("not in the store", func(t *testing.T) {
		other := ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromString("other"), Size: 5}
		require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(file), other.Digest.Encoded()), []byte("other"), 0o600))
		differ := NewDiffer(h.Snapshotter, h.store, WithBlobFiles(func(context.Context) (string, error) { return root, nil }))
		_, err := differ.Apply(t.Context(), other, h.prepare("other", ""))
		assert.ErrorIs(t, err, errdefs.ErrNotFound)
	})
}
