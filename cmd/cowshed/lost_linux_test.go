package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDoctorDoomed: doctor names a volume whose snapshot was removed while it was mounted, until the daemon has destroyed it.
func TestDoctorDoomed(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	config := filepath.Join(d.dir, "config.toml")
	require.NoError(t, os.WriteFile(config, []byte("state = '"+d.dir+"'\naddress = '"+d.socket+"'\n"), 0o600))
	says := func(doomed bool) {
		t.Helper()
		assert.Eventually(t, func() bool {
			out := at{root: d.root}.run(t, "doctor", "--containerd", "--config", config).out
			return strings.Contains(out, "could not be destroyed yet: 1, such as s-") == doomed
		}, testfs.Patience, 50*time.Millisecond)
	}
	d.start(d.command())
	s, ctx := d.snapshotter()
	mounts, err := s.Prepare(ctx, "default/1/web", "")
	require.NoError(t, err)
	require.NoError(t, mount.WithTempMount(ctx, mounts, func(string) error {
		require.NoError(t, s.Remove(ctx, "default/1/web"))
		says(true)
		return nil
	}))
	says(false)
	d.stop()
}

// TestLost: volumes that the metadata does not know are kept, listed, given back and removed.
func TestLost(t *testing.T) {
	testfs.CheckLeaks(t)
	d := newServed(t)
	config := filepath.Join(d.dir, "config.toml")
	require.NoError(t, os.WriteFile(config, []byte("state = '"+d.dir+"'\naddress = '"+d.socket+"'\n"), 0o600))
	cowshed := func(args ...string) result { return at{root: d.root}.run(t, append(args, "--config", config)...) }
	metadata := filepath.Join(d.root, "containerd", "metadata.db")

	d.start(d.command())
	s, ctx := d.snapshotter()
	for _, key := range []string{"default/1/web", "default/2/test"} {
		_, err := s.Prepare(ctx, key, "")
		require.NoError(t, err)
	}
	d.stop()
	whole, err := os.ReadFile(metadata)
	require.NoError(t, err)
	require.NoError(t, os.Remove(metadata))

	d.start(d.command())
	running := cowshed("lost", "ls")
	require.Equal(t, exitOK, running.code, "%s", running.err)
	assert.Contains(t, running.out, "default/1/web")
	assert.Equal(t, exitPrecondition, cowshed("lost", "restore", "--all").code, "while the daemon runs")
	assert.Contains(t, cowshed("doctor", "--containerd").out, "2 volumes are lost")
	d.stop()
	assert.Equal(t, running.out, cowshed("lost", "ls").out)

	restored := cowshed("lost", "restore", "--all")
	require.Equal(t, exitOK, restored.code, "%s", restored.err)
	d.start(d.command())
	s, ctx = d.snapshotter()
	assert.Equal(t, []string{"default/1/web", "default/2/test"}, keysOf(t, ctx, s))
	require.NoError(t, s.Remove(ctx, "default/2/test"))
	require.NoError(t, s.(snapshots.Cleaner).Cleanup(ctx))
	d.stop()

	for page := 2; page*4096 < len(whole); page++ {
		copy(whole[page*4096:], bytes.Repeat([]byte{0xa5}, 4096))
	}
	require.NoError(t, os.WriteFile(metadata, whole, 0o600))
	d.refused()
	repaired := cowshed("doctor", "--containerd", "--repair")
	require.Equal(t, exitOK, repaired.code, "%s%s", repaired.out, repaired.err)
	assert.Contains(t, repaired.out, metadata+".damaged-")
	d.start(d.command())
	s, ctx = d.snapshotter()
	assert.Equal(t, []string{"default/1/web"}, keysOf(t, ctx, s))
	d.stop()
}

// refused starts a daemon that ends by itself, and says that its metadata is damaged.
func (d *served) refused() {
	d.t.Helper()
	require.Error(d.t, testfs.Run(d.t, d.command()))
	assert.Contains(d.t, d.log.String(), "doctor --containerd --repair")
	assert.NotContains(d.t, d.log.String(), "panic")
}
