package tocontainerd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/migrate"
)

// TestPoisoned: no snapshot comes under the chain ID of a layer while it has a file that is not in the layer's tar.
func TestPoisoned(t *testing.T) {
	for _, f := range forms {
		for name, blobs := range map[string]bool{"blob": true, "no blob": false} {
			t.Run(string(f)+", "+name, func(t *testing.T) {
				h := newHost(t)
				s := h.newSource(f)
				if !blobs {
					s.inv.Images = slices.DeleteFunc(s.inv.Images, func(image migrate.Image) bool { return slices.Contains(image.Layers, "top-id") })
					s.inv.Containers[0].Image = ""
				}
				require.NoError(t, os.WriteFile(filepath.Join(s.dir, "top-id", "cron"), []byte("x"), 0o600))
				target := h.target(h.options(Moby))
				_, err := h.migration(target).Run(t.Context(), nil)
				var partial *migrate.PartialError
				require.ErrorAs(t, err, &partial)
				require.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrDataLoss)
				assert.Equal(t, "top-id", partial.Problems[0].ID)
				chain := s.layerOf("top-id").ChainID.String()
				assert.False(t, slices.ContainsFunc(h.state(Moby), func(line string) bool { return strings.HasPrefix(line, "snapshot "+chain) }))
			})
		}
	}
}
