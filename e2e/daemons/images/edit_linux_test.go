package images

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestEdited has umoci add a layer to Cowshed's export, under another tag of the layout. Cowshed imports it under
// that tag, beside the first, which it exports there again.
func TestEdited(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	s := newStore(t, h, "store")
	l := newLayout(t)
	l.list(plain(t, l), "example.com/team/app:1.2")
	first, err := s.load("oci:" + l.dir)
	require.NoError(t, err)
	dir := filepath.Join(tempDir(t), "layout")
	_, err = s.save(first.Name, "oci:"+dir)
	require.NoError(t, err)

	bundle := filepath.Join(tempDir(t), "bundle")
	tr := trip{dir: bundle}
	require.NoError(t, os.Mkdir(bundle, 0o755))
	_, err = tr.run(t, append(os.Environ(), path(filepath.Join(h.Programs.Debian, "usr/bin")), "IMAGE="+dir), `umoci unpack --image "$IMAGE:1.2" bundle
echo new >bundle/rootfs/new
rm bundle/rootfs/link
umoci repack --refresh-bundle --image "$IMAGE:edited" bundle`)
	require.NoError(t, err)

	edited, err := s.load("oci:" + dir + ":edited")
	require.NoError(t, err)
	assert.Equal(t, "example.com/team/app:edited", edited.Name)
	require.Len(t, edited.DiffIDs, 3)
	assert.Equal(t, first.DiffIDs, edited.DiffIDs[:2])
	assert.NotEqual(t, first.tree, edited.tree)
	tree, err := s.run("changes", edited.Layers[2])
	require.NoError(t, err)
	assert.Equal(t, "D /link\nA /new\n", string(tree))

	_, err = s.save(first.Name, "oci:"+dir)
	require.NoError(t, err)
	again, err := s.load("oci:"+dir+":edited", "--name=again")
	require.NoError(t, err)
	assert.Equal(t, edited.ID, again.ID)
}

// TestNameless exports an image that is known by its digest: a name that it cannot have elsewhere is not written, and
// the command says so.
func TestNameless(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	s := newStore(t, h, "store")
	l := newLayout(t)
	image := plain(t, l)
	l.list(image)
	name := "example.com/team/app@" + digest.FromString("index").String()
	_, err := s.load("oci:"+l.dir, "--name="+name)
	require.NoError(t, err)
	for _, f := range []format{ociDir, ociArchive, dockerArchive} {
		to := string(f) + ":" + filepath.Join(tempDir(t), "image")
		e, err := s.save(name, to)
		require.NoError(t, err)
		assert.Empty(t, e.Name, f)
		assert.Contains(t, e.said, `"`+name+`" is no name that an image can have elsewhere: it is known by its digest there`, f)
	}
}
