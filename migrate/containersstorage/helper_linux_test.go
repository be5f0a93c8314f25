package containersstorage

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/migrate"
)

// stayEnv makes the test binary wait instead of running tests, as a stand-in for conmon.
const stayEnv = "COWSHED_TEST_STAY"

func TestMain(m *testing.M) {
	if os.Getenv(stayEnv) != "" {
		fmt.Println("here")
		time.Sleep(time.Hour) // until it is killed
		return
	}
	os.Exit(m.Run())
}

// storage is a root in the making.
type storage struct {
	t          testing.TB
	dir        string
	driver     string
	layers     []map[string]any
	images     []map[string]any
	containers []map[string]any
}

func newStorage(t testing.TB, driver string) *storage {
	return newStorageAt(t, filepath.Join(t.TempDir(), "storage"), driver)
}

func newStorageAt(t testing.TB, dir, driver string) *storage {
	s := &storage{t: t, dir: dir, driver: driver}
	for _, name := range []string{driver, driver + "-layers", driver + "-images", driver + "-containers", "libpod", "volumes"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o700))
	}
	s.write("storage.lock", "")
	s.write(driver+"-layers/layers.lock", "")
	return s
}

func (s *storage) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

func (s *storage) write(name, text string) {
	require.NoError(s.t, os.MkdirAll(filepath.Dir(s.path(name)), 0o755))
	require.NoError(s.t, os.WriteFile(s.path(name), []byte(text), 0o600))
}

func (s *storage) writeJSON(name string, value any) {
	data, err := json.Marshal(value)
	require.NoError(s.t, err)
	s.write(name, string(data))
}

func diffIDOf(layer string) digest.Digest { return digest.FromString("tar of " + layer) }

// layer adds a layer with a file of its own name.
func (s *storage) layer(id, parent string) map[string]any {
	record := map[string]any{"id": id, "created": "2024-01-01T00:00:00Z"}
	if parent != "" {
		record["parent"] = parent
	}
	s.layers = append(s.layers, record)
	switch s.driver {
	case "overlay":
		s.write("overlay/"+id+"/diff/"+id, id)
		s.write("overlay/"+id+"/link", strings.ToUpper(id))
		if parent != "" {
			lower := "l/" + strings.ToUpper(parent)
			if above, err := os.ReadFile(s.path("overlay/" + parent + "/lower")); err == nil {
				lower += ":" + string(above)
			}
			s.write("overlay/"+id+"/lower", lower)
		}
	case "vfs":
		s.write("vfs/dir/"+id+"/"+id, id)
	case "btrfs":
		s.write("btrfs/subvolumes/"+id+"/"+id, id)
	}
	return record
}

// imageLayer adds a layer of an image.
func (s *storage) imageLayer(id, parent string) map[string]any {
	record := s.layer(id, parent)
	record["diff-digest"] = diffIDOf(id)
	record["diff-size"] = len(id)
	return record
}

// image adds an image of layers, base first, and returns its ID.
func (s *storage) image(comment string, names []string, layers ...string) (digest.Digest, map[string]any) {
	diffIDs := []digest.Digest{}
	for _, layer := range layers {
		diffIDs = append(diffIDs, diffIDOf(layer))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "comment": comment,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	require.NoError(s.t, err)
	id := digest.FromBytes(config)
	record := map[string]any{"id": id.Encoded(), "names": names, "digest": digest.FromString("manifest of " + comment)}
	if len(layers) > 0 {
		record["layer"] = layers[len(layers)-1]
	}
	s.images = append(s.images, record)
	s.write(s.driver+"-images/"+id.Encoded()+"/"+dataFile(id.String()), string(config))
	return id, record
}

func (s *storage) container(id, name string, image digest.Digest, layer string) map[string]any {
	record := map[string]any{"id": id, "names": []string{name}, "image": image.Encoded(), "layer": layer}
	s.containers = append(s.containers, record)
	require.NoError(s.t, os.MkdirAll(s.path(s.driver+"-containers/"+id+"/userdata"), 0o700))
	return record
}

// save writes the records.
func (s *storage) save() {
	s.writeJSON(s.driver+"-layers/layers.json", s.layers)
	s.writeJSON(s.driver+"-images/images.json", s.images)
	s.writeJSON(s.driver+"-containers/containers.json", s.containers)
}

func (s *storage) open() *Source {
	source, err := Open(context.Background(), Options{Dir: s.dir})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { require.NoError(s.t, source.Close()) })
	return source
}

func (s *storage) inventory() *migrate.Inventory {
	s.t.Helper()
	inv, err := s.open().Inventory(context.Background())
	require.NoError(s.t, err)
	return inv
}

// ids are the IDs of an inventory's things, and "what/ID" of its problems.
func ids(inv *migrate.Inventory) (layers, images, containers, problems []string) {
	for _, l := range inv.Layers {
		layers = append(layers, l.ID)
	}
	for _, i := range inv.Images {
		images = append(images, i.ID.Encoded())
	}
	for _, c := range inv.Containers {
		containers = append(containers, c.ID)
	}
	for _, p := range inv.Problems {
		problems = append(problems, p.What+"/"+p.ID)
	}
	return layers, images, containers, problems
}
