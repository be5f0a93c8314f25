package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/go-archive"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// newPodmanRoot makes a root of podman on the filesystem of a store, with an image and a container "web" of it.
func newPodmanRoot(t *testing.T, dir string) {
	t.Helper()
	put := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	base, web := strings.Repeat("b", 64), strings.Repeat("c", 64)
	put("overlay/"+base+"/link", "BASE")
	put("overlay/"+base+"/diff/etc/motd", "image")
	put("overlay/"+base+"/diff/etc/gone", "image")
	put("overlay/"+web+"/link", "WEB")
	put("overlay/"+web+"/lower", "l/BASE")
	put("overlay/"+web+"/diff/etc/motd", "container")
	require.NoError(t, unix.Mknod(filepath.Join(dir, "overlay", web, "diff/etc/gone"), unix.S_IFCHR, 0))
	put("storage.lock", "")
	put("overlay-layers/layers.lock", "")

	tar := digest.SHA256.Digester()
	changes := []archive.Change{{Path: "/etc", Kind: archive.ChangeAdd}, {Path: "/etc/gone", Kind: archive.ChangeAdd}, {Path: "/etc/motd", Kind: archive.ChangeAdd}}
	require.NoError(t, layertar.Write(t.Context(), tar.Hash(), filepath.Join(dir, "overlay", base, "diff"), changes, layertar.WriteOptions{}))
	config := fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q]}}`, tar.Digest())
	image := digest.FromString(config)
	put("overlay-layers/layers.json", fmt.Sprintf(`[{"id":%q,"diff-digest":%q,"diff-size":10},{"id":%q,"parent":%[1]q}]`, base, tar.Digest(), web))
	put("overlay-images/images.json", fmt.Sprintf(`[{"id":%q,"names":["localhost/web:1"],"layer":%q}]`, image.Encoded(), base))
	put("overlay-images/"+image.Encoded()+"/="+base64.StdEncoding.EncodeToString([]byte(image.String())), config)
	put("overlay-containers/containers.json", fmt.Sprintf(`[{"id":"c0ffee","names":["web"],"image":%q,"layer":%q}]`, image.Encoded(), web))
}

// TestMigratePodmanToStore: the files of podman's containers become layers with the containers' names, above their images.
func TestMigratePodmanToStore(t *testing.T) {
	a := newStore(t)
	root := filepath.Join(filepath.Dir(a.root), "podman")
	newPodmanRoot(t, root)
	migrate := func(args ...string) []string {
		return append([]string{"migrate"}, append(args, "--from", root, "--to", "store")...)
	}
	var plan plannedInfo
	a.json(t, &plan, migrate("plan")...)
	assert.Len(t, plan.Containers, 1)
	assert.Empty(t, plan.Problems)
	assert.Zero(t, plan.Bytes)
	assert.Equal(t, "moved 2 layers, 1 image, 1 container\n", a.ok(t, migrate("run")...))
	assert.Equal(t, "equal: 4\n", a.ok(t, migrate("verify")...))

	assert.Equal(t, "container", a.read(t, "web", "etc/motd"))
	assert.Equal(t, "C /etc\nD /etc/gone\nC /etc/motd\n", a.ok(t, "changes", "web"))
	a.ok(t, "create", "new", "--parent", "localhost/web:1")
	assert.Equal(t, "image", a.read(t, "new", "etc/gone"))
	a.ok(t, "export", "web", "oci:"+filepath.Join(t.TempDir(), "out"))
	a.ok(t, "rm", "new")
	assert.Equal(t, "removed: 4\n", a.ok(t, migrate("undo")...))
	assert.Equal(t, "moved 2 layers, 1 image, 1 container\n", a.ok(t, migrate("run")...))
	a.ok(t, migrate("finish", "--yes")...)
	assert.NoDirExists(t, filepath.Join(root, "overlay"))
	assert.Equal(t, "container", a.read(t, "web", "etc/motd"))
}
