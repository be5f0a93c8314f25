package layertar

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treecmp"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "first seed of the random layers; 0: the time")
	layersFlag = flag.Int("layers", 40, "how many random layers to try")
)

// seeds calls fn with a number of seeds, each in a subtest that prints it if it fails.
func seeds(t *testing.T, fn func(t *testing.T, seed uint64)) {
	t.Helper()
	first := *seedFlag
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	for i := range uint64(*layersFlag) {
		if t.Failed() {
			return
		}
		seed := first + i
		fn(t, seed)
		if t.Failed() {
			t.Logf("repeat with -seed=%d -layers=1", seed)
		}
	}
}

// TestApplyAsGoArchive applies random layers on random layers, and expects the tree that go-archive makes.
func TestApplyAsGoArchive(t *testing.T) {
	applied, refused := 0, 0
	seeds(t, func(t *testing.T, seed uint64) {
		l := newLayers(seed, seed%2 == 0)
		ours, theirs := t.TempDir(), t.TempDir()
		defer os.RemoveAll(ours)
		defer os.RemoveAll(theirs)
		for depth := range 3 {
			entries := l.layer(40)
			layer := tarOf(t, entries...)
			before := snapshot(t, ours)
			wantSize, wantErr := archive.UnpackLayer(theirs, bytes.NewReader(layer), &archive.TarOptions{})
			opts := ApplyOptions{Workers: 1 + int(seed%3), Empty: depth == 0}
			size, err := Apply(t.Context(), ours, bytes.NewReader(layer), opts)
			if err == nil && isTimesOfReplaced(wantErr) {
				return
			}
			if wantErr != nil || err != nil {
				refused++
				if wantErr == nil || err == nil {
					t.Errorf("seed %d: apply: %v; go-archive: %v\nbefore:\n%v\nlayer:\n%s", seed, err, wantErr, before, describe(entries))
				}
				return
			}
			applied++
			assert.Equal(t, wantSize, size)
			settle(t, ours)
			settle(t, theirs)
			if !treecmp.Equal(t, ours, theirs, treecmp.Options{}) {
				t.Logf("before:\n%v\nlayer:\n%s", before, describe(entries))
				return
			}
		}
	})
	t.Logf("%d layers applied, %d refused by both", applied, refused)
	assert.Greater(t, applied, refused, "too few layers make sense")
}

// isTimesOfReplaced reports whether go-archive has applied a whole layer, and refused it in the end for the times of
// a replaced directory. It resolves the directory's name anew then.
func isTimesOfReplaced(err error) bool {
	var pathErr *os.PathError
	gone := errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP)
	return gone && errors.As(err, &pathErr) && pathErr.Op == "chtimesat"
}

func snapshot(t *testing.T, dir string) []string {
	lines := listing(t, dir)
	for i := range lines {
		if len(lines[i]) > 100 {
			lines[i] = lines[i][:100]
		}
	}
	return lines
}

// TestWriteAsGoArchive exports random trees and expects the very bytes of go-archive, unless they have parts in which
// the formats differ on purpose.
func TestWriteAsGoArchive(t *testing.T) {
	seeds(t, func(t *testing.T, seed uint64) {
		l := newLayers(seed, false)
		dir := t.TempDir()
		defer os.RemoveAll(dir)
		if _, err := Apply(t.Context(), dir, bytes.NewReader(tarOf(t, l.layer(60)...)), ApplyOptions{}); err != nil {
			return
		}
		changes := all(t, dir)
		if seed%2 == 0 { // leave some out
			changes = changes[:len(changes)*2/3]
		}
		r, err := archive.ExportChanges(dir, append([]archive.Change(nil), changes...), user.IdentityMapping{})
		require.NoError(t, err)
		defer r.Close()
		var want bytes.Buffer
		_, err = want.ReadFrom(r)
		require.NoError(t, err)
		got := write(t, dir, changes, WriteOptions{Workers: 1 + int(seed%4)})
		if !bytes.Equal(want.Bytes(), got) {
			t.Errorf("seed %d: other bytes than go-archive's", seed)
			wh, _ := headers(t, want.Bytes())
			gh, _ := headers(t, got)
			assert.Equal(t, wh, gh)
		}
	})
}

// TestWriteThenTheyApply exports the changes between random trees, and has go-archive make the upper tree from the
// lower one with them.
func TestWriteThenTheyApply(t *testing.T) {
	made := 0
	seeds(t, func(t *testing.T, seed uint64) {
		l := newLayers(seed, false)
		base := t.TempDir()
		defer os.RemoveAll(base)
		lower, upper, copied := filepath.Join(base, "lower"), filepath.Join(base, "upper"), filepath.Join(base, "copied")
		first, second := tarOf(t, l.layer(40)...), tarOf(t, l.layer(40)...)
		for _, dir := range []string{lower, upper, copied} {
			must(t, os.Mkdir(dir, 0o755))
			if _, err := Apply(t.Context(), dir, bytes.NewReader(first), ApplyOptions{}); err != nil {
				return
			}
			settle(t, dir)
		}
		if _, err := Apply(t.Context(), upper, bytes.NewReader(second), ApplyOptions{}); err != nil {
			return
		}
		settle(t, upper)
		made++
		changes, err := archive.ChangesDirs(upper, lower)
		require.NoError(t, err)
		layer := write(t, upper, changes, WriteOptions{})
		for _, dir := range []string{copied, lower} {
			if dir == copied {
				_, err = archive.UnpackLayer(dir, bytes.NewReader(layer), &archive.TarOptions{})
			} else {
				_, err = Apply(t.Context(), dir, bytes.NewReader(layer), ApplyOptions{})
			}
			require.NoError(t, err, "seed %d", seed)
			settle(t, dir)
			// A change list says nothing of links between changed and unchanged names, nor of times of
			// directories that are equal otherwise.
			ok := equalButLinks(t, upper, dir)
			if !ok {
				t.Logf("seed %d, %s", seed, dir)
				return
			}
		}
	})
	t.Logf("%d layers", made)
}

// equalButLinks compares two trees except for which names are hard links of each other and the times of
// directories.
func equalButLinks(t *testing.T, a, b string) bool {
	t.Helper()
	isDir := func(p string) bool {
		info, err := os.Lstat(filepath.Join(a, p))
		return err == nil && info.IsDir()
	}
	diffs, err := treecmp.Diff(a, b, treecmp.Options{SkipTime: isDir})
	require.NoError(t, err)
	ok := true
	for _, d := range diffs {
		if !bytes.Contains([]byte(d), []byte(`links: `)) && !bytes.Contains([]byte(d), []byte(`hard link of: `)) {
			t.Errorf("%s", d)
			ok = false
		}
	}
	return ok
}
