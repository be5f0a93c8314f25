//go:build testselinux

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// The labels of two containers.
const (
	oneLabel     = "system_u:object_r:container_file_t:s0:c0,c1"
	anotherLabel = "system_u:object_r:container_file_t:s0:c2,c3"
)

// TestMountLabel gives layers labels of SELinux. On btrfs a layer is labelled when it is made, on ZFS while it is mounted. A
// shared root has the label as context of its overlay.
func TestMountLabel(t *testing.T) {
	require.True(t, selinux.GetEnabled(), "runs in a test machine with SELinux: RUN=TestMountLabel scripts/test-zfs.sh")
	inEachOwn(t, mountLabel)
	inEachShared(t, mountLabel)
}

// mountLabel is TestMountLabel of one system.
func mountLabel(t *testing.T, s system) {
	d := s.open(t, s.root(t), user.IdentityMapping{})
	require.NoError(t, d.Create("base", "", nil))
	dir := get(t, d, "base")
	require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
	require.NoError(t, os.WriteFile(dir+"/a/file", []byte("x"), 0o600))
	require.NoError(t, os.Symlink("/etc/passwd", dir+"/a/link"))
	require.NoError(t, unix.Mkfifo(dir+"/a/b/fifo", 0o600))
	require.NoError(t, d.Put("base"))
	plain := labelsOf(t, d, "base", "")
	require.Len(t, plain, 6)
	passwd := labelOf(t, "/etc/passwd")

	labels := map[string]string{"one": oneLabel, "another": anotherLabel}
	for id, label := range labels {
		require.NoError(t, d.CreateReadWrite(id, "base", &graphdriver.CreateOpts{MountLabel: label}))
	}
	for id, label := range labels {
		for path, got := range labelsOf(t, d, id, label) {
			assert.Equal(t, label, got, "%s of layer %s", path, id)
		}
		changes, err := d.Changes(id, "base")
		require.NoError(t, err)
		assert.Empty(t, changes, "a label is no change")
	}
	assert.Equal(t, plain, labelsOf(t, d, "base", ""), "the labels of clones are their own")
	assert.Equal(t, passwd, labelOf(t, "/etc/passwd"), "a link is not followed")

	// A file that is made in a labelled layer has the label's type, by the kernel's rules, and the layer is usable.
	dir, err := d.Get("one", oneLabel)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/new", []byte("y"), 0o600))
	assert.Contains(t, labelOf(t, dir+"/new"), ":container_file_t:")
	require.NoError(t, d.Put("one"))
	changes, err := d.Changes("one", "base")
	require.NoError(t, err)
	require.Len(t, changes, 1)
	assert.Equal(t, "/new", changes[0].Path)

	require.NoError(t, d.Create("empty", "", &graphdriver.CreateOpts{MountLabel: oneLabel}))
	assert.Equal(t, map[string]string{".": oneLabel}, labelsOf(t, d, "empty", oneLabel))
	err = d.CreateReadWrite("refused", "base", &graphdriver.CreateOpts{MountLabel: "no label"})
	if err == nil {
		_, err = d.Get("refused", "no label")
		require.NoError(t, d.Remove("refused"))
	}
	require.ErrorIs(t, err, unix.EINVAL)
	assert.False(t, d.Exists("refused"))
	for _, id := range []string{"one", "another", "empty", "base"} { // the others share the root of base
		require.NoError(t, d.Remove(id))
	}
}

// labelsOf mounts a layer with a label, and returns the labels that all in it has.
func labelsOf(t *testing.T, d *cowdriver.Driver, id, label string) map[string]string {
	t.Helper()
	dir, err := d.Get(id, label)
	require.NoError(t, err)
	labels := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		labels[name] = labelOf(t, path)
		return err
	}))
	require.NoError(t, d.Put(id))
	return labels
}

func labelOf(t *testing.T, path string) string {
	t.Helper()
	label, err := selinux.LfileLabel(path)
	require.NoError(t, err)
	return label
}
