package equivalence

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listing describes a tree: a line for each name with its content or target, "@" if it has the time of the
// layer's entries, and the extended attributes.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var lines []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if strings.HasPrefix(d.Name(), "dockerplnk") {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch d.Type() {
		case fs.ModeDir:
			rel += "/"
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			rel += "->" + target
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(data)
		case fs.ModeDevice | fs.ModeCharDevice:
			rel += " device"
		}
		if st.Mtim.Sec == past.Unix() {
			rel += "@"
		}
		for _, x := range []string{"user.x", "trusted.x", "system.posix_acl_access"} {
			if n, err := unix.Lgetxattr(p, x, nil); err == nil && n > 0 {
				rel += " " + x
			}
		}
		lines = append(lines, rel)
		return nil
	}))
	return strings.Join(lines, ", ")
}

// defaultACL lets user 1000 read new files in a directory (struct posix_acl_xattr_entry).
const defaultACL = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" +
	"\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x05\x00\xff\xff\xff\xff" +
	"\x20\x00\x05\x00\xff\xff\xff\xff"

// TestDifferencesInApplying asserts the table of docs/reference/layer-tars.md of layers that the tools apply
// differently. A result is the tree, or "error: " and a part of the error.
func TestDifferencesInApplying(t *testing.T) {
	v := newVolumes(t, testfs.Btrfs(t))
	for _, tt := range []struct {
		name         string
		lower, layer []entry
		raw          []byte // in place of layer

		cowshed, goArchive, containerd string
	}{
		{
			name:  "opaque marker above what has no entries of its own",
			lower: []entry{file("a/old", "")},
			layer: []entry{file("a/b/f", "new"), file("a/.wh..wh..opq", "")},
			// All keep a/ itself, since the marker is about its content.
			cowshed: "a/, a/b/, a/b/f=new@", goArchive: "a/", containerd: "a/",
		},
		{
			name:    "whiteout of nothing",
			lower:   []entry{file("d/f", "1")},
			layer:   []entry{file("d/.wh.", "")},
			cowshed: "error: malformed layer", goArchive: "", containerd: "error: invalid whiteout",
		},
		{
			name:    "whiteout of the parent",
			lower:   []entry{file("d/f", "1")},
			layer:   []entry{file("d/.wh...", "")},
			cowshed: "error: malformed layer", goArchive: "error: RemoveAll", containerd: "error: invalid whiteout",
		},
		{
			name:    "whiteout of the directory",
			lower:   []entry{file("d/e/f", "1")},
			layer:   []entry{file("d/e/.wh..", "")},
			cowshed: "error: malformed layer", goArchive: "d/", containerd: "error: invalid whiteout",
		},
		{
			name:    "directory replaced in the same layer",
			layer:   []entry{folder("d/e"), file("d", "1")},
			cowshed: "d=1@", goArchive: "error: chtimesat", containerd: "error: not a directory",
		},
		{
			name:    "directory removed in the same layer",
			layer:   []entry{folder("d"), file(".wh.d", "")},
			cowshed: "", goArchive: "error: chtimesat", containerd: "error: no such file",
		},
		{
			name:    "global header with the name of a file",
			lower:   []entry{file("f", "1")},
			layer:   []entry{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "f", PAXRecords: map[string]string{"comment": "x"}}}},
			cowshed: "f=1@", goArchive: "", containerd: "",
		},
		{
			name:    "old GNU sparse file",
			raw:     gnuSparse(),
			cowshed: "s=\x00\x00\x00\x00data@", goArchive: "error: unhandled", containerd: "error: unhandled",
		},
		{
			name:    "attribute of a symbolic link",
			layer:   []entry{file("f", ""), link(tar.TypeSymlink, "l", "f").xattr("trusted.x", "1")},
			cowshed: "f=@, l->f@ trusted.x", goArchive: "f=@ trusted.x, l->f@", containerd: "f=@, l->f@",
		},
		{
			name:    "trusted attribute",
			layer:   []entry{file("f", "").xattr("trusted.x", "1").xattr("user.x", "1")},
			cowshed: "f=@ user.x trusted.x", goArchive: "f=@ user.x trusted.x", containerd: "f=@ user.x",
		},
		{
			name:    "attribute of macOS",
			layer:   []entry{file("f", "").xattr("com.apple.provenance", "1").xattr("user.x", "1")},
			cowshed: "f=@ user.x", goArchive: "error: not supported", containerd: "f=@ user.x",
		},
		{
			name:    "malformed ACL",
			layer:   []entry{file("f", "").xattr("system.posix_acl_access", "?").xattr("user.x", "1")},
			cowshed: "f=@ user.x", goArchive: "error: invalid argument", containerd: "error: invalid argument",
		},
		{
			name:    "default ACL",
			layer:   []entry{folder("d").xattr("system.posix_acl_default", defaultACL), file("d/f", "")},
			cowshed: "d/@, d/f=@", goArchive: "d/@, d/f=@ system.posix_acl_access", containerd: "d/@, d/f=@ system.posix_acl_access",
		},
		{
			name: "device number that the kernel cuts short",
			layer: []entry{{Header: tar.Header{
				Typeflag: tar.TypeChar, Name: "dev", Devmajor: 4097, Devminor: 3,
			}}},
			cowshed: "error: device 4097:3", goArchive: "dev device@", containerd: "dev device@",
		},
		{
			name:    "owner that chown takes for no change",
			layer:   []entry{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Uid: 1<<32 - 1, Gid: 1<<32 - 1}}},
			cowshed: "error: owner 4294967295:4294967295", goArchive: "f=@", containerd: "f=@",
		},
		{
			name:    "hard link to itself",
			lower:   []entry{file("f", "1")},
			layer:   []entry{link(tar.TypeLink, "f", "f")},
			cowshed: "error: hard link to itself", goArchive: "error: no such file", containerd: "error: no such file",
		},
		{
			name:    "name that leads out of the root",
			layer:   []entry{file("../x", "1")},
			cowshed: "error: leads out of the root", goArchive: "error: invalid entry name", containerd: "x=1@",
		},
		{
			name:    "path through a link that leads above the root",
			layer:   []entry{link(tar.TypeSymlink, "l", "../dir"), file("l/f", "1")},
			cowshed: "dir/, dir/f=1@, l->../dir@", goArchive: "error: path escapes", containerd: "dir/, dir/f=1@, l->../dir@",
		},
		{
			name:    "aufs hard links",
			layer:   []entry{file(".wh..wh.plnk/1.2", "data"), link(tar.TypeLink, "f", ".wh..wh.plnk/1.2")},
			cowshed: "f=data@", goArchive: "f=data@", containerd: ".wh..wh.plnk/, .wh..wh.plnk/1.2=data@, f=data@",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layer := tt.raw
			if layer == nil {
				layer = tarOf(t, tt.layer...)
			}
			for name, want := range map[*tool]string{&cowshed: tt.cowshed, &goArchive: tt.goArchive, &containerd: tt.containerd} {
				dir := v.make("tree")
				if tt.lower != nil {
					cowshed.applied(t, dir, tarOf(t, tt.lower...), true)
				}
				err := name.apply(t.Context(), dir, bytes.NewReader(layer), tt.lower == nil)
				if wantErr, ok := strings.CutPrefix(want, "error: "); ok {
					assert.ErrorContains(t, err, wantErr, name.name)
				} else if assert.NoError(t, err, name.name) {
					assert.Equal(t, want, listing(t, dir), name.name)
				}
				v.remove(dir)
			}
		})
	}
}

// gnuSparse is a layer with a sparse file in the form of GNU tar before POSIX.1-2001 ("old GNU format" in its
// manual): four bytes of hole and four of data.
func gnuSparse() []byte {
	b := make([]byte, 4*512)
	copy(b, "s")
	copy(b[100:], "0000644\x000000000\x000000000\x0000000000004\x00")
	copy(b[136:], "13132027400\x00        S") // 1_500_000_000
	copy(b[257:], "ustar  \x00")
	copy(b[386:], "00000000004\x0000000000004\x00")
	copy(b[483:], "00000000010\x00")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0})
	copy(b[512:], "data")
	return b
}

// entriesOf returns the headers in a layer by name.
func entriesOf(t testing.TB, layer []byte) map[string]*tar.Header {
	t.Helper()
	entries := make(map[string]*tar.Header)
	tr := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		require.NoError(t, err)
		entries[h.Name] = h
	}
}

// TestDifferencesInWriting asserts the table of docs/reference/layer-tars.md of trees that the tools write
// differently.
func TestDifferencesInWriting(t *testing.T) {
	v := newVolumes(t, testfs.Btrfs(t))
	lower := v.make("lower")
	cowshed.applied(t, lower, tarOf(t, folder("d"), file("d/gone", ""), file("d/old", "data"), file("d/kept", "")), true)
	upper := v.clone("upper", lower)
	in := func(p string) string { return filepath.Join(upper, p) }
	require.NoError(t, os.Remove(in("d/gone")))
	require.NoError(t, os.Link(in("d/old"), in("d/new"))) // d/old itself is not a change
	require.NoError(t, os.WriteFile(in("d/attrs"), nil, 0o600))
	for name, value := range map[string]string{
		"user.x": "1", "trusted.x": "2", "system.posix_acl_access": defaultACL, "trusted.overlay.opaque": "y", "security.capability": pingCapability,
	} {
		require.NoError(t, unix.Lsetxattr(in("d/attrs"), name, []byte(value), 0), name)
	}

	begun := time.Now().Truncate(time.Second)
	layers := make(map[string]map[string]*tar.Header)
	for _, p := range tools {
		layers[p.name] = entriesOf(t, p.written(t, upper, lower))
	}
	ours, theirs, ctd := layers[cowshed.name], layers[goArchive.name], layers[containerd.name]

	t.Run("whiteout times", func(t *testing.T) {
		assert.Equal(t, int64(0), ours["d/.wh.gone"].ModTime.Unix())
		assert.Equal(t, int64(0), ctd["d/.wh.gone"].ModTime.Unix())
		assert.False(t, theirs["d/.wh.gone"].ModTime.Before(begun))
	})
	t.Run("attributes", func(t *testing.T) {
		const x = "SCHILY.xattr."
		for _, name := range []string{"user.x", "trusted.x", "system.posix_acl_access"} {
			assert.Contains(t, ours["d/attrs"].PAXRecords, x+name)
			assert.NotContains(t, theirs["d/attrs"].PAXRecords, x+name)
			assert.NotContains(t, ctd["d/attrs"].PAXRecords, x+name)
		}
		for name, layer := range layers {
			assert.NotContains(t, layer["d/attrs"].PAXRecords, x+"trusted.overlay.opaque", name)
			assert.Equal(t, pingCapability, layer["d/attrs"].PAXRecords[x+"security.capability"], name)
		}
	})
	t.Run("new link to an unchanged file", func(t *testing.T) {
		// A copy, as with moby. containerd writes the unchanged name once more, as a link.
		for _, l := range []map[string]*tar.Header{ours, theirs} {
			assert.Equal(t, byte(tar.TypeReg), l["d/new"].Typeflag)
			assert.NotContains(t, l, "d/old")
		}
		require.Contains(t, ctd, "d/old")
		assert.ElementsMatch(t, []byte{tar.TypeReg, tar.TypeLink}, []byte{ctd["d/new"].Typeflag, ctd["d/old"].Typeflag})
	})
	t.Run("reserved name", func(t *testing.T) {
		require.NoError(t, os.WriteFile(in("d/.wh.kept"), nil, 0o600))
		require.ErrorIs(t, cowshed.write(t.Context(), io.Discard, upper, lower), layertar.ErrReservedName)
		for _, p := range tools[1:] {
			// The layer takes away a file that the tree has.
			copied := v.clone("copied", lower)
			p.applied(t, copied, p.written(t, upper, lower), false)
			assert.NoFileExists(t, filepath.Join(copied, "d/kept"), p.name)
			v.remove(copied)
		}
		require.NoError(t, os.Remove(in("d/.wh.kept")))
	})
	t.Run("links in two subvolumes", func(t *testing.T) {
		// Their inode numbers are the same.
		for _, name := range []string{"one", "two"} {
			sub := newVolumes(t, upper).make(name)
			require.NoError(t, os.WriteFile(filepath.Join(sub, "f"), []byte(name), 0o644))
			require.NoError(t, os.Link(filepath.Join(sub, "f"), filepath.Join(sub, "g")))
		}
		for _, p := range tools {
			copied := v.clone("copied", lower)
			p.applied(t, copied, p.written(t, upper, lower), false)
			data, err := os.ReadFile(filepath.Join(copied, "two/f"))
			require.NoError(t, err)
			if p.name == cowshed.name {
				assert.Equal(t, "two", string(data))
			} else {
				assert.Equal(t, "one", string(data), p.name)
			}
			v.remove(copied)
		}
	})
}
