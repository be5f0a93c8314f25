package equivalence

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ctdarchive "github.com/containerd/containerd/v2/pkg/archive"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	podmanarchive "go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/chrootarchive"
	"go.podman.io/storage/pkg/reexec"
)

func TestMain(m *testing.M) {
	if reexec.Init() {
		return // podman's code has started it, and its task is done
	}
	logrus.SetOutput(io.Discard) // the peers' warnings about parts that they leave out
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// tool is one implementation of layers.
type tool struct {
	name string
	// apply applies a layer to the tree at dir, which is new if empty is set.
	apply func(ctx context.Context, dir string, layer io.Reader, empty bool) error
	// write writes the changes that make upper of lower, or all of upper if lower is "".
	write func(ctx context.Context, w io.Writer, upper, lower string) error
}

var (
	cowshed = tool{
		name: "cowshed",
		apply: func(ctx context.Context, dir string, layer io.Reader, empty bool) error {
			_, err := layertar.Apply(ctx, dir, layer, layertar.ApplyOptions{Empty: empty, Workers: 2, Xattrs: layertar.SupportedXattrs})
			return err
		},
		write: func(ctx context.Context, w io.Writer, upper, lower string) error {
			changes, err := treediff.Compare(ctx, upper, lower, nil)
			if err != nil {
				return err
			}
			return layertar.Write(ctx, w, upper, changes, layertar.WriteOptions{})
		},
	}
	goArchive = tool{
		name: "go-archive",
		apply: func(_ context.Context, dir string, layer io.Reader, _ bool) error {
			_, err := archive.UnpackLayer(dir, layer, &archive.TarOptions{})
			return err
		},
		write: func(_ context.Context, w io.Writer, upper, lower string) error {
			changes, err := archive.ChangesDirs(upper, lower)
			if err != nil {
				return err
			}
			r, err := archive.ExportChanges(upper, changes, user.IdentityMapping{})
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(w, r)
			return err
		},
	}
	containerd = tool{
		name: "containerd",
		apply: func(ctx context.Context, dir string, layer io.Reader, _ bool) error {
			_, err := ctdarchive.Apply(ctx, dir, layer)
			return err
		},
		write: func(ctx context.Context, w io.Writer, upper, lower string) error {
			return ctdarchive.WriteDiff(ctx, w, lower, upper)
		},
	}
	tools = []tool{cowshed, goArchive, containerd}

	// podman applies in a process of its own, which is this program again.
	podman = tool{
		name: "podman",
		apply: func(_ context.Context, dir string, layer io.Reader, _ bool) error {
			_, err := chrootarchive.ApplyUncompressedLayer(dir, layer, &podmanarchive.TarOptions{})
			return err
		},
	}
	tarPeers = []tool{goArchive, containerd, podman}
)

// written returns the layer that a tool makes of two trees.
func (p tool) written(t testing.TB, upper, lower string) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, p.write(t.Context(), &b, upper, lower), p.name)
	return b.Bytes()
}

// applied applies a layer, which must succeed.
func (p tool) applied(t testing.TB, dir string, layer []byte, empty bool) {
	t.Helper()
	require.NoError(t, p.apply(t.Context(), dir, bytes.NewReader(layer), empty), p.name)
}

// keptXattr says whether an extended attribute of a tree is there again when one tool has written and another
// applied a layer. Where that is not so, it is a difference that TestDifferencesInWriting or TestDifferencesInApplying asserts.
func keptXattr(writer, applier tool, name string) bool {
	if writer.name != cowshed.name && name != "security.capability" {
		return false
	}
	return applier.name != containerd.name || !strings.HasPrefix(name, "trusted.")
}

// volumes makes subvolumes on one btrfs: copies of trees that cost nothing, as between layers.
type volumes struct {
	t   testing.TB
	dir *os.File
}

func newVolumes(t testing.TB, mnt string) *volumes {
	t.Helper()
	dir, err := os.Open(mnt)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	return &volumes{t, dir}
}

// make returns a new empty tree.
func (v *volumes) make(name string) string {
	v.t.Helper()
	require.NoError(v.t, btrfsctl.CreateSubvolume(int(v.dir.Fd()), name, nil), name)
	return filepath.Join(v.dir.Name(), name)
}

// clone returns a copy of a tree.
func (v *volumes) clone(name, source string) string {
	v.t.Helper()
	src, err := os.Open(source)
	require.NoError(v.t, err)
	defer src.Close()
	require.NoError(v.t, btrfsctl.Snapshot(int(v.dir.Fd()), name, int(src.Fd()), false, nil), name)
	return filepath.Join(v.dir.Name(), name)
}

// remove removes a tree.
func (v *volumes) remove(dir string) {
	v.t.Helper()
	require.NoError(v.t, btrfsctl.DestroySubvolume(int(v.dir.Fd()), filepath.Base(dir)), dir)
}

// requireEqual stops the test unless two trees are equal.
func requireEqual(t testing.TB, a, b string, opts treecmp.Options, what string) {
	t.Helper()
	if !treecmp.Equal(t, a, b, opts) {
		t.Fatalf("%s: trees differ", what)
	}
}
