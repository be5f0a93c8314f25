package sharedroot

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestProbeRefuses tries filesystems that lack an ability. Nothing is left on them.
func TestProbeRefuses(t *testing.T) {
	testfs.Root(t)
	for reason, mount := range map[string]func(t *testing.T, dir string){
		"d_type": func(t *testing.T, dir string) {
			image := filepath.Join(t.TempDir(), "image")
			out, err := exec.CommandContext(t.Context(), "mke2fs", "-q", "-O", "^filetype", image, "4M").CombinedOutput()
			require.NoError(t, err, "mke2fs: %s", out)
			device, _ := testfs.Loop(t, image)
			require.NoError(t, unix.Mount(device, dir, "ext4", 0, ""))
			require.NoError(t, os.Remove(dir+"/lost+found"))
		},
		"extended attribute": func(t *testing.T, dir string) { require.NoError(t, unix.Mount("none", dir, "ramfs", 0, "")) },
	} {
		t.Run(reason, func(t *testing.T) {
			dir := t.TempDir()
			mount(t, dir)
			t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
			_, err := probe(dir)
			require.ErrorIs(t, err, errdefs.ErrNotImplemented)
			require.ErrorContains(t, err, reason)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
}

// TestProbeUpper looks at uppers as overlayfs would leave them on filesystems that cannot keep the changes.
func TestProbeUpper(t *testing.T) {
	testfs.Root(t)
	whiteout := func(upper string) error { return unix.Mknod(upper+"/"+probedGone, unix.S_IFCHR, 0) }
	changed := func(upper string) error { return os.Mkdir(upper+"/"+probedChanged, 0o700) }
	attribute := func(upper string) error {
		return unix.Setxattr(upper+"/"+probedChanged, "trusted.probe", []byte("1"), 0)
	}
	for _, c := range []struct {
		name, reason string
		steps        []func(upper string) error
	}{
		{"all", "", []func(string) error{whiteout, changed, attribute}},
		{"no whiteout", "whiteout", []func(string) error{changed, attribute}},
		{"a directory instead", "whiteout", []func(string) error{changed, attribute, func(upper string) error {
			return os.Mkdir(upper+"/"+probedGone, 0o700)
		}}},
		{"another device", "whiteout", []func(string) error{changed, attribute, func(upper string) error {
			return unix.Mknod(upper+"/"+probedGone, unix.S_IFCHR, int(unix.Mkdev(1, 3)))
		}}},
		{"no attribute", "extended attributes", []func(string) error{whiteout, changed}},
		{"nothing copied", "extended attributes", []func(string) error{whiteout}},
	} {
		upper := t.TempDir()
		for _, step := range c.steps {
			require.NoError(t, step(upper), c.name)
		}
		dir, err := os.Open(upper)
		require.NoError(t, err)
		err = probeUpper(int(dir.Fd()))
		require.NoError(t, dir.Close())
		if c.reason == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.reason, c.name)
	}
}
