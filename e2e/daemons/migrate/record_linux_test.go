package migrate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// record is all that users see of an engine's images and containers, whatever its storage.
type record struct {
	images     map[digest.Digest]imageRecord // by the digest of the config
	containers map[string]containerRecord    // by ID
}

type imageRecord struct {
	ID      string
	Names   []string
	DiffIDs []string
	History []string
	// HistoryMore are columns of the history that differ between engines: IDs, tags and sizes.
	HistoryMore []string
	saved       savedImage
}

type containerRecord struct {
	Name    string
	Image   digest.Digest // of the config
	Command []string
	Labels  map[string]string
	Size    string // limit
	Changes []string
	Volumes map[string]string // content of each file, by its path in the container
	tree    *treecmp.Tree     // nil: it was not started
}

// options are the exceptions from the comparison of containers' trees. Cowshed keeps an attribute of its own at the roots
// of volumes.
var options = treecmp.Options{
	Roots: true, LinksInTree: true,
	SkipXattr: func(path, name string) bool { return path == "." && strings.HasPrefix(name, "trusted.cowshed.") },
}

// recordOf starts all containers that have run before and records all. configOf returns the digest of an image's config.
// The containers go on running.
func recordOf(t *testing.T, ctx context.Context, e *harness.Engine, configOf func(id string) digest.Digest) record {
	t.Helper()
	return recordAll(t, ctx, e, configOf, func(name string) bool { return name != "/created" })
}

// recordAll is recordOf that starts the wanted containers.
func recordAll(t *testing.T, ctx context.Context, e *harness.Engine, configOf func(id string) digest.Digest, wanted func(name string) bool) record {
	t.Helper()
	r := record{images: map[digest.Digest]imageRecord{}, containers: map[string]containerRecord{}}
	list, err := e.ImageList(ctx, client.ImageListOptions{All: true})
	require.NoError(t, err)
	var ids []string
	for _, item := range list.Items {
		ids = append(ids, item.ID)
		img := imageRecord{ID: item.ID}
		for _, name := range slices.Sorted(slices.Values(item.RepoTags)) {
			if name != "<none>:<none>" {
				img.Names = append(img.Names, name)
			}
		}
		inspected, err := e.ImageInspect(ctx, item.ID)
		require.NoError(t, err)
		img.DiffIDs = inspected.RootFS.Layers
		history, err := e.ImageHistory(ctx, item.ID)
		require.NoError(t, err)
		for _, h := range history.Items {
			img.History = append(img.History, fmt.Sprintf("%d %q %q", h.Created, h.CreatedBy, h.Comment))
			img.HistoryMore = append(img.HistoryMore, fmt.Sprintf("%s %q %d", h.ID, h.Tags, h.Size))
		}
		r.images[configOf(item.ID)] = img
	}
	saved := savedImages(t, ctx, e, ids)
	for config, img := range r.images {
		assert.Contains(t, saved, config)
		img.saved = saved[config]
		assert.Equal(t, img.DiffIDs, img.saved.diffIDs, "digests of the saved layers of %s", img.ID)
		r.images[config] = img
	}
	for _, c := range startAll(t, ctx, e, wanted) {
		r.containers[c.ID] = recordContainer(t, ctx, e, c, configOf)
	}
	return r
}

func recordContainer(t *testing.T, ctx context.Context, e *harness.Engine, c container.InspectResponse, configOf func(id string) digest.Digest) containerRecord {
	t.Helper()
	changes, err := e.Diff(ctx, c.ID)
	require.NoError(t, err)
	var tree *treecmp.Tree
	if c.State.Running {
		inContainer(t, c.State.Pid, func(root string) {
			now, err := treecmp.Read(root, options)
			require.NoError(t, err)
			tree = &now
		})
	}
	volumes := map[string]string{}
	for _, m := range c.Mounts {
		entries, err := os.ReadDir(m.Source)
		require.NoError(t, err)
		for _, entry := range entries {
			data, err := os.ReadFile(filepath.Join(m.Source, entry.Name()))
			require.NoError(t, err)
			volumes[filepath.Join(m.Destination, entry.Name())] = string(data)
		}
	}
	return containerRecord{
		Name: c.Name, Image: configOf(c.Image), Command: c.Config.Cmd, Labels: c.Config.Labels, Size: c.HostConfig.StorageOpt["size"],
		Changes: changes, Volumes: volumes, tree: tree,
	}
}

// requireSame compares two records. sameEngine says that images have the same IDs, and layers the same sizes.
func requireSame(t *testing.T, want, got record, sameEngine bool) {
	t.Helper()
	assert.Equal(t, want.listed(sameEngine), got.listed(sameEngine))
	for config, img := range want.images {
		assert.Equal(t, img.saved, got.images[config].saved, "docker save of %v", img.Names)
	}

	for id, c := range want.containers {
		g, ok := got.containers[id]
		if !assert.True(t, ok, "container %s, %s, is missing", c.Name, id) {
			continue
		}
		if c.tree != nil && assert.NotNil(t, g.tree, "%s was started", c.Name) {
			assert.Empty(t, c.tree.Diff(*g.tree, options), "files of %s, before and after", c.Name)
		}
		c.tree, g.tree = nil, nil
		assert.Equal(t, c, g, "container %s", c.Name)
	}
	assert.Len(t, got.containers, len(want.containers))
}

// listed are the images. Without sameEngine, they lack the properties that differ between engines.
func (r record) listed(sameEngine bool) map[digest.Digest]imageRecord {
	images := map[digest.Digest]imageRecord{}
	for config, img := range r.images {
		if !sameEngine {
			img.ID, img.HistoryMore = "", nil
		}
		img.saved = savedImage{}
		images[config] = img
	}
	return images
}
