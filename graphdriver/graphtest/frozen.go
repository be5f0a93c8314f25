//go:build linux

package graphtest

import (
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var frozenTests = []Test{
	{"DiffWhileWriting", diffWhileWriting},
}

// diffWhileWriting: while a program moves a file to and fro between two directories, the file is in exactly one of
// them at each moment. A driver that shows one moment never shows both or neither. Any other driver gives an answer
// or an error, and is unharmed.
func diffWhileWriting(t testing.TB, c Config) {
	const rounds = 20
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.mkdir("a")
		w.mkdir("z")
		w.file("a/token", "x")
	})
	id := l.filled(base, func(w tree) {
		w.mkdir("middle") // takes time to read between the two
		for i := range 200 {
			w.file(fmt.Sprintf("middle/%d", i), strings.Repeat("x", 1000))
		}
		w.rename("a/token", "z/new-token")
	})

	stop := move(l.get(id), "z/new-token", "a/new-token")
	defer func() { _ = stop() }()

	for range rounds {
		changes, err := l.Changes(id, base)
		if c.FrozenDiff {
			require.NoError(t, err)
			places := 0
			for _, change := range changes {
				if path.Base(change.Path) == "new-token" {
					places++
				}
			}
			assert.Equal(t, 1, places, "Changes shows one moment")
		}
		layerTar, err := readDiff(l.Driver, id, base)
		if c.FrozenDiff {
			require.NoError(t, err)
			places := 0
			for _, h := range headers(t, layerTar) {
				if path.Base(h.Name) == "new-token" {
					places++
				}
			}
			assert.Equal(t, 1, places, "Diff shows one moment")
		}
		if size, err := l.DiffSize(id, base); c.FrozenDiff {
			require.NoError(t, err)
			assert.Equal(t, int64(200*1000+1), size, "DiffSize shows one moment")
		}
	}
	require.NoError(t, stop(), "the program that writes to the layer")
	l.put(id)
	l.agree(id, base, loss{times: true})
}

// move renames dir/from to dir/to and back until stop is called, which returns the error that ended it
// before, if any.
func move(dir, from, to string) (stop func() error) {
	quit := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		from, to := path.Join(dir, from), path.Join(dir, to)
		for {
			select {
			case <-quit:
				done <- nil
				return
			default:
			}
			if err := os.Rename(from, to); err != nil {
				done <- err
				return
			}
			from, to = to, from
		}
	}()
	return sync.OnceValue(func() error {
		close(quit)
		return <-done
	})
}
