package layertar

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asArchiveTar compares a header with that of archive/tar.
func asArchiveTar(t *testing.T, hdr tar.Header) (plain bool) {
	t.Helper()
	hdr.Format = tar.FormatPAX
	var want, got bytes.Buffer
	wantErr := tar.NewWriter(&want).WriteHeader(&hdr)
	err := writeHeader(&got, &hdr)
	if wantErr != nil {
		require.Error(t, err, "%+v", hdr)
		return false
	}
	require.NoError(t, err, "%+v", hdr)
	require.True(t, bytes.Equal(want.Bytes(), got.Bytes()), "%+v\n%s\n%s", hdr, hex.Dump(want.Bytes()[:min(want.Len(), blockSize)]), hex.Dump(got.Bytes()[:min(got.Len(), blockSize)]))
	return plainHeader(new([blockSize]byte), &hdr)
}

func TestWriteHeader(t *testing.T) {
	base := tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/x", Mode: 0o4755, Uid: 1, Gid: 2, Size: 12345, ModTime: time.Unix(1_500_000_000, 0)}
	for _, tt := range []struct {
		name   string
		change func(h *tar.Header)
		plain  bool
	}{
		{"as it is", func(*tar.Header) {}, true},
		{"directory", func(h *tar.Header) { h.Typeflag, h.Name, h.Size = tar.TypeDir, "usr/", 0 }, true},
		{"link", func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeLink, "usr/bin/y", 0 }, true},
		{"device", func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor, h.Size = tar.TypeChar, 4095, 1<<20-1, 0 }, true},
		{"whiteout", func(h *tar.Header) { *h = tar.Header{Typeflag: tar.TypeReg, Name: ".wh.x", ModTime: time.Unix(0, 0)} }, true},
		{"name of 100", func(h *tar.Header) { h.Name = strings.Repeat("n", 100) }, true},
		{"name of 101", func(h *tar.Header) { h.Name = strings.Repeat("n", 101) }, false},
		{"long path", func(h *tar.Header) { h.Name = strings.Repeat("n/", 80) + "x" }, false},
		{"longer path", func(h *tar.Header) { h.Name = strings.Repeat("n/", 800) + "x" }, false},
		{"name in UTF-8", func(h *tar.Header) { h.Name = "ü" }, false},
		{"name in nothing", func(h *tar.Header) { h.Name = "\xff" }, false},
		{"link in UTF-8", func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, "ü", 0 }, false},
		{"long link", func(h *tar.Header) { h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, strings.Repeat("n", 101), 0 }, false},
		{"largest plain size", func(h *tar.Header) { h.Size = 1<<33 - 1 }, true},
		{"large size", func(h *tar.Header) { h.Size = 1 << 33 }, false},
		{"largest plain owner", func(h *tar.Header) { h.Uid, h.Gid = 1<<21-1, 1<<21-1 }, true},
		{"large uid", func(h *tar.Header) { h.Uid = 1 << 21 }, false},
		{"large gid", func(h *tar.Header) { h.Gid = math.MaxUint32 }, false},
		{"before 1970", func(h *tar.Header) { h.ModTime = time.Unix(-1, 0) }, false},
		{"late", func(h *tar.Header) { h.ModTime = time.Unix(1<<33, 0) }, false},
		{"attribute", func(h *tar.Header) { h.PAXRecords = map[string]string{paxXattr + "user.x": "\x00"} }, false},
		{"negative size", func(h *tar.Header) { h.Size = -1 }, false},
		{"huge attribute", func(h *tar.Header) { h.PAXRecords = map[string]string{"a.b": strings.Repeat("x", 1<<20)} }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := base
			tt.change(&h)
			assert.Equal(t, tt.plain, asArchiveTar(t, h))
		})
	}
}

func FuzzWriteHeader(f *testing.F) {
	written := []byte{tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo}
	f.Add("usr/bin/x", "", byte(tar.TypeReg), int64(0o755), 0, 0, int64(100), int64(1_500_000_000), int64(0), int64(0))
	f.Add("a", "b", byte(tar.TypeLink), int64(0o644), 1, 1<<21, int64(0), int64(-1), int64(0), int64(0))
	f.Add(strings.Repeat("d/", 70), "ü", byte(tar.TypeSymlink), int64(0o777), -1, 0, int64(0), int64(1)<<40, int64(9), int64(9))
	f.Fuzz(func(t *testing.T, name, link string, kind byte, mode int64, uid, gid int, size, mtime, major, minor int64) {
		if !slices.Contains(written, kind) {
			return
		}
		asArchiveTar(t, tar.Header{
			Typeflag: kind, Name: name, Linkname: link, Mode: mode, Uid: uid, Gid: gid, Size: size,
			ModTime: time.Unix(mtime, 0), Devmajor: major, Devminor: minor,
		})
	})
}
