package sharedroot

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

func TestInspect(t *testing.T) {
	mnt := testfs.Btrfs(t)
	type file = func(t *testing.T, root string)
	dirs := func(names ...string) file {
		return func(t *testing.T, root string) {
			t.Helper()
			for _, name := range names {
				require.NoError(t, os.MkdirAll(root+"/"+name, 0o700))
			}
		}
	}
	mark := func(value string) file {
		return func(t *testing.T, root string) {
			t.Helper()
			require.NoError(t, unix.Lsetxattr(root+"/.cowshed", "trusted.cowshed.shared", []byte(value), 0))
		}
	}
	for name, tt := range map[string]struct {
		tree  []file
		state state
		lower string
		err   error
	}{
		"empty":            {},
		"a user's":         {tree: []file{dirs(".cowshed/upper", ".cowshed/folding")}},
		"a user's file":    {tree: []file{func(t *testing.T, r string) { require.NoError(t, os.WriteFile(r+"/.cowshed", nil, 0o600)) }, mark("1 x")}},
		"a link":           {tree: []file{dirs("a/upper"), func(t *testing.T, r string) { require.NoError(t, os.Symlink("a", r+"/.cowshed")) }, mark("1 x")}},
		"shared":           {tree: []file{dirs(".cowshed/upper", ".cowshed/work"), mark("1 base")}, state: stateShared, lower: "base"},
		"folding":          {tree: []file{dirs(".cowshed/folding", ".cowshed/work"), mark("1 base")}, state: stateFolding, lower: "base"},
		"nearly folded":    {tree: []file{dirs(".cowshed/work"), mark("1 base")}, state: stateFolding, lower: "base"},
		"another version":  {tree: []file{dirs(".cowshed/upper"), mark("2 base")}, err: errdefs.ErrNotImplemented},
		"no name":          {tree: []file{dirs(".cowshed/upper"), mark("1")}, err: errdefs.ErrNotImplemented},
		"a mark, too long": {tree: []file{dirs(".cowshed/upper"), mark("1 " + strings.Repeat("x", 2000))}, err: unix.ERANGE},
		"only times": {tree: []file{func(t *testing.T, r string) {
			require.NoError(t, unix.Setxattr(r, noteXattr, []byte("1.000000002 3.000000004"), 0))
		}}, state: stateFolding},
	} {
		t.Run(name, func(t *testing.T) {
			dir := mnt + "/" + strings.ReplaceAll(name, " ", "-")
			require.NoError(t, os.Mkdir(dir, 0o755))
			for _, make := range tt.tree {
				make(t, dir)
			}
			root := newHome(t, mnt).open(strings.ReplaceAll(name, " ", "-"))
			s, lower, err := inspect(root)
			require.ErrorIs(t, err, tt.err)
			assert.Equal(t, tt.state, s)
			assert.Equal(t, tt.lower, lower)
		})
	}
}

// TestPrepare prepares a volume whose root has attributes that are inherited.
func TestPrepare(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	lower := h.path("lower")
	require.NoError(t, os.Chown(lower, 7, 8))
	require.NoError(t, unix.Chmod(lower, 0o2751))
	require.NoError(t, unix.Setxattr(lower, "system.posix_acl_default", forest.ACL(3), 0))
	for _, name := range []string{"user.a", "trusted.b", "trusted.cowshed.c", "trusted.overlay.d"} {
		require.NoError(t, unix.Setxattr(lower, name, []byte("1"), 0))
	}
	times := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 4}}
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, lower, times, 0))
	h.seal("lower")
	h.prepare("v", "lower")

	s, name, err := inspect(h.open("v"))
	require.NoError(t, err)
	assert.Equal(t, stateShared, s)
	assert.Equal(t, "lower", name)
	own := treecmp.Options{Roots: true, SkipXattr: func(_, name string) bool {
		return name == "trusted.cowshed.c" || name == "trusted.overlay.d"
	}}
	treecmp.Equal(t, lower, h.path("v/.cowshed/upper"), own)
	_, err = unix.Getxattr(h.path("v/.cowshed/upper"), "trusted.cowshed.c", nil)
	require.ErrorIs(t, err, unix.ENODATA)
	for _, dir := range []string{"/.cowshed", "/.cowshed/work"} {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(h.path("v")+dir, &st))
		assert.Equal(t, uint32(0o700), st.Mode&0o7777, "%s", dir)
		assert.Zero(t, st.Uid+st.Gid)
		_, err := unix.Getxattr(h.path("v")+dir, "system.posix_acl_default", nil)
		require.ErrorIs(t, err, unix.ENODATA)
	}
	require.ErrorIs(t, prepare(h.open("v"), "lower"), errdefs.ErrFailedPrecondition)
	s, _, err = inspect(h.open("v"))
	require.NoError(t, err)
	assert.Equal(t, stateShared, s)

	h.fold("v")
	treecmp.Equal(t, lower, h.path("v"), treecmp.Options{Roots: true})
}

// TestReservedName has files of a user with the name of Cowshed's directory.
func TestReservedName(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("own")
	require.NoError(t, os.MkdirAll(h.path("own/.cowshed/upper"), 0o755))
	require.ErrorIs(t, prepare(h.open("own"), "lower"), errdefs.ErrFailedPrecondition)
	require.DirExists(t, h.path("own/.cowshed/upper"))
	require.NoError(t, fold(t.Context(), h.open("own"), nil))
	require.DirExists(t, h.path("own/.cowshed/upper"))

	h.create("lower")
	h.seal("lower")
	h.prepare("v", "lower")
	view, unmount := h.mount("v", "lower")
	require.NoError(t, os.MkdirAll(view+"/.cowshed/upper", 0o755))
	h.clone("snap", "v")
	err := fold(t.Context(), h.open("snap"), nil)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	s, _, err := inspect(h.open("snap"))
	require.NoError(t, err)
	assert.Equal(t, stateShared, s)
	require.NoError(t, os.Rename(view+"/.cowshed", view+"/cowshed"))
	unmount()
	require.NoError(t, unix.Mknod(h.path("v/.cowshed/upper/.cowshed"), unix.S_IFCHR, 0))
	h.fold("v")
	require.DirExists(t, h.path("v/cowshed/upper"))
}

// TestFoldOtherMarks has marks that overlayfs does not write with the options of a shared root, but others may.
func TestFoldOtherMarks(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	require.NoError(t, os.WriteFile(h.path("lower/a"), nil, 0o600))
	require.NoError(t, os.MkdirAll(h.path("lower/d/x"), 0o700))
	h.seal("lower")
	h.prepare("v", "lower")
	upper := h.path("v/.cowshed/upper")
	set := func(path, name, value string) { require.NoError(t, unix.Setxattr(path, name, []byte(value), 0)) }
	times := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 4}}

	require.NoError(t, os.WriteFile(upper+"/a", nil, 0o600))
	set(upper+"/a", "trusted.overlay.whiteout", "")
	require.NoError(t, os.MkdirAll(upper+"/d/sub", 0o750))
	set(upper+"/d", "trusted.overlay.opaque", "y")
	require.NoError(t, os.WriteFile(upper+"/d/sub/kept", nil, 0o600))
	require.NoError(t, unix.Mknod(upper+"/d/x", unix.S_IFCHR, 0))
	require.NoError(t, unix.Mknod(upper+"/d/sub/x", unix.S_IFCHR, 0))
	require.NoError(t, os.WriteFile(upper+"/d/sub/y", nil, 0o600))
	set(upper+"/d/sub/y", "trusted.overlay.whiteout", "")
	set(upper+"/d/sub/kept", "trusted.overlay.origin", "x")
	require.NoError(t, os.WriteFile(upper+"/full", []byte("full"), 0o600))
	set(upper+"/full", "trusted.overlay.whiteout", "")
	require.NoError(t, unix.UtimesNanoAt(unix.AT_FDCWD, upper+"/d/sub", times, 0))

	h.clone("redirected", "v")
	set(h.path("redirected/.cowshed/upper/d"), "trusted.overlay.redirect", "/e")
	require.ErrorIs(t, fold(t.Context(), h.open("redirected"), nil), overlaymark.ErrRedirected)

	want, err := treecmp.Read(upper, treecmp.Options{Skip: func(path string) bool {
		return path == "a" || path == "d/x" || path == "d/sub/x" || path == "d/sub/y"
	}, SkipXattr: func(_, name string) bool { return strings.HasPrefix(name, "trusted.overlay.") }})
	require.NoError(t, err)
	for steps := 0; !h.stopped("v", steps); steps++ {
	}
	h.isPlain("v")
	got, err := treecmp.Read(h.path("v"), treecmp.Options{})
	require.NoError(t, err)
	require.Empty(t, want.Diff(got, treecmp.Options{SkipTime: func(path string) bool { return path == "d" }}))
}

// TestWhiteoutsOfTheLower has a device 0:0 in the lower. The overlay hides it, so it stays as it was.
func TestWhiteoutsOfTheLower(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	require.NoError(t, unix.Mknod(h.path("lower/zero"), unix.S_IFCHR|0o600, 0))
	h.seal("lower")
	h.prepare("v", "lower")
	view, unmount := h.mount("v", "lower")
	require.NoFileExists(t, view+"/zero")
	unmount()
	h.fold("v")
	treecmp.Equal(t, h.path("lower"), h.path("v"), treecmp.Options{})
}

// TestNestedSubvolume has a subvolume in the lower. As in a clone, its content is not in the volume. All that was made in
// it is.
func TestNestedSubvolume(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	require.NoError(t, btrfsctl.CreateSubvolume(int(h.open("lower").Fd()), "nested", nil))
	require.NoError(t, os.MkdirAll(h.path("lower/nested/d/e"), 0o755))
	for _, name := range []string{"kept", "gone", "d/kept", "d/gone"} {
		require.NoError(t, os.WriteFile(h.path("lower/nested/"+name), []byte("old"), 0o600))
	}
	h.seal("lower")
	h.prepare("v", "lower")
	view, unmount := h.mount("v", "lower")
	for _, name := range []string{"gone", "d/gone"} {
		require.NoError(t, os.Remove(view+"/nested/"+name))
	}
	for _, name := range []string{"new", "d/new"} {
		require.NoError(t, os.WriteFile(view+"/nested/"+name, []byte("new"), 0o600))
	}
	require.NoError(t, os.Chmod(view+"/nested", 0o711))
	want, err := treecmp.Read(view, merged)
	require.NoError(t, err)
	unmount()
	for steps := 0; !h.stopped("v", steps); steps++ {
	}
	h.isPlain("v")
	got, err := treecmp.Read(h.path("v"), merged)
	require.NoError(t, err)
	assert.Equal(t, []string{
		`"nested/d/e": only in the first`, `"nested/d/kept": only in the first`, `"nested/kept": only in the first`,
	}, want.Diff(got, merged))
}

// TestAttributesOfOverlays has attributes that look like overlayfs's own. Newer kernels let a user set them in an overlay.
func TestAttributesOfOverlays(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	h.seal("lower")
	h.prepare("v", "lower")
	view, unmount := h.mount("v", "lower")
	for _, dir := range []string{"/d", "/e/f"} {
		require.NoError(t, os.MkdirAll(view+dir, 0o700))
		if err := unix.Setxattr(view+dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			require.ErrorIs(t, err, unix.EOPNOTSUPP)
		}
		require.NoError(t, unix.Setxattr(view+dir, "user.overlay.opaque", []byte("y"), 0))
	}
	unmount()
	h.fold("v")
	for _, dir := range []string{"/d", "/e/f"} {
		names := make([]byte, 1000)
		n, err := unix.Listxattr(h.path("v")+dir, names)
		require.NoError(t, err)
		assert.Equal(t, "user.overlay.opaque\x00", string(names[:n]))
	}
}

func TestMountOptions(t *testing.T) {
	const format = "index=off metacopy=off redirect_dir=off nfs_export=off xino=off"
	for _, tt := range []struct {
		lower, upper, work string
		has                features
		want               string
	}{
		{"/l", "/u", "/w", features{}, "lowerdir=/l upperdir=/u workdir=/w " + format},
		{"/l", "/u", "/w", features{uuidNull: true}, "lowerdir=/l upperdir=/u workdir=/w " + format + " uuid=null"},
		{"/l", "/u", "", features{}, "lowerdir=/u:/l " + format},
		{"/a:b", "/u", "/w", features{}, ""},
		{"/l", "/u,index=on", "/w", features{}, ""},
		{"/l", "/u", `/w\`, features{}, ""},
		{"/l", "/u", "/w\n", features{}, ""},
		{`/"l`, "/u", "/w", features{}, ""},
		{"l", "/u", "/w", features{}, ""},
		{"/l", "", "/w", features{}, ""},
	} {
		options, err := mountOptions(tt.lower, tt.upper, tt.work, tt.has)
		assert.Equal(t, tt.want, strings.Join(options, " "))
		if tt.want == "" {
			assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		}
	}
}

func TestProbe(t *testing.T) {
	mnt := testfs.Btrfs(t)
	has, err := probe(mnt)
	require.NoError(t, err)
	t.Logf("%+v", has)
	names, err := os.ReadDir(mnt)
	require.NoError(t, err)
	assert.Empty(t, names)

	// An overlay cannot have another for its upper.
	h := newHome(t, mnt+"/home")
	h.create("lower")
	h.seal("lower")
	h.prepare("v", "lower")
	view, unmount := h.mount("v", "lower")
	_, err = probe(view)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	t.Log(err)
	unmount()

	comma := mnt + "/a,b"
	require.NoError(t, os.Mkdir(comma, 0o700))
	_, err = probe(comma)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = probe(mnt + "/missing")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestProbeZFS(t *testing.T) {
	has, err := probe(newZFSHome(t).dir)
	require.NoError(t, err)
	t.Logf("%+v", has)
}
