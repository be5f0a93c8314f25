package oldgraph

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

func TestInventory(t *testing.T) {
	testfs.Root(t)
	r := newRoot(t, t.TempDir())
	r.sample()
	inv := r.inventory()
	assert.Empty(t, inv.Problems)
	assert.Equal(t, Program, inv.Program)
	assert.Equal(t, Driver, inv.Driver)

	byID := map[string]migrate.Layer{}
	var order []string
	for _, l := range inv.Layers {
		byID[l.ID] = l
		order = append(order, l.ID)
	}
	assert.Equal(t, []string{id("a"), id("b"), id("d"), id("c"), id("running")}, order)
	for _, name := range []string{"a", "b", "c", "d"} {
		l := byID[id(name)]
		assert.Equal(t, migrate.ImageLayer, l.Kind)
		assert.EqualValues(t, 12, l.Size)
		diffIDs := []digest.Digest{l.DiffID}
		for parent := l.Parent; parent != ""; parent = byID[parent].Parent {
			diffIDs = append([]digest.Digest{byID[parent].DiffID}, diffIDs...)
		}
		assert.Equal(t, identity.ChainID(diffIDs), l.ChainID)
	}
	assert.Equal(t, migrate.Layer{ID: id("running"), Parent: id("b"), Kind: migrate.ContainerLayer, Size: -1}, byID[id("running")])

	names := map[string][]string{}
	configs := map[string]ocispec.Image{}
	byDigest := map[digest.Digest]string{}
	for _, i := range inv.Images {
		assert.Equal(t, i.ID, digest.FromBytes(i.Config))
		top := i.Layers[len(i.Layers)-1]
		names[top], byDigest[i.ID] = i.Names, top
		var config ocispec.Image
		require.NoError(t, json.Unmarshal(i.Config, &config))
		configs[top] = config
		assert.Len(t, config.History, len(i.Layers))
		for at, layer := range i.Layers {
			assert.Equal(t, byID[layer].DiffID, config.RootFS.DiffIDs[at])
		}
	}
	// "a" is a layer alone: it has no name, no container, and others above.
	assert.Equal(t, map[string][]string{
		id("b"): {"docker.io/library/debian:7", "docker.io/library/debian:latest"}, id("c"): nil, id("d"): {"docker.io/me/app:1"},
	}, names)
	c := configs[id("c")]
	assert.Equal(t, "amd64", c.Architecture)
	assert.Equal(t, "linux", c.OS)
	assert.Equal(t, []string{"c"}, c.Config.Cmd)
	assert.Equal(t, map[string]struct{}{"80/tcp": {}, "53/udp": {}}, c.Config.ExposedPorts)
	assert.Equal(t, "/bin/sh -c make b", c.History[1].CreatedBy)
	assert.Equal(t, "of c", c.History[2].Comment)

	require.Len(t, inv.Containers, 1)
	container := inv.Containers[0]
	assert.Equal(t, id("b"), byDigest[container.Image])
	container.Image = ""
	assert.Equal(t, migrate.Container{ID: id("running"), Name: "running", Layer: id("running"), Running: true, Dir: "containers/" + id("running")}, container)
}

// TestStable: a copy of the root has images of the same IDs.
func TestStable(t *testing.T) {
	testfs.Root(t)
	r := newRoot(t, t.TempDir())
	r.sample()
	first := r.inventory()
	other := newRoot(t, t.TempDir())
	out, err := runCopy(r.dir, other.dir)
	require.NoError(t, err, out)
	assert.Equal(t, first.Images, other.inventory().Images)
}

// TestParts: of the parts and the layer's files comes the tar of the diff ID. Applied one after the other, the tars make
// the trees.
func TestParts(t *testing.T) {
	testfs.Root(t)
	testfs.CheckLeaks(t)
	ctx := context.Background()
	r := newRoot(t, t.TempDir())
	r.sample()
	source, err := Open(ctx, r.dir)
	require.NoError(t, err)
	defer source.Close()
	inv, err := source.Inventory(ctx)
	require.NoError(t, err)
	tars := map[string][]byte{}
	for _, l := range inv.Layers {
		content, err := source.Open(ctx, l.ID)
		require.NoError(t, err)
		assert.Equal(t, migrate.Aufs, content.Form)
		parts, err := source.Parts(ctx, l.ID)
		if l.Kind == migrate.ContainerLayer {
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			require.NoError(t, content.Close())
			continue
		}
		require.NoError(t, err)
		layer, err := io.ReadAll(asm.NewOutputTarStream(storage.NewPathFileGetter(content.Dir.Name()), storage.NewJSONUnpacker(parts)))
		require.NoError(t, err)
		assert.Equal(t, l.DiffID, digest.FromBytes(layer))
		tars[l.ID] = layer
		require.NoError(t, parts.Close())
		require.NoError(t, content.Close())
	}
	for layer, below := range map[string][]string{"a": nil, "b": {"a"}, "c": {"a", "b"}, "d": {"a"}} {
		dir := t.TempDir()
		for _, name := range append(below, layer) {
			_, err := layertar.Apply(ctx, dir, bytes.NewReader(tars[id(name)]), layertar.ApplyOptions{})
			require.NoError(t, err)
		}
		assert.Equal(t, trees()[id(layer)], readTree(t, dir), layer)
	}

	// Parts that are closed early leave nothing behind.
	parts, err := source.Parts(ctx, id("a"))
	require.NoError(t, err)
	_, err = parts.Read(make([]byte, 10))
	require.NoError(t, err)
	require.NoError(t, parts.Close())
	for _, id := range []string{"", "..", "a/b", "../graph"} {
		_, err = source.Parts(ctx, id)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		_, err = source.Open(ctx, id)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
	_, err = source.Open(ctx, id("e"))
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
}

func TestBroken(t *testing.T) {
	testfs.Root(t)
	record := func(name string) string { return "graph/" + id(name) + "/json" }
	change := func(r *oldRoot, name string, fields map[string]any) {
		var record map[string]any
		data, err := os.ReadFile(r.path(name))
		require.NoError(r.t, err)
		require.NoError(r.t, json.Unmarshal(data, &record))
		for field, value := range fields {
			record[field] = value
		}
		r.writeJSON(name, record)
	}
	// All that needs image "b".
	all := []string{"container/running", "image/b", "image/b", "layer/b", "layer/c"}
	tests := []struct {
		name     string
		damage   func(r *oldRoot)
		problems []string
		kind     error
	}{
		{"no record", func(r *oldRoot) { require.NoError(r.t, os.Remove(r.path(record("b")))) }, all, errdefs.ErrNotFound},
		{"no JSON", func(r *oldRoot) { r.write(record("b"), "{") }, all, errdefs.ErrDataLoss},
		{"another ID", func(r *oldRoot) { change(r, record("b"), map[string]any{"id": id("a")}) }, all, errdefs.ErrDataLoss},
		{"no parent", func(r *oldRoot) { change(r, record("b"), map[string]any{"parent": id("e")}) }, all, errdefs.ErrNotFound},
		{"a parent that is a path", func(r *oldRoot) { change(r, record("b"), map[string]any{"parent": "../../x"}) }, all, errdefs.ErrDataLoss},
		{"a cycle", func(r *oldRoot) { change(r, record("b"), map[string]any{"parent": id("c")}) }, all, errdefs.ErrDataLoss},
		{"its own parent", func(r *oldRoot) { change(r, record("b"), map[string]any{"parent": id("b")}) }, all, errdefs.ErrDataLoss},
		{"a huge record", func(r *oldRoot) { require.NoError(r.t, os.Truncate(r.path(record("b")), 1<<40)) }, all, errdefs.ErrResourceExhausted},
		{"a pipe", func(r *oldRoot) {
			require.NoError(r.t, os.Remove(r.path(record("b"))))
			require.NoError(r.t, unix.Mkfifo(r.path(record("b")), 0o600))
		}, all, errdefs.ErrInvalidArgument},
		{"a link to a record", func(r *oldRoot) {
			require.NoError(r.t, os.Rename(r.path(record("b")), r.path("json")))
			require.NoError(r.t, os.Symlink("../../json", r.path(record("b"))))
		}, all, errdefs.ErrInvalidArgument},
		{"a link to files", func(r *oldRoot) {
			require.NoError(r.t, os.Rename(r.path("graph/"+id("b")+"/layer"), r.path("files")))
			require.NoError(r.t, os.Symlink("../../files", r.path("graph/"+id("b")+"/layer")))
		}, all, errdefs.ErrInvalidArgument},
		{"a file that is removed", func(r *oldRoot) { r.write("graph/"+id("b")+"/layer/dir/.wh.new", "") }, all, errdefs.ErrDataLoss},
		{"a whiteout of nothing", func(r *oldRoot) { r.write("graph/"+id("b")+"/layer/.wh...", "") }, all, errdefs.ErrDataLoss},
		{"no files", func(r *oldRoot) { require.NoError(r.t, os.RemoveAll(r.path("graph/"+id("b")+"/layer"))) },
			[]string{"container/running", "image/b", "image/b", "layer/c"}, errdefs.ErrNotFound},
		{"a port that is none", func(r *oldRoot) {
			change(r, record("b"), map[string]any{"config": map[string]any{"PortSpecs": []string{"../80"}}})
		}, []string{"container/running", "image/b", "image/b"}, errdefs.ErrDataLoss},
		{"a name that is none", func(r *oldRoot) {
			r.writeJSON("repositories", map[string]any{"Repositories": map[string]map[string]string{"UP/../x": {"1": id("b")}}})
		}, []string{"image/b"}, errdefs.ErrInvalidArgument},
		{"a name of nothing", func(r *oldRoot) {
			r.writeJSON("repositories", map[string]any{"Repositories": map[string]map[string]string{"x": {"1": "../../x"}}})
		}, []string{"image/../../x"}, errdefs.ErrNotFound},
		{"a container of nothing", func(r *oldRoot) {
			change(r, "containers/"+id("running")+"/config.json", map[string]any{"Image": id("e")})
		}, []string{"container/running"}, errdefs.ErrNotFound},
		{"a container without a record", func(r *oldRoot) {
			require.NoError(r.t, os.Remove(r.path("containers/"+id("running")+"/config.json")))
		}, []string{"container/running"}, errdefs.ErrNotFound},
		{"a container of an image's ID", func(r *oldRoot) {
			require.NoError(r.t, os.Rename(r.path("containers/"+id("running")), r.path("containers/"+id("d"))))
		}, []string{"container/d"}, errdefs.ErrDataLoss},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRoot(t, t.TempDir())
			r.sample()
			test.damage(r)
			inv := r.inventory()
			var problems []string
			for _, p := range inv.Problems {
				problems = append(problems, p.What+"/"+strings.TrimRight(p.ID, "0"))
			}
			assert.Equal(t, test.problems, problems)
			if len(inv.Problems) > 0 {
				matched := false
				for _, p := range inv.Problems {
					matched = matched || assert.ObjectsAreEqual(true, isKind(p.Err, test.kind))
				}
				assert.True(t, matched, "%v", inv.Problems)
			}
			var tops []string
			listed := map[string]bool{"": true}
			for _, l := range inv.Layers {
				assert.True(t, listed[l.Parent])
				listed[l.ID] = true
			}
			for _, i := range inv.Images {
				tops = append(tops, i.Layers[len(i.Layers)-1])
				for _, l := range i.Layers {
					assert.True(t, listed[l])
				}
			}
			assert.Contains(t, tops, id("d"))
		})
	}
}

func TestHostile(t *testing.T) {
	testfs.Root(t)
	for name, damage := range map[string]func(r *oldRoot){
		"a link in place of graph": func(r *oldRoot) {
			require.NoError(t, os.Rename(r.path("graph"), r.path("elsewhere")))
			require.NoError(t, os.Symlink("elsewhere", r.path("graph")))
		},
		"names that are no JSON": func(r *oldRoot) { r.write("repositories", "[]") },
		"names that are a link": func(r *oldRoot) {
			require.NoError(t, os.Rename(r.path("repositories"), r.path("elsewhere")))
			require.NoError(t, os.Symlink("elsewhere", r.path("repositories")))
		},
		"names without end": func(r *oldRoot) { require.NoError(t, os.Truncate(r.path("repositories"), 1<<40)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoot(t, t.TempDir())
			r.sample()
			source := r.open()
			damage(r)
			_, err := source.Inventory(context.Background())
			assert.Error(t, err)
		})
	}
}

func TestOpen(t *testing.T) {
	ctx := context.Background()
	_, err := Open(ctx, t.TempDir())
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	r := newRoot(t, t.TempDir())
	r.write("graph/"+id("a")+"/json", "{}") // as Docker 0.7 has it
	found, err := Detect(r.dir)
	require.NoError(t, err)
	assert.False(t, found)
	r.image("a", "", nil)
	found, err = Detect(r.dir)
	require.NoError(t, err)
	assert.True(t, found)
}

func TestRemove(t *testing.T) {
	testfs.Root(t)
	ctx := context.Background()
	r := newRoot(t, t.TempDir())
	r.sample()
	r.write("containers/"+id("later")+"/config.json", "{}") // of a later Docker
	source := r.open()

	require.NoError(t, os.MkdirAll(r.path("mnt"), 0o755))
	require.NoError(t, unix.Mount(r.path("graph/"+id("a")+"/layer"), r.path("mnt"), "", unix.MS_BIND, ""))
	require.ErrorIs(t, source.InUse(ctx), fault.ErrInUse)
	require.ErrorIs(t, source.Remove(ctx), errdefs.ErrFailedPrecondition)
	require.NoError(t, unix.Unmount(r.path("mnt"), unix.MNT_DETACH))
	require.NoError(t, source.InUse(ctx))

	require.NoError(t, source.Remove(ctx))
	names, err := os.ReadDir(r.dir)
	require.NoError(t, err)
	require.Len(t, names, 3)
	assert.NoDirExists(t, r.path("graph"))
	assert.NoFileExists(t, r.path("repositories"))
	assert.NoDirExists(t, r.path("containers/"+id("running")))
	assert.FileExists(t, r.path("containers/"+id("later")+"/config.json"))
	assert.DirExists(t, r.path("volumes/v/layer"))
	require.NoError(t, source.Remove(ctx), "again")
}

// FuzzRecords: no record breaks its reader, and a configuration that is made of it can be read.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"id":"x","parent":"y","created":"2013-06-13T14:03:50-07:00","config":{"PortSpecs":["80"]}}`))
	f.Add([]byte(`{"Repositories":{"a":{"b":"c"}}}`))
	f.Add([]byte(`{"Image":"x","Name":"/n","State":{"Running":true}}`))
	f.Add([]byte(`{"id":"x","config":null,"history":{},"rootfs":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseNames(data)
		_, _ = parseContainer(data)
		record, err := parseImage(data, "x")
		if err != nil {
			return
		}
		config, err := makeConfig([]*image{{id: "x", record: record, json: data}}, []digest.Digest{digest.FromString("x")})
		if err != nil {
			return
		}
		var parsed ocispec.Image
		require.NoError(t, json.Unmarshal(config, &parsed))
		assert.Equal(t, []digest.Digest{digest.FromString("x")}, parsed.RootFS.DiffIDs)
		assert.Equal(t, "linux", parsed.OS)
	})
}
