package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
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
)

// TestFullFilesystem: a daemon on a filesystem that is full says so, starts, and has it emptied.
func TestFullFilesystem(t *testing.T) {
	for name, opts := range map[string][]testfs.BtrfsOption{
		"off": nil, "simple": {testfs.WithSimpleQuota()}, "classic": {testfs.WithClassicQuota()},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			testFullFilesystem(t, testConfig(t, append(opts, testfs.WithSize(256<<20))...), false, "btrfs.min_space=1M")
		})
	}
}

// TestFullFilesystemZFS is TestFullFilesystem where a pool is full, and where the quota of the dataset that holds all is reached.
func TestFullFilesystemZFS(t *testing.T) {
	testfs.Zpool(t)
	for name, by := range testfs.Bounds() {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			dataset, mnt := testfs.SmallZFS(t, 64<<20, by)
			for _, own := range []string{"root/containerd", "docker"} {
				out, err := exec.Command("zfs", "create", "-p", dataset+"/"+own).CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			testFullFilesystem(t, configOn(t, mnt), true)
		})
	}
}

// testFullFilesystem is TestFullFilesystem of one daemon. reserve: the filesystem keeps space for new volumes that files cannot
// take. The options are those of Docker's driver.
func testFullFilesystem(t *testing.T, c Config, reserve bool, options ...string) {
	c.DockerPlugin = "cowshed-test"
	mnt := filepath.Dir(c.Root)
	dockerOK := func(method, body string) {
		t.Helper()
		answer, status := docker(t, c, method, body)
		require.Equal(t, http.StatusOK, status, "%s: %s", method, answer)
	}
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	connect := func(r *running) snapshots.Snapshotter {
		return snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(r.dial()), "cowshed")
	}
	opts, err := json.Marshal(options)
	require.NoError(t, err)
	r := start(t, c)
	s := connect(r)
	_, err = s.Prepare(ctx, "unpack", "")
	require.NoError(t, err)
	require.NoError(t, s.Commit(ctx, "image", "unpack"))
	const many = 10
	for i := range many {
		_, err := s.Prepare(ctx, fmt.Sprint("container-", i), "image")
		require.NoError(t, err)
	}
	dockerOK("GraphDriver.Init", `{"Home":"`+filepath.Join(mnt, "docker")+`","Opts":`+string(opts)+`}`)
	dockerOK("GraphDriver.Create", `{"ID":"one"}`)
	dockerOK("GraphDriver.Create", `{"ID":"two","Parent":"one"}`)
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)

	var counted []string // services that have found no space
	if _, err = s.Prepare(ctx, "new", "image"); err == nil {
		require.True(t, reserve, "it is not full")
		require.NoError(t, s.Remove(ctx, "new"))
	} else {
		counted = append(counted, "snapshots")
		require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
	}
	_, err = s.Stat(ctx, "new")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	if _, status := docker(t, c, "GraphDriver.Create", `{"ID":"three","Parent":"one"}`); status == http.StatusOK {
		require.True(t, reserve, "it is not full")
		dockerOK("GraphDriver.Remove", `{"ID":"three"}`)
	} else {
		counted = append(counted, "docker")
	}
	page := httpDo(t, filepath.Join(c.State, "metrics.sock"), http.MethodGet, "/metrics")
	for _, service := range counted {
		assert.Contains(t, page, "\n"+`cowshed_limit_hits_total{limit="space",service="`+service+`"} 1`)
	}

	require.NoError(t, r.stop())
	require.NoError(t, os.Remove(filepath.Join(c.Root, lockName)), "it may have been lost")
	r = start(t, c)
	s = connect(r)
	for i := range many {
		require.NoError(t, s.Remove(ctx, fmt.Sprint("container-", i)))
	}
	cleaner, ok := s.(snapshots.Cleaner)
	require.True(t, ok)
	require.NoError(t, cleaner.Cleanup(ctx))
	dockerOK("GraphDriver.Remove", `{"ID":"two"}`)
	dockerOK("GraphDriver.Remove", `{"ID":"one"}`)
	require.NoError(t, os.RemoveAll(filepath.Join(mnt, "filler")))
	_, err = s.Prepare(ctx, "new", "image")
	require.NoError(t, err)
}
