package tocontainerd

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

// TestIsCopy: a snapshot of the source's subvolume is its copy, however it is mounted. Other trees are none.
func TestIsCopy(t *testing.T) {
	mnt, elsewhere := testfs.Btrfs(t), t.TempDir()
	in := func(name string) string { return filepath.Join(mnt, name) }
	run := func(args ...string) {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%q: %s", args, out)
	}
	run("btrfs", "subvolume", "create", in("source"))
	require.NoError(t, os.MkdirAll(in("source/directory"), 0o700))
	run("btrfs", "subvolume", "snapshot", in("source"), in("snapshot"))
	run("btrfs", "subvolume", "snapshot", in("snapshot"), in("grandchild"))
	run("btrfs", "subvolume", "create", in("reflinks"))
	run("cp", "-a", "--reflink=always", in("source/."), in("reflinks"))
	run("mount", "--bind", in("source"), elsewhere)
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(elsewhere, 0)) })
	bind := func(path string) mount.Mount {
		return mount.Mount{Type: "bind", Source: path, Options: []string{"rbind", "rw"}}
	}
	bySubvolume := mount.Mount{Type: "btrfs", Source: deviceOf(t, mnt), Options: []string{"subvol=/snapshot"}}
	for name, c := range map[string]struct {
		of   string
		made mount.Mount
		want bool
	}{
		"by subvolume":          {in("source"), bySubvolume, true},
		"bound":                 {in("source"), bind(in("snapshot")), true},
		"source is bound":       {elsewhere, bind(in("snapshot")), true},
		"the source itself":     {in("source"), bind(in("source")), false},
		"of another":            {in("source"), bind(in("grandchild")), false},
		"reflinks":              {in("source"), bind(in("reflinks")), false},
		"directory of it":       {in("source"), bind(in("snapshot/directory")), false},
		"of a directory of it":  {in("source/directory"), bind(in("snapshot")), false},
		"top and no snapshot":   {mnt, bind(in("reflinks")), false},
		"on another filesystem": {in("source"), bind(t.TempDir()), false},
		"of another filesystem": {t.TempDir(), bind(in("snapshot")), false},
	} {
		t.Run(name, func(t *testing.T) {
			from, err := os.Open(c.of)
			require.NoError(t, err)
			defer func() { assert.NoError(t, from.Close()) }()
			mounts := []mount.Mount{c.made}
			require.NoError(t, withTree(mounts, func(dir *os.File) error {
				is, err := isCopy(mounts, dir, &migrate.Content{Dir: from, Volume: c.of})
				require.NoError(t, err)
				assert.Equal(t, c.want, is)
				return nil
			}))
		})
	}
}

// deviceOf is the device of a filesystem.
func deviceOf(t *testing.T, mnt string) string {
	t.Helper()
	found, err := detect.Probe(mnt)
	require.NoError(t, err)
	return found.Source
}
