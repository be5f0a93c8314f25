package dockerroot

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
)

// trouble is a problem that is expected.
type trouble struct {
	what, id string
	kind     error
	nameOnly bool // the image itself comes along
}

// The things of the sample that do not come along if a layer is damaged.
func (s *sample) withoutA(kind error) []trouble {
	return append(s.withoutB(kind), trouble{whatLayer, string(s.a.Chain), kind, false}, trouble{whatImage, string(s.base), kind, false})
}

func (s *sample) withoutB(kind error) []trouble {
	return append(s.withoutC(kind),
		trouble{whatLayer, string(s.b.Chain), kind, false}, trouble{whatImage, string(s.middle), kind, false}, trouble{whatContainer, s.web.ID, kind, false})
}

func (s *sample) withoutC(kind error) []trouble {
	return []trouble{{whatLayer, string(s.c.Chain), kind, false}, {whatImage, string(s.top), kind, false}, {whatContainer, s.old.ID, kind, false}}
}

// withoutWeb is the trouble of one container.
func (s *sample) withoutWeb(kind error) []trouble {
	return []trouble{{whatContainer, s.web.ID, kind, false}}
}

func TestBroken(t *testing.T) {
	notFound, invalid, lost := errdefs.ErrNotFound, errdefs.ErrInvalidArgument, errdefs.ErrDataLoss
	for _, c := range []struct {
		name   string
		driver string // "": vfs
		damage func(s *sample) []trouble
	}{
		{"chain: no cache-id", "", func(s *sample) []trouble {
			s.remove(s.LayerDir(s.b) + "/cache-id")
			return s.withoutB(notFound)
		}},
		{"chain: cache-id leads out", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.b)+"/cache-id", "../../../../canary")
			return s.withoutB(invalid)
		}},
		{"chain: cache-id of a layer of a container", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/cache-id", s.web.Init)
			return s.withoutC(invalid)
		}},
		{"chain: empty diff", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/diff", "")
			return s.withoutC(invalid)
		}},
		{"chain: other diff", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.b)+"/diff", string(s.a.Diff))
			return s.withoutB(lost)
		}},
		{"chain: SHA-512", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/diff", digest.SHA512.FromString("diff c").String())
			return s.withoutC(invalid)
		}},
		{"chain: no parent", "", func(s *sample) []trouble {
			s.remove(s.LayerDir(s.b) + "/parent")
			return s.withoutB(lost)
		}},
		{"chain: cycle", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.a)+"/parent", string(s.c.Chain))
			return s.withoutA(lost)
		}},
		{"chain: its own parent", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.a)+"/parent", string(s.a.Chain))
			return s.withoutA(lost)
		}},
		{"chain: the base is gone", "", func(s *sample) []trouble {
			s.remove(s.LayerDir(s.a))
			return append(s.withoutB(notFound), trouble{whatImage, string(s.base), notFound, false})
		}},
		{"chain: half-removed", "", func(s *sample) []trouble {
			name := s.c.Chain.Encoded() + "-123456-removing"
			require.NoError(s.t, os.Rename(s.Path(s.LayerDir(s.c)), s.Path("image/vfs/layerdb/sha256/"+name)))
			return append(s.withoutC(notFound)[1:], trouble{whatLayer, name, notFound, false})
		}},
		{"chain: other names", "", func(s *sample) []trouble {
			s.Mkdir("image/vfs/layerdb/sha256/0123")
			s.Write("image/vfs/layerdb/sha256/"+strings.ToUpper(hexOf("x")), "")
			return []trouble{{whatLayer, "0123", invalid, false}, {whatLayer, strings.ToUpper(hexOf("x")), invalid, false}}
		}},
		{"chain: a file", "", func(s *sample) []trouble {
			s.remove(s.LayerDir(s.c))
			s.Write(s.LayerDir(s.c), "")
			return s.withoutC(invalid)
		}},
		{"chain: no size", "", func(s *sample) []trouble {
			s.remove(s.LayerDir(s.c) + "/size")
			return s.withoutC(notFound)
		}},
		{"chain: negative size", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/size", "-1")
			return s.withoutC(invalid)
		}},
		{"chain: one cache-id of two layers", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/cache-id", s.b.ID)
			return s.withoutB(lost)
		}},
		{"chain: one cache-id of a layer and a container", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/cache-id", s.web.Mount)
			return append(s.withoutC(lost), s.withoutWeb(lost)...)
		}},
		{"parts: no gzip", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.c)+"/"+partsFile, "text")
			return s.withoutC(lost)
		}},
		{"parts: empty", "", func(s *sample) []trouble {
			s.Write(s.LayerDir(s.b)+"/"+partsFile, "")
			return s.withoutB(lost)
		}},
		{"content: missing", "", func(s *sample) []trouble {
			s.remove(s.TreeName(s.b.ID))
			return s.withoutB(notFound)
		}},
		{"content: missing in btrfs", "btrfs", func(s *sample) []trouble {
			s.remove(s.TreeName(s.a.ID))
			return s.withoutA(notFound)
		}},
		{"content: a file", "", func(s *sample) []trouble {
			s.remove(s.TreeName(s.c.ID))
			s.Write(s.TreeName(s.c.ID), "")
			return s.withoutC(invalid)
		}},
		{"content: missing in overlay2", "overlay2", func(s *sample) []trouble {
			s.remove(s.TreeName(s.b.ID))
			return s.withoutB(notFound)
		}},
		{"content: other layers below in overlay2", "overlay2", func(s *sample) []trouble {
			s.Write("overlay2/"+s.c.ID+"/lower", "l/"+testroot.LinkOf(s.a.ID))
			return s.withoutC(lost)
		}},
		{"content: other layers below a container in overlay2", "overlay2", func(s *sample) []trouble {
			s.Write("overlay2/"+s.web.Mount+"/lower", "l/"+testroot.LinkOf(s.b.ID)+":l/"+testroot.LinkOf(s.a.ID))
			return s.withoutWeb(lost)
		}},
		{"content: a layer below a base in overlay2", "overlay2", func(s *sample) []trouble {
			s.Write("overlay2/"+s.a.ID+"/lower", "l/"+testroot.LinkOf(s.c.ID))
			return s.withoutA(lost)
		}},
		{"content: missing in aufs", "aufs", func(s *sample) []trouble {
			s.remove(s.TreeName(s.c.ID))
			return s.withoutC(notFound)
		}},
		{"content: half-removed in aufs", "aufs", func(s *sample) []trouble {
			require.NoError(s.t, os.Rename(s.Path(s.TreeName(s.c.ID)), s.Path(s.TreeName(s.c.ID)+"-removing")))
			return s.withoutC(notFound)
		}},
		{"content: other layers below in aufs", "aufs", func(s *sample) []trouble {
			s.Write("aufs/layers/"+s.c.ID, s.b.ID+"\n")
			return s.withoutC(lost)
		}},

		{"image: damaged", "", func(s *sample) []trouble {
			s.Write(s.ConfigFile(s.base), "{}")
			return []trouble{{whatImage, string(s.base), lost, false}}
		}},
		{"image: empty", "", func(s *sample) []trouble {
			s.Write(s.ConfigFile(s.base), "")
			return []trouble{{whatImage, string(s.base), lost, false}}
		}},
		{"image: a directory", "", func(s *sample) []trouble {
			s.remove(s.ConfigFile(s.base))
			s.Mkdir(s.ConfigFile(s.base))
			return []trouble{{whatImage, string(s.base), invalid, false}}
		}},
		{"image: no JSON", "", func(s *sample) []trouble { return s.addImage(`{"rootfs":`, lost) }},
		{"image: no layers", "", func(s *sample) []trouble { return s.addImage(`{}`, errdefs.ErrNotImplemented) }},
		{"image: bad diff ID", "", func(s *sample) []trouble {
			return s.addImage(`{"rootfs":{"type":"layers","diff_ids":["../x"]}}`, invalid)
		}},
		{"image: unknown layer", "", func(s *sample) []trouble {
			return s.addImage(`{"rootfs":{"type":"layers","diff_ids":["`+manifest+`"]}}`, notFound)
		}},
		{"image: layers in another order", "", func(s *sample) []trouble {
			return s.addImage(`{"rootfs":{"type":"layers","diff_ids":["`+string(s.b.Diff)+`","`+string(s.a.Diff)+`"]}}`, notFound)
		}},
		{"image: far too many layers", "", func(s *sample) []trouble {
			diffs := strings.Repeat(`"`+manifest+`",`, maxDepth) + `"` + manifest + `"`
			return s.addImage(`{"rootfs":{"type":"layers","diff_ids":[`+diffs+`]}}`, errdefs.ErrResourceExhausted)
		}},
		{"image: not an ID", "", func(s *sample) []trouble {
			s.Write("image/vfs/imagedb/content/sha256/x\ny", "{}")
			return []trouble{{whatImage, `"x\ny"`, invalid, false}}
		}},

		{"names: of no image", "", func(s *sample) []trouble {
			s.Name("gone:1", manifest)
			return []trouble{{whatImage, manifest, notFound, false}}
		}},
		{"names: invalid", "", func(s *sample) []trouble {
			s.Name("UPPER:1", string(s.base))
			return []trouble{{whatImage, string(s.base), invalid, true}}
		}},
		{"names: of an invalid ID", "", func(s *sample) []trouble {
			s.Name("gone:1", "../x")
			return []trouble{{whatImage, "../x", invalid, false}}
		}},
		{"names: the same of two images", "", func(s *sample) []trouble {
			s.Name("docker.io/library/debian:12", string(s.top))
			return []trouble{{whatImage, string(s.top), errdefs.ErrAlreadyExists, true}}
		}},

		{"container: no layers", "", func(s *sample) []trouble {
			s.remove(s.MountDir(s.web.ID))
			return s.withoutWeb(notFound)
		}},
		{"container: no mount-id", "", func(s *sample) []trouble {
			s.remove(s.MountDir(s.web.ID) + "/mount-id")
			return s.withoutWeb(notFound)
		}},
		{"container: mount-id leads out", "", func(s *sample) []trouble {
			s.Write(s.MountDir(s.web.ID)+"/mount-id", "../../canary")
			return s.withoutWeb(invalid)
		}},
		{"container: init-id leads out", "", func(s *sample) []trouble {
			s.Write(s.MountDir(s.web.ID)+"/init-id", "..-init")
			return s.withoutWeb(invalid)
		}},
		{"container: init-id is the mount-id", "", func(s *sample) []trouble {
			s.Write(s.MountDir(s.web.ID)+"/init-id", s.web.Mount)
			return s.withoutWeb(lost)
		}},
		{"container: bad parent", "", func(s *sample) []trouble {
			s.Write(s.MountDir(s.web.ID)+"/parent", "x")
			return s.withoutWeb(invalid)
		}},
		{"container: unknown parent", "", func(s *sample) []trouble {
			s.Write(s.MountDir(s.web.ID)+"/parent", manifest)
			return s.withoutWeb(notFound)
		}},
		{"container: no content", "", func(s *sample) []trouble {
			s.remove(s.TreeName(s.web.Mount))
			return s.withoutWeb(notFound)
		}},
		{"container: no content of the layer between", "", func(s *sample) []trouble {
			s.remove(s.TreeName(s.web.Init))
			return s.withoutWeb(notFound)
		}},
		{"container: damaged configuration", "", func(s *sample) []trouble {
			s.Write("containers/"+s.web.ID+"/config.v2.json", "{")
			return s.withoutWeb(lost)
		}},
		{"container: configuration of another", "", func(s *sample) []trouble {
			s.Write("containers/"+s.web.ID+"/config.v2.json", `{"ID":"`+s.old.ID+`","Driver":"vfs"}`)
			return s.withoutWeb(lost)
		}},
		{"container: no configuration", "", func(s *sample) []trouble {
			s.remove("containers/" + s.web.ID + "/config.v2.json")
			return s.withoutWeb(notFound)
		}},
		{"container: damaged options", "", func(s *sample) []trouble {
			s.Write("containers/"+s.web.ID+"/hostconfig.json", `{"StorageOpt":1}`)
			return s.withoutWeb(lost)
		}},
		{"container: gone, but for its layers", "", func(s *sample) []trouble {
			s.remove("containers/" + s.web.ID)
			return s.withoutWeb(notFound)
		}},
		{"container: not an ID", "", func(s *sample) []trouble {
			s.Mkdir("containers/x")
			s.Mkdir(s.MountDir("y"))
			return []trouble{{whatContainer, "x", invalid, false}, {whatContainer, "y", invalid, false}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			driver := c.driver
			if driver == "" {
				driver = "vfs"
			}
			s := fill(newTestRoot(t, t.TempDir(), driver))
			want := s.inventory()
			troubles := c.damage(s)
			inv, err := open(t, s.testRoot).Inventory(t.Context())
			require.NoError(t, err)

			left := map[string]trouble{}
			for _, tr := range troubles {
				left[tr.what+" "+tr.id] = tr
			}
			for _, p := range inv.Problems {
				tr, ok := left[p.What+" "+p.ID]
				if assert.True(t, ok, "%s %s: %v", p.What, p.ID, p.Err) {
					require.ErrorIs(t, p.Err, tr.kind)
				}
				delete(left, p.What+" "+p.ID)
				t.Logf("%s %s (%s): %v", p.What, p.ID, p.Name, p.Err)
			}
			assert.Empty(t, left, "without a problem")
			s.checkRest(want, inv, troubles)
		})
	}
}

// addImage makes an image with that configuration.
func (s *sample) addImage(config string, kind error) []trouble {
	id := digest.FromString(config)
	s.Write(s.ConfigFile(id), config)
	return []trouble{{whatImage, string(id), kind, false}}
}

// checkRest requires all of the wanted inventory, except the things with troubles.
func (s *sample) checkRest(want, inv *migrate.Inventory, troubles []trouble) {
	gone := map[string]bool{}
	for _, tr := range troubles {
		gone[tr.id] = !tr.nameOnly
	}
	for _, c := range []testroot.Container{s.web, s.old} {
		if gone[c.ID] {
			gone[c.Mount], gone[c.Init] = true, true
		}
	}
	delete(gone, "")
	// A layer that has no directory in the layerdb has no problem of its own.
	for _, l := range []*testroot.Layer{s.a, s.b, s.c} {
		if _, err := os.Lstat(s.Path(s.LayerDir(l))); err != nil {
			gone[string(l.Chain)] = true
		}
	}
	var layers []migrate.Layer
	for _, l := range want.Layers {
		if !gone[l.ID] && !gone[string(l.ChainID)] {
			layers = append(layers, l)
		}
	}
	assert.Equal(s.t, layers, inv.Layers)
	var images []migrate.Image
	for _, i := range want.Images {
		if !gone[string(i.ID)] {
			images = append(images, i)
		}
	}
	assert.Equal(s.t, images, inv.Images)
	var containers []migrate.Container
	for _, c := range want.Containers {
		if !gone[c.ID] {
			if gone[string(c.Image)] {
				c.Image = ""
			}
			containers = append(containers, c)
		}
	}
	assert.Equal(s.t, containers, inv.Containers)
}

// Files that Docker may have lost in a power cut, and that say nothing new.
func TestLostHints(t *testing.T) {
	for _, name := range []string{"link", "lower", "committed"} {
		for _, empty := range []bool{false, true} {
			s := fill(newTestRoot(t, t.TempDir(), "overlay2"))
			file := "overlay2/" + s.b.ID + "/" + name
			s.remove(file)
			if empty {
				s.Write(file, "")
			}
			inv, err := open(t, s.testRoot).Inventory(t.Context())
			require.NoError(t, err)
			require.Equal(t, s.inventory(), inv, name)
		}
	}
	// BuildKit has made a layer b of its own, and the layer c above it.
	s := fill(newTestRoot(t, t.TempDir(), "overlay2"))
	s.Write("overlay2/"+s.c.ID+"/lower", "l/"+testroot.LinkOf("other b")+":l/"+testroot.LinkOf(s.a.ID))
	inv, err := open(t, s.testRoot).Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.inventory(), inv)

	s = fill(newTestRoot(t, t.TempDir(), "aufs"))
	s.remove("aufs/layers/" + s.b.ID)
	s.Write("aufs/layers/"+s.web.Init, "")
	inv, err = open(t, s.testRoot).Inventory(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.inventory(), inv)
}

// Without the file of names, and if it is damaged, images have no names.
func TestNoNames(t *testing.T) {
	for text, problems := range map[string]int{"": 0, "{": 1, `{"Repositories":[]}`: 1} {
		s := fill(newTestRoot(t, t.TempDir(), "vfs"))
		want := s.inventory()
		s.remove("image/vfs/" + repositoriesFile)
		if text != "" {
			s.Write("image/vfs/"+repositoriesFile, text)
		}
		inv, err := open(t, s.testRoot).Inventory(t.Context())
		require.NoError(t, err)
		require.Len(t, inv.Problems, problems)
		for _, p := range inv.Problems {
			assert.Equal(t, repositoriesFile, p.ID)
			require.ErrorIs(t, p.Err, errdefs.ErrDataLoss)
		}
		for i := range want.Images {
			want.Images[i].Names, want.Images[i].Digests = nil, nil
		}
		assert.Equal(t, want.Images, inv.Images)
	}
}

// Damage after the header of the parts is found when they are read.
func TestDamagedParts(t *testing.T) {
	s := fill(newTestRoot(t, t.TempDir(), "vfs"))
	whole := testroot.Zipped(t, partsOf("b"))
	for name, damaged := range map[string]string{
		"cut off":       whole[:len(whole)-9],
		"no checksum":   whole[:len(whole)-8],
		"changed":       whole[:len(whole)-6] + "\xff" + whole[len(whole)-5:],
		"more after it": whole + "text",
	} {
		s.Write(s.LayerDir(s.b)+"/"+partsFile, damaged)
		src := open(t, s.testRoot)
		inv, err := src.Inventory(t.Context())
		require.NoError(t, err)
		require.Empty(t, inv.Problems)
		parts, err := src.Parts(t.Context(), s.b.ID)
		require.NoError(t, err)
		_, err = io.ReadAll(parts)
		require.ErrorIs(t, err, errdefs.ErrDataLoss, name)
		require.NoError(t, parts.Close())
	}
	s.remove(s.LayerDir(s.b) + "/" + partsFile)
	src := open(t, s.testRoot)
	inv, err := src.Inventory(t.Context())
	require.NoError(t, err)
	require.Empty(t, inv.Problems)
	_, err = src.Parts(t.Context(), s.b.ID)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// Lines of layers may be long, but not without end. Errors do not grow with them.
func TestDepth(t *testing.T) {
	all := &imageLayers{byChain: map[digest.Digest]*imageLayer{}}
	var top *imageLayer
	for range maxDepth + 3 {
		l := &imageLayer{diff: manifest, id: someID}
		if top != nil {
			l.parent = top.chain
		}
		l.chain = l.computeChain()
		all.byChain[l.chain] = l
		top = l
	}
	all.addWithParents(top)
	require.Len(t, all.list, maxDepth+3)
	require.NoError(t, all.check(t.Context(), anyContent{}, owners{}))
	for i, l := range all.list {
		require.Equal(t, i+1, l.depth)
		if i < maxDepth {
			require.NoError(t, l.err)
			continue
		}
		require.ErrorIs(t, l.err, errdefs.ErrResourceExhausted)
		assert.Less(t, len(l.err.Error()), 200, "%v", l.err)
	}
	assert.Len(t, all.idsOf(all.list[maxDepth-1].chain), maxDepth)
}

// anyContent has content for all layers.
type anyContent struct{ keeper }

func (anyContent) check(string, int) error { return nil }
