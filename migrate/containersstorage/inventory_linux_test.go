package containersstorage

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

func TestInventory(t *testing.T) {
	for _, driver := range []string{"overlay", "vfs", "btrfs"} {
		t.Run(driver, func(t *testing.T) {
			s := newStorage(t, driver)
			s.imageLayer("base", "")
			s.imageLayer("app", "base")
			s.imageLayer("other", "base")
			s.layer("rw", "app")
			s.layer("volatile", "other")
			s.layer("alone", "")
			app, _ := s.image("app", []string{"docker.io/library/app:1", "quay.io/me/app@" + diffIDOf("x").String(), "localhost/app:latest"}, "base", "app")
			other, _ := s.image("other", nil, "base", "other")
			empty, _ := s.image("empty", nil)
			s.container("c1", "web", app, "rw")
			s.container("c3", "rootfs", "sha256:", "alone")
			s.save()
			// Containers run with --rm are in other files.
			s.writeJSON(driver+"-layers/layers.json", s.layers[:4])
			s.writeJSON(driver+"-layers/volatile-layers.json", s.layers[4:])
			s.writeJSON(driver+"-containers/volatile-containers.json", []map[string]any{
				s.container("c2", "run", other, "volatile"), {"id": "c1", "layer": "elsewhere"}, // the second is ignored
			})

			inv := s.inventory()
			assert.Empty(t, inv.Problems)
			assert.Equal(t, Program, inv.Program)
			assert.Equal(t, driver, inv.Driver)
			chain := func(ids ...string) digest.Digest {
				var diffIDs []digest.Digest
				for _, id := range ids {
					diffIDs = append(diffIDs, diffIDOf(id))
				}
				return identity.ChainID(diffIDs)
			}
			assert.Equal(t, []migrate.Layer{
				{ID: "alone", Kind: migrate.ContainerLayer, Size: -1},
				{ID: "base", Kind: migrate.ImageLayer, ChainID: chain("base"), DiffID: diffIDOf("base"), Size: 4},
				{ID: "app", Parent: "base", Kind: migrate.ImageLayer, ChainID: chain("base", "app"), DiffID: diffIDOf("app"), Size: 3},
				{ID: "other", Parent: "base", Kind: migrate.ImageLayer, ChainID: chain("base", "other"), DiffID: diffIDOf("other"), Size: 5},
				{ID: "rw", Parent: "app", Kind: migrate.ContainerLayer, Size: -1},
				{ID: "volatile", Parent: "other", Kind: migrate.ContainerLayer, Size: -1},
			}, inv.Layers)

			want := []migrate.Image{
				{
					ID: app, Names: []string{"docker.io/library/app:1", "localhost/app:latest"}, Layers: []string{"base", "app"},
					Digests: []string{
						"docker.io/library/app@" + digest.FromString("manifest of app").String(), "quay.io/me/app@" + diffIDOf("x").String(),
					},
				},
				{ID: other, Layers: []string{"base", "other"}},
				{ID: empty},
			}
			slices.SortFunc(want, func(a, b migrate.Image) int { return cmp.Compare(a.ID, b.ID) })
			for i := range inv.Images {
				assert.Equal(t, inv.Images[i].ID, digest.FromBytes(inv.Images[i].Config))
				inv.Images[i].Config = nil
			}
			assert.Equal(t, want, inv.Images)
			assert.Equal(t, []migrate.Container{
				{ID: "c1", Name: "web", Image: app, Layer: "rw", Dir: driver + "-containers/c1"},
				{ID: "c2", Name: "run", Image: other, Layer: "volatile", Dir: driver + "-containers/c2"},
				{ID: "c3", Name: "rootfs", Layer: "alone", Dir: driver + "-containers/c3"},
			}, inv.Containers)
		})
	}
}

// TestBroken: each damage is a Problem of all that it concerns, and of nothing else.
func TestBroken(t *testing.T) {
	// The root has the images "good" (base, good) and "bad" (base, bad, top), each with a container.
	all := []string{"layer/bad", "layer/badrw", "layer/top", "image/bad", "container/cbad"}
	mapped := []map[string]any{{"container_id": 0, "host_id": 100000, "size": 65536}}
	tests := []struct {
		name     string
		damage   func(s *storage, layers map[string]map[string]any, bad map[string]any)
		problems []string
		kind     error
		text     string
	}{
		{"no files", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			require.NoError(s.t, os.RemoveAll(s.path("overlay/bad")))
		}, all, errdefs.ErrNotFound, ""},
		{"no record of a layer", func(s *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["id"] = "renamed"
			require.NoError(s.t, os.Rename(s.path("overlay/bad"), s.path("overlay/renamed")))
		}, []string{"layer/renamed", "layer/badrw", "layer/top", "image/bad", "container/cbad"}, errdefs.ErrNotFound, ""},
		{"incomplete", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["flags"] = map[string]any{"incomplete": true}
		}, all, errdefs.ErrDataLoss, "incomplete"},
		{"mapped ids", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["uidmap"] = mapped
		}, all, errdefs.ErrNotImplemented, "mapped"},
		{"no digest", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			delete(layers["bad"], "diff-digest")
		}, all, errdefs.ErrFailedPrecondition, "not recorded"},
		{"another digest", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["top"]["diff-digest"] = diffIDOf("bad")
		}, []string{"image/bad"}, errdefs.ErrDataLoss, "in the configuration"}, // the container's layers are whole
		{"a digest that is none", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["diff-digest"] = "sha256:../../x"
		}, all, errdefs.ErrDataLoss, "malformed"},
		{"a cycle of parents", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["parent"] = "top"
		}, all, errdefs.ErrDataLoss, "below itself"},
		{"its own parent", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["parent"] = "bad"
		}, all, errdefs.ErrDataLoss, "below itself"},
		{"another lower", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.write("overlay/bad/lower", "l/GOOD:l/BASE")
		}, all, errdefs.ErrDataLoss, "layers below"},
		{"no lower", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			require.NoError(s.t, os.Remove(s.path("overlay/bad/lower")))
		}, all, errdefs.ErrDataLoss, "layers below"},
		{"a parent less", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			delete(layers["bad"], "parent")
		}, all, errdefs.ErrDataLoss, "layers below"},
		{"composefs", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.write("overlay/bad/composefs-data/composefs.blob", "x")
		}, all, errdefs.ErrNotImplemented, "composefs"},
		{"no configuration", func(s *storage, _ map[string]map[string]any, bad map[string]any) {
			require.NoError(s.t, os.RemoveAll(s.path("overlay-images/"+bad["id"].(string))))
		}, []string{"image/bad"}, errdefs.ErrNotFound, "configuration"},
		{"a damaged configuration", func(s *storage, _ map[string]map[string]any, bad map[string]any) {
			id := bad["id"].(string)
			s.write("overlay-images/"+id+"/"+dataFile("sha256:"+id), "{}")
		}, []string{"image/bad"}, errdefs.ErrDataLoss, "digest of the image's ID"},
		{"a name that is none", func(_ *storage, _ map[string]map[string]any, bad map[string]any) {
			bad["names"] = []string{"UPPER CASE"}
		}, []string{"image/bad"}, errdefs.ErrInvalidArgument, "without the name"}, // and yet the image is listed
		{"a layer twice in use", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.container("second", "second", "sha256:", "badrw")
		}, []string{"container/second"}, errdefs.ErrDataLoss, "another container"},
		{"a container of a container", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.layer("above", "badrw")
			s.container("second", "second", "sha256:", "above")
		}, []string{"container/second", "layer/above"}, errdefs.ErrFailedPrecondition, ""},
		{"a container with mapped ids", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.containers[1]["gidmap"] = mapped
		}, []string{"container/cbad", "layer/badrw"}, errdefs.ErrNotImplemented, ""},
		{"a container without a layer", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.containers[1]["layer"] = ""
		}, []string{"container/cbad", "layer/badrw"}, errdefs.ErrNotFound, ""},
		{"a layer of nothing", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.imageLayer("orphan", "base")
		}, []string{"layer/orphan"}, errdefs.ErrNotFound, "no image or container"},
		{"a copy with mapped ids", func(s *storage, _ map[string]map[string]any, bad map[string]any) {
			s.imageLayer("copy", "bad")["uidmap"] = mapped
			bad["mapped-layers"] = []string{"copy"}
		}, nil, nil, ""},
		{"an identity of ids", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["uidmap"] = []map[string]any{{"container_id": 0, "host_id": 0, "size": 65536}}
		}, nil, nil, ""},
		{"a link in place of a layer", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			require.NoError(s.t, os.RemoveAll(s.path("overlay/bad/diff")))
			require.NoError(s.t, os.Symlink("../../..", s.path("overlay/bad/diff")))
		}, all, errdefs.ErrInvalidArgument, "symbolic link"},
		{"a pipe in place of a file", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			require.NoError(s.t, os.Remove(s.path("overlay/bad/lower")))
			require.NoError(s.t, unix.Mkfifo(s.path("overlay/bad/lower"), 0o600))
		}, all, errdefs.ErrInvalidArgument, "not a regular file"},
		{"a link in place of a configuration", func(s *storage, _ map[string]map[string]any, bad map[string]any) {
			id := bad["id"].(string)
			file := s.path("overlay-images/" + id + "/" + dataFile("sha256:"+id))
			require.NoError(s.t, os.Rename(file, s.dir+".config"))
			require.NoError(s.t, os.Symlink(s.dir+".config", file))
		}, []string{"image/bad"}, errdefs.ErrInvalidArgument, ""},
		{"a large configuration", func(s *storage, _ map[string]map[string]any, bad map[string]any) {
			id := bad["id"].(string)
			require.NoError(s.t, os.Truncate(s.path("overlay-images/"+id+"/"+dataFile("sha256:"+id)), 1<<40))
		}, []string{"image/bad"}, errdefs.ErrResourceExhausted, ""},
		{"an image whose ID is a path", func(_ *storage, _ map[string]map[string]any, bad map[string]any) {
			bad["id"] = "../../x"
		}, []string{"image/../../x"}, errdefs.ErrNotImplemented, ""},
		{"a container whose ID is a path", func(s *storage, _ map[string]map[string]any, _ map[string]any) {
			s.containers[1]["id"] = "../overlay"
		}, []string{"container/../overlay", "layer/badrw"}, errdefs.ErrInvalidArgument, ""},
		{"a layer whose ID is a path", func(_ *storage, layers map[string]map[string]any, _ map[string]any) {
			layers["bad"]["id"] = "../overlay/bad"
			layers["top"]["parent"] = "../overlay/bad"
		}, []string{"layer/../overlay/bad", "layer/badrw", "layer/top", "image/bad", "container/cbad"}, errdefs.ErrInvalidArgument, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newStorage(t, "overlay")
			s.imageLayer("base", "")
			s.imageLayer("good", "base")
			s.imageLayer("bad", "base")
			s.imageLayer("top", "bad")
			s.layer("goodrw", "good")
			s.layer("badrw", "top")
			good, _ := s.image("good", []string{"good:1"}, "base", "good")
			badID, bad := s.image("bad", []string{"bad:1"}, "base", "bad", "top")
			s.container("cgood", "good", good, "goodrw")
			s.container("cbad", "bad", badID, "badrw")
			layers := map[string]map[string]any{}
			for _, l := range s.layers {
				layers[l["id"].(string)] = l
			}
			test.damage(s, layers, bad)
			s.save()

			inv := s.inventory()
			listedLayers, images, containers, problems := ids(inv)
			for i := range problems {
				problems[i] = strings.Replace(problems[i], badID.Encoded(), "bad", 1)
			}
			assert.ElementsMatch(t, test.problems, problems)
			for _, p := range inv.Problems {
				if p.ID == badID.Encoded() || len(test.problems) == 1 {
					assert.ErrorIs(t, p.Err, test.kind)
					assert.ErrorContains(t, p.Err, test.text)
				}
				if p.What == "layer" {
					assert.NotContains(t, listedLayers, p.ID)
				}
				if p.What == "container" {
					assert.NotContains(t, containers, p.ID)
				}
			}
			assert.Subset(t, listedLayers, []string{"base", "good", "goodrw"})
			assert.Contains(t, images, good.Encoded())
			assert.Contains(t, containers, "cgood")
			assertWhole(t, inv)
		})
	}
}

// assertWhole asserts that all layers of images and containers are listed, parents first.
func assertWhole(t *testing.T, inv *migrate.Inventory) {
	listed := map[string]bool{"": true}
	for _, l := range inv.Layers {
		assert.True(t, listed[l.Parent], "layer %s before its parent", l.ID)
		assert.False(t, listed[l.ID], "layer %s twice", l.ID)
		listed[l.ID] = true
		assert.Equal(t, l.Kind == migrate.ImageLayer, l.ChainID != "", l.ID)
	}
	for _, i := range inv.Images {
		assert.Equal(t, i.ID, digest.FromBytes(i.Config))
		for _, l := range i.Layers {
			assert.True(t, listed[l])
		}
	}
	for _, c := range inv.Containers {
		assert.True(t, listed[c.Layer])
	}
}

// TestHostile: damage of the records themselves ends with an error.
func TestHostile(t *testing.T) {
	tests := []struct {
		name   string
		damage func(s *storage)
		kind   error
	}{
		{"no JSON", func(s *storage) { s.write("overlay-layers/layers.json", "{]") }, errdefs.ErrDataLoss},
		{"an object", func(s *storage) { s.write("overlay-layers/layers.json", "{}") }, errdefs.ErrDataLoss},
		{"more behind", func(s *storage) { s.write("overlay-images/images.json", "[][]") }, errdefs.ErrDataLoss},
		{"cut off", func(s *storage) { s.write("overlay-containers/containers.json", `[{"id":"x"}`) }, errdefs.ErrDataLoss},
		{"many records", func(s *storage) {
			s.write("overlay-layers/layers.json", "["+strings.Repeat("{},", maxRecordCount)+"{}]")
		}, errdefs.ErrResourceExhausted},
		{"deep", func(s *storage) {
			s.write("overlay-layers/layers.json", `[{"flags":`+strings.Repeat(`{"x":`, 1<<20))
		}, errdefs.ErrDataLoss},
		{"a huge file", func(s *storage) {
			require.NoError(s.t, os.Truncate(s.path("overlay-layers/layers.json"), 1<<40))
		}, errdefs.ErrResourceExhausted},
		{"a pipe", func(s *storage) {
			require.NoError(s.t, os.Remove(s.path("overlay-layers/layers.json")))
			require.NoError(s.t, unix.Mkfifo(s.path("overlay-layers/layers.json"), 0o600))
		}, errdefs.ErrInvalidArgument},
		{"a link", func(s *storage) {
			require.NoError(s.t, os.Rename(s.path("overlay-layers/layers.json"), s.dir+".json"))
			require.NoError(s.t, os.Symlink(s.dir+".json", s.path("overlay-layers/layers.json")))
		}, errdefs.ErrInvalidArgument},
		{"a link in place of a directory", func(s *storage) {
			require.NoError(s.t, os.Rename(s.path("overlay-images"), s.dir+"-images"))
			require.NoError(s.t, os.Symlink(s.dir+"-images", s.path("overlay-images")))
		}, errdefs.ErrInvalidArgument},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newStorage(t, "overlay")
			s.imageLayer("base", "")
			s.image("image", nil, "base")
			s.save()
			source := s.open()
			test.damage(s)
			_, err := source.Inventory(context.Background())
			assert.ErrorIs(t, err, test.kind)
		})
	}
}

// TestManyLayers: an image of 300 layers is whole, and parents beyond a bound are refused.
func TestManyLayers(t *testing.T) {
	for _, count := range []int{300, maxLayers + 1} {
		s := newStorage(t, "vfs")
		var layers []string
		parent := ""
		for i := range count {
			id := "l" + digest.FromString(string(rune(i))).Encoded()
			s.imageLayer(id, parent)
			layers = append(layers, id)
			parent = id
		}
		s.image("deep", nil, layers...)
		s.save()
		inv := s.inventory()
		if count > maxLayers {
			assert.Empty(t, inv.Images)
			assert.ErrorIs(t, inv.Problems[0].Err, errdefs.ErrResourceExhausted)
			continue
		}
		assert.Empty(t, inv.Problems)
		require.Len(t, inv.Images, 1)
		assert.Equal(t, layers, inv.Images[0].Layers)
	}
}

func TestOpenChooses(t *testing.T) {
	ctx := context.Background()
	_, err := Open(ctx, Options{Dir: filepath.Join(t.TempDir(), "none")})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = Open(ctx, Options{Dir: t.TempDir()})
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	s := newStorage(t, "vfs")
	newStorageAt(t, s.dir, "overlay")
	found, err := Detect(s.dir)
	require.NoError(t, err)
	assert.Equal(t, []string{"overlay", "vfs"}, found)
	_, err = Open(ctx, Options{Dir: s.dir})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = Open(ctx, Options{Dir: s.dir, Driver: "../vfs"})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = Open(ctx, Options{Dir: s.dir, Driver: "btrfs"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	source, err := Open(ctx, Options{Dir: s.dir, Driver: "vfs"})
	require.NoError(t, err)
	assert.Equal(t, "vfs", source.driver)
	require.NoError(t, source.Close())
}

func TestForeignOwner(t *testing.T) {
	testfs.Root(t) // only the superuser is refused
	s := newStorage(t, "vfs")
	require.NoError(t, os.Chown(s.dir, 1000, 1000))
	_, err := Open(context.Background(), Options{Dir: s.dir})
	assert.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
}

// TestDataFile compares with names that containers/storage has made.
func TestDataFile(t *testing.T) {
	for name, file := range map[string]string{
		"manifest":   "manifest",
		"sha256:ab":  "=c2hhMjU2OmFi",
		"signature-": "signature-", // as it is there
		"a-b":        "=YS1i",
		"Upper":      "=VXBwZXI=",
		"../x":       "=Li4veA==",
		"é":          "é",
		"éa":         "=w6lh",
		"":           "",
	} {
		assert.Equal(t, file, dataFile(name), name)
	}
}
