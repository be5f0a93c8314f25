package treecopy

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// TestMergeIsOverlay does random operations in an overlay of the kernel's, and merges the upper directory.
func TestMergeIsOverlay(t *testing.T) {
	mnt := testfs.Btrfs(t)
	for _, options := range []string{"", "metacopy=on", "redirect_dir=on"} {
		for seed := range uint64(15) {
			t.Run(fmt.Sprintf("%s seed %d", options, seed), func(t *testing.T) {
				dir := filepath.Join(mnt, fmt.Sprint(options, seed))
				lower, upper, work, view := dir+"/lower", dir+"/upper", dir+"/work", dir+"/view"
				for _, d := range []string{lower, upper, work, view} {
					require.NoError(t, os.MkdirAll(d, 0o755))
				}
				f := forest.New(t, seed, lower)
				f.Change(60)
				merged := dir + "/merged"
				clone(t, lower, merged)

				mountOptions := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
				if options != "" {
					mountOptions += "," + options
				}
				require.NoError(t, unix.Mount("overlay", view, "overlay", 0, mountOptions))
				unmount := sync.OnceValue(func() error { return unix.Unmount(view, 0) })
				defer unmount()
				f.Root = view
				// Such an overlay cannot note the origin of a device. Its names have different inode numbers there, if it
				// is linked after copy up.
				f.LinkFiles = options == "userxattr"
				f.Change(1 << (seed % 7))
				// Numbers of links in an overlay are those of its layers, so the tree is copied first.
				want := dir + "/want"
				clone(t, view, want)
				require.NoError(t, unmount())

				report, err := Merge(t.Context(), openDir(t, merged), openDir(t, upper), OverlayMarks, Options{})
				// A file that was moved without its data, or a directory without its files.
				if hasAttribute(t, upper, "trusted.overlay.redirect") {
					require.ErrorIs(t, err, ErrRedirected)
					return
				}
				require.NoError(t, err)
				assert.Zero(t, report.Copied)
				treecmp.Equal(t, want, merged, whole)
			})
		}
	}
}

// hasAttribute reports whether a file of a tree has an extended attribute.
func hasAttribute(t *testing.T, root, name string) (has bool) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if _, xerr := unix.Lgetxattr(path, name, nil); xerr == nil {
			has = true
		}
		return err
	}))
	return has
}

// TestMarks merges directories of changes made by hand. Lines of a tree are paths: "d/" is a directory, "f=x" a file,
// "w:0" a device 0:0, "f>g" a hard link, and "@d name=value" an attribute.
func TestMarks(t *testing.T) {
	for name, tt := range map[string]struct {
		form Marks
		dst  []string
		src  []string
		want []string
		err  error
	}{
		"a device":                      {OverlayMarks, []string{"a=1", "b=2"}, []string{"a:0"}, []string{"b=2"}, nil},
		"a device, a tree":              {OverlayMarks, []string{"a/", "a/b/", "a/b/c=1"}, []string{"a:0"}, nil, nil},
		"nothing below":                 {OverlayMarks, nil, []string{"a:0"}, nil, nil},
		"an attribute":                  {OverlayMarks, []string{"a=1"}, []string{"a=", "@a trusted.overlay.whiteout="}, nil, nil},
		"a user's attribute":            {FuseOverlayMarks, []string{"a=1"}, []string{"a=", "@a user.overlay.whiteout=y"}, nil, nil},
		"a user's attribute is content": {OverlayMarks, []string{"a=1"}, []string{"a=", "@a user.overlay.whiteout=y"}, []string{"a=", "@a user.overlay.whiteout=y"}, nil},
		"an attribute of a file that is not empty": {OverlayMarks, []string{"a=1"},
			[]string{"a=2", "@a trusted.overlay.whiteout="}, []string{"a=2"}, nil},
		"opaque": {OverlayMarks, []string{"d/", "d/a=1", "d/b=1"},
			[]string{"d/", "@d trusted.overlay.opaque=y", "d/b=2"}, []string{"d/", "d/b=2"}, nil},
		"opaque for a user": {FuseOverlayMarks, []string{"d/", "d/a=1"},
			[]string{"d/", "@d user.overlay.opaque=y"}, []string{"d/"}, nil},
		"not opaque for root": {OverlayMarks, []string{"d/", "d/a=1"},
			[]string{"d/", "@d user.overlay.opaque=y"}, []string{"d/", "@d user.overlay.opaque=y", "d/a=1"}, nil},
		"the mark x is not opaque": {OverlayMarks, []string{"d/", "d/a=1"},
			[]string{"d/", "@d trusted.overlay.opaque=x"}, []string{"d/", "d/a=1"}, nil},
		"an opaque root": {OverlayMarks, []string{"a=1", "d/", "d/x=1"},
			[]string{"@. trusted.overlay.opaque=y", "b=2"}, []string{"b=2"}, nil},
		"a file over a directory": {OverlayMarks, []string{"d/", "d/a=1"}, []string{"d=2"}, []string{"d=2"}, nil},
		"a directory over a file": {OverlayMarks, []string{"d=1"}, []string{"d/", "d/a=2"}, []string{"d/", "d/a=2"}, nil},
		"names of aufs":           {OverlayMarks, []string{"a=1"}, []string{".wh.a="}, []string{".wh.a=", "a=1"}, nil},
		"metacopy": {OverlayMarks, []string{"a=data", "b>a"},
			[]string{"a=\x00\x00\x00\x00", "@a trusted.overlay.metacopy="}, []string{"a=data", "b=data"}, nil},
		"metacopy of nothing": {OverlayMarks, nil,
			[]string{"a=\x00", "@a trusted.overlay.metacopy="}, nil, unix.ENOENT},
		"metacopy of another size": {OverlayMarks, []string{"a=longer"},
			[]string{"a=\x00", "@a trusted.overlay.metacopy="}, nil, errdefs.ErrDataLoss},
		"a moved file": {OverlayMarks, []string{"a=1"},
			[]string{"b=\x00", "@b trusted.overlay.metacopy=", "@b trusted.overlay.redirect=a"}, nil, ErrRedirected},
		"a moved directory": {OverlayMarks, []string{"d/"},
			[]string{"e/", "@e trusted.overlay.redirect=/a/very/long/path/of/a/directory"}, nil, ErrRedirected},
		"hard links": {OverlayMarks, []string{"a=1"}, []string{"a=2", "d/", "d/b>a"}, []string{"a=2", "d/", "d/b>a"}, nil},

		"fuse: a file":      {FuseOverlayMarks, []string{"a=1"}, []string{".wh.a="}, nil, nil},
		"fuse: a device":    {FuseOverlayMarks, []string{"a=1"}, []string{"a:0"}, nil, nil},
		"fuse: opaque":      {FuseOverlayMarks, []string{"d/", "d/a=1"}, []string{"d/", "@d user.fuseoverlayfs.opaque=y"}, []string{"d/"}, nil},
		"fuse: opaque file": {FuseOverlayMarks, []string{"d/", "d/a=1"}, []string{"d/", "d/.wh..wh..opq="}, []string{"d/"}, nil},
		"not fuse: opaque": {OverlayMarks, []string{"d/", "d/a=1"}, []string{"d/", "@d user.fuseoverlayfs.opaque=y"},
			[]string{"d/", "@d user.fuseoverlayfs.opaque=y", "d/a=1"}, nil},

		"aufs: a file": {AufsMarks, []string{"a=1", "b=1"}, []string{".wh.a="}, []string{"b=1"}, nil},
		"aufs: a tree": {AufsMarks, []string{"d/", "d/e/", "d/e/f=1"}, []string{"d/", "d/.wh.e="}, []string{"d/"}, nil},
		"aufs: opaque": {AufsMarks, []string{"d/", "d/a=1", "d/e/", "d/e/f=1"},
			[]string{"d/", "d/.wh..wh..opq=", "d/e/"}, []string{"d/", "d/e/"}, nil},
		"aufs: an opaque root":            {AufsMarks, []string{"a=1"}, []string{".wh..wh..opq=", "b=2"}, []string{"b=2"}, nil},
		"aufs: a whiteout and a file":     {AufsMarks, []string{"a/", "a/x=1"}, []string{".wh.a=", "a=2"}, []string{"a=2"}, nil},
		"aufs: a whiteout and directory":  {AufsMarks, []string{"a/", "a/x=1"}, []string{".wh.a=", "a/", "a/y=2"}, []string{"a/", "a/y=2"}, nil},
		"aufs: a device is a device":      {AufsMarks, []string{"a=1"}, []string{"a:0"}, []string{"a:0"}, nil},
		"aufs: its own":                   {AufsMarks, nil, []string{".wh..wh.aufs=", ".wh..wh.orph/", ".wh..wh.orph/x=1", ".wh..wh.plnk/"}, nil, nil},
		"aufs: a directory being removed": {AufsMarks, []string{"d/"}, []string{".wh.d.0123/", ".wh.d.0123/x=1"}, []string{"d/"}, nil},
		"aufs: links": {AufsMarks, nil, []string{"a=1", "d/", "d/b>a", ".wh..wh.plnk/", ".wh..wh.plnk/12.34>a"},
			[]string{"a=1", "d/", "d/b>a"}, nil},
		"aufs: a long name": {AufsMarks, nil, []string{strings.Repeat("n", 255) + "/"}, []string{strings.Repeat("n", 255) + "/"}, nil},

		"whiteout of nothing":        {AufsMarks, []string{"a=1"}, []string{".wh.="}, nil, errdefs.ErrInvalidArgument},
		"whiteout of the directory":  {AufsMarks, []string{"a=1"}, []string{".wh..="}, nil, errdefs.ErrInvalidArgument},
		"whiteout of its parent":     {FuseOverlayMarks, []string{"a=1"}, []string{"d/", "d/.wh...="}, nil, errdefs.ErrInvalidArgument},
		"a link in dst":              {OverlayMarks, []string{"d->/etc"}, []string{"d/", "d/passwd=x"}, []string{"d/", "d/passwd=x"}, nil},
		"a whiteout behind a link":   {AufsMarks, []string{"d->/etc"}, []string{"d/", "d/.wh.passwd="}, []string{"d/"}, nil},
		"a link instead of metacopy": {OverlayMarks, []string{"a->/etc/passwd"}, []string{"a=1", "@a trusted.overlay.metacopy="}, nil, unix.ELOOP},
		"unknown marks":              {Marks(7), nil, nil, nil, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.Root(t)
			dir := memDir(t)
			dst, src, want := dir+"/dst", dir+"/src", dir+"/want"
			plant(t, dst, tt.dst)
			plant(t, src, tt.src)
			_, err := Merge(t.Context(), openDir(t, dst), openDir(t, src), tt.form, Options{})
			require.ErrorIs(t, err, tt.err)
			if err != nil {
				return
			}
			plant(t, want, tt.want)
			treecmp.Equal(t, want, dst, treecmp.Options{SkipTime: func(string) bool { return true }})
		})
	}
}

// plant makes the tree that lines describe.
func plant(t *testing.T, root string, lines []string) {
	t.Helper()
	require.NoError(t, os.Mkdir(root, 0o755))
	for _, line := range lines {
		var err error
		if attribute, ok := strings.CutPrefix(line, "@"); ok {
			path, attribute, _ := strings.Cut(attribute, " ")
			name, value, _ := strings.Cut(attribute, "=")
			err = unix.Lsetxattr(filepath.Join(root, path), name, []byte(value), 0)
		} else if path, ok := strings.CutSuffix(line, "/"); ok {
			err = os.Mkdir(filepath.Join(root, path), 0o755)
		} else if path, ok := strings.CutSuffix(line, ":0"); ok {
			err = unix.Mknod(filepath.Join(root, path), unix.S_IFCHR|0o600, 0)
		} else if path, to, ok := strings.Cut(line, "->"); ok {
			err = os.Symlink(to, filepath.Join(root, path))
		} else if path, to, ok := strings.Cut(line, ">"); ok {
			err = os.Link(filepath.Join(root, to), filepath.Join(root, path))
		} else {
			path, content, _ := strings.Cut(line, "=")
			err = os.WriteFile(filepath.Join(root, path), []byte(content), 0o644)
		}
		require.NoError(t, err, "%q", line)
	}
}
