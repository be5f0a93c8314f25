package daemon

import (
	"net/http"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/snapshotter"
)

// TestDockerRootStyle: the plugin's containers have the configured root style. A layer may name another, which does not
// take its limit away.
func TestDockerRootStyle(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t, testfs.WithSimpleQuota())
	c.DockerPlugin, c.BuildLimit, c.RootStyle = "cowshed-test", "8M", "shared"
	r := start(t, c)
	ok := func(method, body string) string {
		answer, status := docker(t, c, method, body)
		require.Equal(t, http.StatusOK, status, "%s: %s", method, answer)
		return answer
	}
	ok("GraphDriver.Init", `{"Home":"`+filepath.Join(filepath.Dir(c.Root), "docker")+`"}`)
	assert.Contains(t, ok("GraphDriver.Status", `{}`), `["Root Style","shared"]`)
	ok("GraphDriver.Create", `{"ID":"image"}`)
	ok("GraphDriver.CreateReadWrite", `{"ID":"container","Parent":"image"}`)
	ok("GraphDriver.CreateReadWrite", `{"ID":"own","Parent":"image","StorageOpt":{"root_style":"snapshot"}}`)
	ok("GraphDriver.Create", `{"ID":"layer","Parent":"image","StorageOpt":{"root_style":"shared"}}`)
	assert.Contains(t, ok("GraphDriver.GetMetadata", `{"ID":"layer"}`), `"Limit":"8388608"`)
	for id, style := range map[string]string{"image": "snapshot", "container": "shared", "own": "snapshot", "layer": "shared"} {
		assert.Contains(t, ok("GraphDriver.GetMetadata", `{"ID":"`+id+`"}`), `"Root Style":"`+style+`"`, id)
	}
	ok("GraphDriver.Get", `{"ID":"container"}`)
	assert.Contains(t, ok("GraphDriver.Changes", `{"ID":"container","Parent":"image"}`), `"Changes":[]`)
	ok("GraphDriver.Put", `{"ID":"container"}`)

	for _, method := range []string{"GraphDriver.Create", "GraphDriver.CreateReadWrite"} {
		answer, status := docker(t, c, method, `{"ID":"bad","Parent":"image","StorageOpt":{"root_style":"overlay"}}`)
		assert.NotEqual(t, http.StatusOK, status)
		assert.Contains(t, answer, `root style \"overlay\"`)
		assert.Contains(t, ok("GraphDriver.Exists", `{"ID":"bad"}`), "false")
	}
	require.NoError(t, r.stop())
}

// TestContainerdRootStyle: containers have the configured root style, and layers that are unpacked have not.
func TestContainerdRootStyle(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	c.RootStyle = "shared"
	r := start(t, c)
	ctx := namespaces.WithNamespace(t.Context(), "moby")
	s := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	_, err := s.Prepare(ctx, "moby/1/extract-1-Ab_- sha256:abc", "")
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "moby/2/sha256:abc", "moby/1/extract-1-Ab_- sha256:abc"))
	for key, want := range map[string]string{
		"moby/3/container": "overlay", "moby/4/extract-2-Ab_- sha256:abc": "btrfs", "moby/5/zo2wm3h5dsw5v1yoo4iiplkfu": "btrfs",
	} {
		mounts, err := s.Prepare(ctx, key, "moby/2/sha256:abc")
		require.NoError(t, err)
		require.Len(t, mounts, 1)
		assert.Equal(t, want, mounts[0].Type, key)
		in(t, mounts, func(dir string) { write(t, dir, "file", "text") })
	}
	_, err = s.Prepare(ctx, "moby/6/bad", "moby/2/sha256:abc", snapshots.WithLabels(map[string]string{snapshotter.RootStyleLabel: "overlay"}))
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.NoError(t, r.stop())
}
