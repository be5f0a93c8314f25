package live_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// BenchmarkPromote promotes a layer in use with three changed files, made from an image of 50,000 files: to the store, to a
// layout that has the image, and to nowhere, which is all besides the writing. It reports percentiles, and for how long the layer
// was held.
func BenchmarkPromote(b *testing.B) {
	images, layers, holding, web := benchImage(b, 50_000)
	layout, err := image.ParseDestination("oci:" + filepath.Join(b.TempDir(), "layout") + ":base")
	require.NoError(b, err)
	opts := image.ExportOptions{Format: layertar.Gzip}
	_, err = images.Export(b.Context(), "base", layout, opts)
	require.NoError(b, err)

	i := 0
	change := func() {
		i++
		for n := range 3 {
			require.NoError(b, os.WriteFile(filepath.Join(web, fmt.Sprint(n)), []byte(fmt.Sprint(i)), 0o644))
		}
	}
	promote := func(do func(p image.Promotion) error) {
		still, err := layers.Still(b.Context(), "web")
		require.NoError(b, err)
		require.NoError(b, do(image.Promotion{Volume: still.Volume, Name: "web", Created: still.Time}))
		require.NoError(b, still.Close())
	}
	for name, do := range map[string]func(p image.Promotion) error{
		"nowhere": func(p image.Promotion) error {
			c, err := layers.Diff(b.Context(), p.Volume, "")
			if err != nil {
				return err
			}
			return errors.Join(c.WriteTar(b.Context(), io.Discard, nil), c.Close())
		},
		"store": func(p image.Promotion) error {
			_, err := images.Promote(b.Context(), p, image.ImportOptions{Name: fmt.Sprintf("web:%d", i)})
			return err
		},
		"layout": func(p image.Promotion) error {
			to := layout
			to.Image = fmt.Sprint("web", i)
			_, err := images.ExportPromotion(b.Context(), p, to, opts)
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			holding.took = nil
			measure(b, change, func() { promote(do) })
			held := holding.took
			slices.Sort(held)
			b.ReportMetric(float64(held[len(held)/2].Microseconds())/1000, "held-p50-ms")
			b.ReportMetric(float64(held[len(held)*99/100].Microseconds())/1000, "held-p99-ms")
		})
	}
}

// benchImage has the image base, of one layer with that many files, and the layer web made from it, mounted on a directory.
func benchImage(b *testing.B, files int) (images *image.Store, layers *live.Layers, holding *timedForker, web string) {
	b.Helper()
	mnt := testfs.Btrfs(b)
	opened, err := btrfs.Init(filepath.Join(mnt, "home"), nil, user.IdentityMapping{})
	require.NoError(b, err)
	driver, ok := opened.(*cowdriver.Driver)
	require.True(b, ok)
	b.Cleanup(func() { assert.NoError(b, driver.Cleanup()) })
	holding = &timedForker{Backend: driver.Backend()}
	layers = live.New(holding, filepath.Join(mnt, "live"), nil)
	images = image.NewStore(filepath.Join(mnt, "images"), driver, nil).WithBase(layers.Base)

	path := filepath.Join(b.TempDir(), "base.tar")
	f, err := os.Create(path)
	require.NoError(b, err)
	w := tar.NewWriter(f)
	for n := range files {
		require.NoError(b, w.WriteHeader(&tar.Header{Name: fmt.Sprint(n), Mode: 0o644, Size: 1}))
		_, err := w.Write([]byte("0"))
		require.NoError(b, err)
	}
	require.NoError(b, w.Close())
	require.NoError(b, f.Close())
	src, err := image.Open(b.Context(), image.Reference{Transport: image.RootFS, Path: path}, image.OpenOptions{})
	require.NoError(b, err)
	imported, err := images.Import(b.Context(), src, image.ImportOptions{Name: "base"})
	require.NoError(b, err)
	require.NoError(b, src.Close())
	require.NoError(b, driver.CreateReadWrite("web", imported.Image.Top(), nil))
	web, err = driver.Get("web", "")
	require.NoError(b, err)
	b.Cleanup(func() { assert.NoError(b, driver.Put("web")) })
	return images, layers, holding, web
}

// timedForker measures the calls that hold a layer to take its moment.
type timedForker struct {
	cowcommon.Backend
	took []time.Duration
}

func (f *timedForker) Unwrap() cowcommon.Backend { return f.Backend }

func (f *timedForker) CheckWhole(ctx context.Context, name string) error {
	return cowcommon.CheckWhole(ctx, f.Backend, name)
}

func (f *timedForker) Fork(ctx context.Context, source, moment string, names []string, opts cowcommon.VolumeOptions) error {
	start := time.Now()
	defer func() { f.took = append(f.took, time.Since(start)) }()
	return cowcommon.Fork(ctx, f.Backend, source, moment, names, opts)
}
