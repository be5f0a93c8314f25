package containersstorage

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// FuzzInventory: no records break the listing, and it lists whole things alone.
func FuzzInventory(f *testing.F) {
	f.Add([]byte(`[{"id":"base","diff-digest":"sha256:x"},{"id":"top","parent":"base"}]`), []byte(`[]`), []byte(`[{"id":"c","layer":"top"}]`))
	f.Add([]byte(`[{"id":"a","parent":"b"},{"id":"b","parent":"a","flags":{"incomplete":true}}]`), []byte(`[{"id":"x","layer":"a"}]`), []byte(``))
	f.Add([]byte(`[{"id":"../x"},null,{"id":1}]`), []byte(`{}`), []byte(`[{"layer":""}]`))
	s := newStorage(f, "vfs")
	for _, layer := range []string{"base", "top", "a", "b"} {
		s.layer(layer, "")
	}
	source := s.open()
	f.Fuzz(func(t *testing.T, layers, images, containers []byte) {
		s.t = t
		s.write("vfs-layers/layers.json", string(layers))
		s.write("vfs-images/images.json", string(images))
		s.write("vfs-containers/containers.json", string(containers))
		ctx, cancel := context.WithTimeout(context.Background(), testfs.Patience)
		defer cancel()
		inv, err := source.Inventory(ctx)
		require.NoError(t, ctx.Err())
		if err == nil {
			assertWhole(t, inv)
		}
	})
}
