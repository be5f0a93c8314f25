package layertar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// swapper exchanges pairs of names as fast as it can until it is stopped, and says how often it did.
func swapper(t testing.TB, root string, pairs ...[2]string) (stop func() int) {
	t.Helper()
	done := make(chan struct{})
	var running sync.WaitGroup
	swaps := 0
	running.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			p := pairs[i%len(pairs)]
			// The layer may have removed either.
			if unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, p[0]), unix.AT_FDCWD, filepath.Join(root, p[1]), unix.RENAME_EXCHANGE) == nil {
				swaps++
			}
		}
	})
	return func() int {
		close(done)
		running.Wait()
		return swaps
	}
}

// enoughSwaps is how many swaps prove something. On a busy machine they take more rounds.
const enoughSwaps = 100

// TestApplySwapped exchanges directories of the tree for links that lead out of it while a layer is applied. The
// layer may end up anywhere in the tree, but not outside.
func TestApplySwapped(t *testing.T) {
	testfs.CheckLeaks(t)
	var entries []ent
	for i := range 90 {
		dir := []string{"d", "d/sub", "d/sub/deep"}[i%3]
		entries = append(entries,
			file(fmt.Sprintf("%s/f%d", dir, i), "x"),
			file(dir+"/secret", "overwritten").mode(0o600),
			folder(fmt.Sprintf("%s/dir%d", dir, i)).mode(0o700),
			hardlink(fmt.Sprintf("%s/h%d", dir, i), dir+"/secret"),
			symlink(fmt.Sprintf("%s/l%d", dir, i), "secret"),
			file(dir+"/"+archive.WhiteoutPrefix+"secret", ""),
		)
		switch i % 30 {
		case 29:
			entries = append(entries, file("d/sub/"+archive.WhiteoutOpaqueDir, ""))
		case 14:
			entries = append(entries, file("d/"+archive.WhiteoutPrefix+"sub", ""))
		}
	}
	swaps := 0
	for begun, round := time.Now(), 0; round < 6 || swaps <= enoughSwaps && time.Since(begun) < testfs.Patience; round++ {
		root, check := playground(t)
		must(t, os.MkdirAll(filepath.Join(root, "d/sub/deep"), 0o755))
		must(t, os.Symlink("../victim", filepath.Join(root, "out")))
		must(t, os.Symlink("../../victim", filepath.Join(root, "d/out")))
		must(t, os.Symlink(filepath.Join(filepath.Dir(root), "victim"), filepath.Join(root, "d/sub/out")))
		stop := swapper(t, root, [2]string{"d", "out"}, [2]string{"d/sub", "d/out"}, [2]string{"d/sub/deep", "d/sub/out"}, [2]string{"d/sub", "out"})
		_, err := Apply(t.Context(), root, bytes.NewReader(tarOf(t, entries...)), ApplyOptions{Workers: 1 + round%3})
		swaps += stop()
		check(t)
		if t.Failed() {
			t.Fatalf("round %d: %v", round, err)
		}
		require.NoError(t, os.RemoveAll(root))
	}
	assert.Greater(t, swaps, enoughSwaps, "too few to prove anything")
}

// TestWriteSwapped is the same for a tree that is written: nothing from outside gets into the layer.
func TestWriteSwapped(t *testing.T) {
	testfs.CheckLeaks(t)
	const marker = "must not get into a layer"
	swaps := 0
	for begun, round := time.Now(), 0; round < 6 || swaps <= enoughSwaps && time.Since(begun) < testfs.Patience; round++ {
		root, _ := playground(t)
		must(t, os.WriteFile(filepath.Join(filepath.Dir(root), "victim/f7"), []byte(marker), 0o600))
		must(t, os.MkdirAll(filepath.Join(root, "d/sub"), 0o755))
		for i := range 300 {
			must(t, os.WriteFile(filepath.Join(root, fmt.Sprintf("d/f%d", i)), []byte("inside"), 0o600))
			must(t, os.WriteFile(filepath.Join(root, fmt.Sprintf("d/sub/f%d", i)), []byte("inside"), 0o600))
		}
		must(t, os.Symlink("../victim", filepath.Join(root, "out")))
		must(t, os.Symlink("../../victim", filepath.Join(root, "d/out")))
		must(t, os.Symlink("../../victim/f7", filepath.Join(root, "d/link")))
		changes := all(t, root)
		stop := swapper(t, root, [2]string{"d", "out"}, [2]string{"d/sub", "d/out"}, [2]string{"d/f7", "d/link"})
		for range 5 {
			var b bytes.Buffer
			_ = Write(t.Context(), &b, root, changes, WriteOptions{Workers: 1 + round%4}) // an error more often than not
			assert.NotContains(t, b.String(), marker)
		}
		swaps += stop()
		require.NoError(t, os.RemoveAll(root))
	}
	assert.Greater(t, swaps, enoughSwaps, "too few to prove anything")
}

// watched is a reader that keeps the highest amount of memory that it has seen in use.
type watched struct {
	*bytes.Reader
	count, next int
	peak        uint64
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if w.count += n; w.count >= w.next {
		w.next = w.count + 2<<20
		w.peak = max(w.peak, heapInUse())
	}
	return n, err
}

// TestApplyMillionsOfRecords applies entries with as many PAX records as one may have.
func TestApplyMillionsOfRecords(t *testing.T) {
	testfs.CheckLeaks(t)
	var records []string
	for i := range 60_000 {
		records = append(records, fmt.Sprintf("x.%d", i), "v")
	}
	header := rawPAX(records...)
	var layer [][]byte
	for i := range 34 { // two million
		layer = append(layer, header, rawHeader(tar.TypeReg, fmt.Sprintf("f%d", i), 0))
	}
	dir := t.TempDir()
	in := &watched{Reader: bytes.NewReader(rawTar(layer...))}
	before := heapInUse()
	_, err := Apply(t.Context(), dir, in, ApplyOptions{})
	require.NoError(t, err)
	assert.Less(t, int64(in.peak)-int64(before), int64(128<<20))
	assert.Len(t, strings.Fields(strings.Join(listing(t, dir), " ")), 34*2)
}
