package containersstorage_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate/containersstorage"
)

// root is that of podman. TestExamples makes it.
var root = "/var/lib/containers/storage"

func TestExamples(t *testing.T) {
	root = t.TempDir()
	diff := digest.FromString("the tar of the layer").String()
	config := `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + diff + `"]}}`
	image := digest.FromString(config)
	for name, text := range map[string]string{
		"vfs/dir/base/file": "text",
		"vfs/dir/web/file":  "text",
		"vfs-layers/layers.json": `[{"id":"base","created":"2024-01-01T00:00:00Z","diff-digest":"` + diff + `","diff-size":4},` +
			`{"id":"web","parent":"base","created":"2024-01-01T00:00:00Z"}]`,
		"vfs-images/images.json": `[{"id":"` + image.Encoded() + `","names":["docker.io/library/app:1"],"layer":"base","digest":"` + diff + `"}]`,
		// The directory of an image's configuration has its name in base64.
		"vfs-images/" + image.Encoded() + "/" + "=" + base64.StdEncoding.EncodeToString([]byte(image.String())): config,
		"vfs-containers/containers.json": `[{"id":"c0ffee","names":["web"],"image":"` + image.Encoded() + `","layer":"web"}]`,
	} {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	testfs.Example(t, Example, "[vfs]\nlayer base, kind image\nlayer web, kind container\nimage [docker.io/library/app:1]\ncontainer web")
}

// The layers, images and containers of podman are listed. Run by TestExamples.
func Example() {
	ctx := context.Background()
	drivers, err := containersstorage.Detect(root)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(drivers)
	source, err := containersstorage.Open(ctx, containersstorage.Options{Dir: root, Driver: drivers[0]})
	if err != nil {
		log.Fatal(err)
	}
	defer source.Close()
	inventory, err := source.Inventory(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, layer := range inventory.Layers {
		fmt.Printf("layer %s, kind %s\n", layer.ID, layer.Kind)
	}
	for _, image := range inventory.Images {
		fmt.Println("image", image.Names)
	}
	for _, container := range inventory.Containers {
		fmt.Println("container", container.Name)
	}
}
