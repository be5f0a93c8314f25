package sharedroot

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// TestUnfoldStopped stops the change of a volume to a shared root after each of its steps. The volume, and a snapshot of it
// as a crash would leave it, have the tree of before, in either style.
func TestUnfoldStopped(t *testing.T) { testUnfoldStopped(t, newHome(t, testfs.Btrfs(t)+"/home"), 1) }

func TestUnfoldStoppedZFS(t *testing.T) { testUnfoldStopped(t, newZFSHome(t), 11) }

func testUnfoldStopped(t *testing.T, h home, stride int) {
	t.Helper()
	h.kinds()
	h.clone("plain", "v")
	hints, err := changes(t.Context(), h.open("plain/.cowshed/"+upperName), h.open("lower"))
	require.NoError(t, err)
	h.fold("plain")
	want, err := treecmp.Read(h.path("plain"), merged)
	require.NoError(t, err)
	steps, err := planUnfold(t.Context(), hints, h.path("plain"), h.path("lower"))
	require.NoError(t, err)
	equal := func(dir, volume string) {
		t.Helper()
		got, err := treecmp.Read(dir, treecmp.Options{Roots: true, LinksInTree: true, SkipXattr: isNote})
		require.NoError(t, err)
		require.Empty(t, want.Diff(got, merged), volume)
	}
	stops := 0
	for ; ; stops += stride {
		name, crashed := fmt.Sprint("v-", stops), fmt.Sprint("crashed-", stops)
		h.clone(name, "plain")
		err := unfold(&endingContext{t.Context(), stops}, h.open(name), "lower", steps)
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		h.clone(crashed, name)
		s, _, inspectErr := inspect(h.open(crashed))
		require.NoError(t, inspectErr)
		require.NotEqual(t, stateNone, s)
		if err == nil || s == stateShared {
			shown, unmount := h.mount(crashed, "lower")
			equal(shown, crashed)
			require.NoError(t, os.WriteFile(shown+"/d/later", nil, 0o600))
			require.NoError(t, os.Remove(shown+"/d/later"))
			require.NoError(t, os.RemoveAll(shown+"/opaque"))
			unmount()
			h.fold(crashed)
			require.NoDirExists(t, h.path(crashed)+"/opaque")
		}
		h.fold(name)
		equal(h.path(name), name)
		if err == nil {
			break
		}
	}
	t.Logf("%d steps", stops)
	assert.Greater(t, stops, 20)
}

// TestUnfoldRefuses has changed files that would be others in an overlay. Nothing is changed then.
func TestUnfoldRefuses(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	require.NoError(t, os.MkdirAll(h.path("lower/old"), 0o755))
	require.NoError(t, os.WriteFile(h.path("lower/old/file"), nil, 0o644))
	require.NoError(t, os.Link(h.path("lower/old/file"), h.path("lower/link")))
	h.seal("lower")
	for name, change := range map[string]func(dir string) error{
		"renamed":   func(dir string) error { return os.Rename(dir+"/old", dir+"/new") },
		"device":    func(dir string) error { return unix.Mknod(dir+"/new", unix.S_IFCHR, 0) },
		"attribute": func(dir string) error { return unix.Setxattr(dir+"/link", "trusted.overlay.opaque", []byte("y"), 0) },
		"nested": func(dir string) error {
			root, err := os.Open(dir)
			require.NoError(t, err)
			defer root.Close()
			return btrfsctl.CreateSubvolume(int(root.Fd()), "new", nil)
		},
		"reserved": func(dir string) error { return os.Mkdir(dir+"/.cowshed", 0o700) },
	} {
		h.clone(name, "lower")
		require.NoError(t, change(h.path(name)))
		hints := &treediff.Hints{}
		for _, path := range []string{"/old", "/new", "/.cowshed"} {
			hints.Add(path, 0)
		}
		if name == "attribute" {
			hints.Add("/link", 0)
			hints.Add("/old/file", 0)
		}
		_, err := planUnfold(t.Context(), hints, h.path(name), h.path("lower"))
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
	}
}
