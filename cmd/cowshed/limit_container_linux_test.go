package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestLimitContainer: the running daemon changes the limit of a snapshot that has containerd's form of a key.
func TestLimitContainer(t *testing.T) {
	d := newServed(t)
	d.start(d.command())
	defer d.stop()
	s, ctx := d.snapshotter()
	for _, key := range []string{"moby/1/web", "test/2/web.1", "test/3/webx1"} {
		_, err := s.Prepare(ctx, key, "")
		require.NoError(t, err)
	}
	require.NoError(t, s.Commit(ctx, "test/4/image", "test/3/webx1"))
	config := filepath.Join(d.dir, "config.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "root = %q\nstate = %q\naddress = %q\ndocker_api = %q\n",
		d.root, d.dir, d.socket, "unix://"+d.dir+"/none"), 0o600))
	a := at{root: d.root}
	a.ok(t, "limit", "containerd:test/web.1", "4M", "--config", config)
	for key, want := range map[string]string{"moby/1/web": "", "test/2/web.1": "4194304", "test/4/image": ""} {
		info, err := s.Stat(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, want, info.Labels[snapshots.LabelSnapshotMaxSize], key)
	}
	for _, test := range []struct {
		name, size string
		code       int
		message    string
	}{
		{"containerd:test/none", "4M", exitNotFound, "no snapshot none in the namespace test"},
		{"containerd:test/web.1@before", "4M", exitUsage, "name the container"},
		{"containerd:test/image", "4M", exitPrecondition, "is not the snapshot of a container"},
		{"containerd:test/web.1", "none", exitUsage, "can be raised, and not be removed"},
		{"containerd:test", "4M", exitUsage, "say containerd:NAMESPACE/KEY"},
		{"containerd:/web", "4M", exitUsage, "say containerd:NAMESPACE/KEY"},
		{"docker:web", "4M", exitFailure, "no such file"},
	} {
		result := a.run(t, "limit", test.name, test.size, "--config", config)
		assert.Equal(t, test.code, result.code, test.name)
		assert.Contains(t, result.err, test.message)
	}
}
