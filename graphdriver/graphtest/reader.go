//go:build linux

package graphtest

import (
	"errors"
	"io"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

var readerTests = []Test{
	{"DiffReadInPart", diffReadInPart},
	{"FailuresLeaveNothing", failuresLeaveNothing},
}

// diffReadInPart: a diff whose reader is closed early holds nothing any more, neither of the process nor of
// the layers.
func diffReadInPart(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) { w.file("base", string(randomBytes(1, 1<<20))) })
	id := newID()
	require.NoError(t, l.Create(id, base, nil))
	l.edit(id, func(w tree) {
		w.mkdir("d")
		for i := range 50 {
			w.file("d/"+strconv.Itoa(i), string(randomBytes(uint64(i), 50_000)))
		}
	})
	whole := l.diff(id, base) // opens files that a driver opens once, at first use

	for name, read := range map[string]func(r io.Reader) error{
		"nothing": func(io.Reader) error { return nil },
		"one byte": func(r io.Reader) error {
			_, err := io.ReadFull(r, make([]byte, 1))
			return err
		},
		"half": func(r io.Reader) error {
			_, err := io.ReadFull(r, make([]byte, len(whole)/2))
			return err
		},
		"all but the end": func(r io.Reader) error {
			_, err := io.ReadFull(r, make([]byte, len(whole)))
			return err
		},
		"all": func(r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		},
	} {
		for _, parent := range []string{base, ""} {
			subtest(t, "reading "+name+" with parent "+strconv.FormatBool(parent != ""), func(t testing.TB) {
				testfs.CheckLeaks(t)
				for range 5 {
					r, err := l.Diff(id, parent)
					require.NoError(t, err)
					require.NoError(t, read(r))
					require.NoError(t, r.Close())
					_, err = r.Read(make([]byte, 1))
					require.Error(t, err, "reading after Close")
					_ = r.Close() // may complain, but does no harm
				}
			})
		}
	}
	require.NoError(t, l.Remove(id), "nothing holds the layer any more")
	require.NoError(t, l.Remove(base), "nothing holds its parent any more")
}

// failuresLeaveNothing: a method that fails closes the files that it has opened.
func failuresLeaveNothing(t testing.TB, c Config) {
	l := c.open(t)
	id := l.filled("", someContent)
	l.diff(id, "")
	absent := newID()
	for name, fail := range map[string]func() error{
		"Diff of an absent layer":       func() error { return reads(l.Driver, absent, id)["Diff"] },
		"Diff with an absent parent":    func() error { return reads(l.Driver, id, absent)["Diff"] },
		"Changes with an absent parent": func() error { return reads(l.Driver, id, absent)["Changes"] },
		"Create on an absent parent":    func() error { return l.Create(newID(), absent, nil) },
		"Create of an existing layer":   func() error { return l.Create(id, id, nil) },
		"Get of an absent layer": func() error {
			_, err := l.Get(absent, "")
			return err
		},
		"ApplyDiff of a reader that fails": func() error {
			_, err := l.ApplyDiff(id, "", failingReader{})
			return err
		},
	} {
		subtest(t, name, func(t testing.TB) {
			testfs.CheckLeaks(t)
			for range 5 {
				assert.Error(t, fail())
			}
		})
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("cannot read") }
