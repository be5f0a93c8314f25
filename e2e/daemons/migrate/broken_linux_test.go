package migrate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestBroken damages things of a root. The migration names the images and containers that cannot come along, and the
// others come along.
func TestBroken(t *testing.T) {
	h := harness.NewHost(t, testfs.Btrfs(t))
	ctx := testContext(t)
	s := makeScenario(t, ctx, h, "overlay2", false, func(name string) bool {
		return fewNames(name) || name == "cowtest/deleted:1" || name == "cowtest/names:1" || name == "cowtest/capabilities:1" || name == "special"
	})
	top := func(name string) string { return s.layerDB(t, name) }
	content := func(name string) string {
		id, err := os.ReadFile(filepath.Join(top(name), "cache-id"))
		require.NoError(t, err)
		return filepath.Join(s.engine.Root, "overlay2", string(id), "diff")
	}

	// A layer without its files; its container cannot come along either.
	require.NoError(t, os.RemoveAll(content("cowtest/hardlinks:1")))
	// A chain ID that does not follow from the diff IDs.
	require.NoError(t, os.WriteFile(filepath.Join(top("cowtest/deleted:1"), "diff"), []byte(digest.FromString("other")), 0o644))
	// Damaged data of tar-split.
	split := filepath.Join(top("cowtest/names:1"), "tar-split.json.gz")
	info, err := os.Stat(split)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(split, info.Size()/2))
	// A layer that the engine has begun to remove.
	require.NoError(t, os.Remove(filepath.Join(top("cowtest/shared:2"), "cache-id")))
	// A container without a record of its layer.
	special := s.containerID(t, "/special")
	require.NoError(t, os.Remove(filepath.Join(s.engine.Root, "image", "overlay2", "layerdb", "mounts", special, "mount-id")))
	// A container without its files.
	require.NoError(t, os.WriteFile(filepath.Join(s.engine.Root, "containers", s.containerID(t, "/replaced"), "config.v2.json"), []byte("{"), 0o600))

	lostImages := []string{"cowtest/hardlinks:1", "cowtest/deleted:1", "cowtest/names:1", "cowtest/shared:2"}
	lostContainers := []string{"/created", "/special", "/replaced"}
	m := s.plugin()
	plan, err := m.try(ctx, "plan")
	t.Logf("plan: %v\n%s", err, plan)
	run, err := m.try(ctx, "run")
	t.Logf("run: %v", err)
	require.Error(t, err, "not all has come along")
	for _, said := range []string{plan, run + err.Error()} {
		for _, name := range lostImages {
			assert.Contains(t, said, name)
		}
		for _, name := range lostContainers {
			assert.Regexp(t, name[1:]+"|"+s.containerID(t, name)[:12], said)
		}
	}

	cowshed := h.StartCowshed("containerd")
	e := h.StartDebianDocker(harness.EngineOptions{Driver: cowshed.Plugin})
	want := record{images: map[digest.Digest]imageRecord{}, containers: map[string]containerRecord{}}
	for config, img := range s.before.images {
		if !slices.Contains(lostImages, strings.Join(img.Names, " ")) {
			want.images[config] = img
		}
	}
	for id, c := range s.before.containers {
		if !slices.Contains(lostContainers, c.Name) {
			want.containers[id] = c
		}
	}
	requireSame(t, want, recordOf(t, ctx, e, sameDigest), true)
	e.Stop()
}

// layerDB is the directory of the engine's record of an image's topmost layer.
func (s scenario) layerDB(t *testing.T, name string) string {
	t.Helper()
	for _, img := range s.before.images {
		if slices.Contains(img.Names, name) {
			var ids []digest.Digest
			for _, id := range img.DiffIDs {
				ids = append(ids, digest.Digest(id))
			}
			return filepath.Join(s.engine.Root, "image", s.driver, "layerdb", "sha256", identity.ChainID(ids).Encoded())
		}
	}
	require.Fail(t, "no such image", name)
	return ""
}

// containerID is the ID of the container of that name.
func (s scenario) containerID(t *testing.T, name string) string {
	t.Helper()
	for id, c := range s.before.containers {
		if c.Name == name {
			return id
		}
	}
	require.Fail(t, "no such container", name)
	return ""
}
