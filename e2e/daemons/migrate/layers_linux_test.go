package migrate

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

// entry is a file of a layer, with all that a tar can say of it.
type entry struct {
	path   string // of a directory with a slash at the end
	data   string
	kind   byte // of the tar; 0: a directory, a link or a file, as path and link say
	mode   int64
	link   string // target; of a hard link if kind says so
	uid    int
	device [2]int64
	time   time.Time // zero: entryTime
	xattrs map[string]string
}

var entryTime = time.Date(2025, 3, 4, 5, 6, 7, 890_123_456, time.UTC)

func (e entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.path, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Size: int64(len(e.data)), Uid: e.uid, Gid: e.uid,
		Devmajor: e.device[0], Devminor: e.device[1], ModTime: e.time, Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	if h.Typeflag == 0 {
		switch {
		case strings.HasSuffix(e.path, "/"):
			h.Typeflag = tar.TypeDir
		case e.link != "":
			h.Typeflag = tar.TypeSymlink
		default:
			h.Typeflag = tar.TypeReg
		}
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = entryTime
	}
	for name, value := range e.xattrs {
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	return h
}

func tarOf(t testing.TB, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(e.header()), e.path)
		_, err := io.WriteString(w, e.data)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// withLayer adds a layer to an image. The history names it.
func withLayer(t testing.TB, img v1.Image, name string, entries ...entry) v1.Image {
	t.Helper()
	return withTar(t, img, name, tarOf(t, entries))
}

func withTar(t testing.TB, img v1.Image, name string, data []byte) v1.Image {
	t.Helper()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, tarball.WithMediaType(types.OCILayer))
	require.NoError(t, err)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: entryTime}, CreatedBy: "add " + name, Comment: "of " + name},
	})
	require.NoError(t, err)
	return img
}

// withEmptyLayer adds an instruction that makes no layer.
func withEmptyLayer(t testing.TB, img v1.Image, instruction string) v1.Image {
	t.Helper()
	img, err := mutate.Append(img, mutate.Addendum{
		History: v1.History{Created: v1.Time{Time: entryTime}, CreatedBy: instruction, EmptyLayer: true},
	})
	require.NoError(t, err)
	return img
}

func withConfig(t testing.TB, img v1.Image, change func(*v1.Config)) v1.Image {
	t.Helper()
	file, err := img.ConfigFile()
	require.NoError(t, err)
	config := file.Config.DeepCopy()
	config.Volumes = maps.Clone(config.Volumes)
	change(config)
	img, err = mutate.Config(img, *config)
	require.NoError(t, err)
	return img
}

// capability is the value of security.capability for cap_net_bind_service, effective and permitted.
func capability() string {
	value := binary.LittleEndian.AppendUint32(nil, 0x02000001) // VFS_CAP_REVISION_2, effective
	for _, word := range []uint32{1 << 10, 0, 0, 0} {
		value = binary.LittleEndian.AppendUint32(value, word)
	}
	return string(value)
}
