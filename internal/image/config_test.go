package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHistoryMatchesLayers adds a layer to images whose history is missing, or longer than their list of layers.
func TestHistoryMatchesLayers(t *testing.T) {
	layers := []digest.Digest{digest.FromString("1"), digest.FromString("2")}
	for name, test := range map[string]struct{ history, want []ocispec.History }{
		"none":         {nil, []ocispec.History{{Comment: "the image has no history for this layer"}, {Comment: "the image has no history for this layer"}}},
		"of one":       {[]ocispec.History{{CreatedBy: "a"}}, []ocispec.History{{CreatedBy: "a"}, {Comment: "the image has no history for this layer"}}},
		"empty layers": {[]ocispec.History{{CreatedBy: "a"}, {CreatedBy: "e", EmptyLayer: true}, {CreatedBy: "b"}}, []ocispec.History{{CreatedBy: "a"}, {CreatedBy: "e", EmptyLayer: true}, {CreatedBy: "b"}}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := json.Marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: layers}, History: test.history})
			require.NoError(t, err)
			added := []ocispec.History{{CreatedBy: "new"}}
			amended, err := amendConfig(raw, time.Unix(1, 0), added, append(layers[:2:2], digest.FromString("3")))
			require.NoError(t, err)
			var image ocispec.Image
			require.NoError(t, json.Unmarshal(amended, &image))
			assert.Equal(t, append(test.want, added...), image.History)
		})
	}
}

func TestOldDockerArchive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "old.tar")
	require.NoError(t, os.WriteFile(path, makeTar(t, entry{name: "repositories", data: `{"app":{"1":"abc"}}`}, entry{name: "abc/"}), 0o600))
	_, err := Open(t.Context(), mustParse(t, path), OpenOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	assert.ErrorContains(t, err, "1.10")
}
