package daemons

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkContainerdUnpack measures how long one containerd takes to load an image onto each snapshotter, all on one
// btrfs, until it is on the disk. The image has a layer of 180 MB in 9,500 files. The snapshotters take turns. The
// benchmark reports the median of each, and the most memory that the daemon has taken beyond its idle size.
func BenchmarkContainerdUnpack(b *testing.B) {
	files := testfs.BenchLayer(b)
	for _, c := range []struct {
		name  string
		layer func(data []byte) (v1.Layer, error)
	}{
		{"plain", func(data []byte) (v1.Layer, error) { return static.NewLayer(data, types.DockerUncompressedLayer), nil }},
		{"gzip", func(data []byte) (v1.Layer, error) {
			return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			layer, err := c.layer(files)
			require.NoError(b, err)
			benchUnpack(b, layer)
		})
	}
}

func benchUnpack(b *testing.B, layer v1.Layer) {
	h := harness.NewHost(b, testfs.Btrfs(b))
	cowshed := h.StartCowshed("containerd")
	containerd := h.StartContainerd("containerd", cowshed.Options())
	img, err := mutate.AppendLayers(harness.BusyboxImage(b, h.Programs), layer)
	require.NoError(b, err)
	file := h.SaveImage(img, "cowshed/bench:1")

	took := make(map[string][]time.Duration)
	stores := make(map[string]*harness.Store)
	names := []string{harness.CowshedSnapshotter, "btrfs", "overlayfs"}
	for _, name := range names {
		stores[name] = containerd.Store(name, name)
	}
	idle := memory(b, cowshed, "RssAnon")
	for b.Loop() {
		for _, name := range names {
			took[name] = append(took[name], unpackOnce(b, b.Context(), stores[name], file, h.Data))
		}
	}
	b.ReportMetric(float64(idle), "idle-KiB")
	b.ReportMetric(float64(memory(b, cowshed, "VmHWM")-memory(b, cowshed, "RssFile")-idle), "added-KiB")
	for _, name := range names {
		slices.Sort(took[name])
		median := took[name][len(took[name])/2]
		b.Logf("%s: %v", name, took[name])
		b.ReportMetric(median.Seconds(), name+"-s/op")
	}
}

// unpackOnce loads an image, and removes it again.
func unpackOnce(b *testing.B, ctx context.Context, store *harness.Store, file, data string) time.Duration {
	b.Helper()
	ctx = store.Context(ctx)
	testfs.WaitDeleted(b, data)
	testfs.Sync(b, data)
	begun := time.Now()
	_, err := store.ImportFile(ctx, file)
	require.NoError(b, err)
	testfs.Sync(b, data)
	took := time.Since(begun)
	require.NoError(b, store.Clear(ctx))
	return took
}

// memory is the kernel's count of the daemon's memory in KiB (proc_pid_status(5)).
func memory(b *testing.B, cowshed *harness.Cowshed, field string) (kib int) {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cowshed.Pid()))
	require.NoError(b, err)
	_, after, found := strings.Cut(string(status), "\n"+field+":")
	require.True(b, found)
	_, err = fmt.Sscan(after, &kib)
	require.NoError(b, err)
	return kib
}
