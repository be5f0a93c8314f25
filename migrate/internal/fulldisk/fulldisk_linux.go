package fulldisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
)

// Size is that of a filesystem that is soon full.
const Size = 256 << 20

// Host is a target on a small btrfs of its own.
type Host struct {
	Mountpoint string
	// Migrate calls do with a Migration that is like all others.
	Migrate func(do func(*migrate.Migration) error) error
	// Things lists all things in the target, sorted.
	Things func() []string
}

// Test fills the filesystem before the nth thing is made, for several n; for each in long runs. The run stops there.
// All that it has made is whole. A run after room was made completes the migration, and Undo takes it back, also while
// the filesystem is full.
func Test(t *testing.T, h Host) {
	before := h.Things()
	things := h.run(t, nil)
	whole := h.Things()
	require.NoError(t, h.undo(t))
	require.Equal(t, before, h.Things())
	cases := 4
	if testfs.Long() {
		cases = 4 * things
	}
	for c := range cases {
		n := 1 + c*things/cases
		spaces := []testfs.Space{testfs.Data, testfs.Metadata}[:1+c%2]
		undoes := c%4 > 1
		t.Run(fmt.Sprintf("thing %d, %d kinds of space, undo %v", n, len(spaces), undoes), func(t *testing.T) {
			h.runsFull(t, n, spaces)
			if undoes {
				h.undoFull(t)
			}
			require.NoError(t, os.RemoveAll(filepath.Join(h.Mountpoint, "filler")))
			testfs.Sync(t, h.Mountpoint) // until then the room is not there
			assert.Subset(t, append(before, whole...), h.Things())
			if !undoes {
				h.verifyPart(t)
			}
			h.run(t, nil)
			assert.Equal(t, whole, h.Things())
			h.verify(t)
			require.NoError(t, h.undo(t))
			assert.Equal(t, before, h.Things())
		})
	}
}

// nth is a migrate.Progress that calls do before the nth thing is made.
type nth struct {
	n, at int
	do    func()
}

func (p *nth) Start(string, int) migrate.Task { return p }
func (p *nth) End(string)                     {}

func (p *nth) Next(string) {
	if p.n++; p.n == p.at {
		p.do()
	}
}

// run runs the migration to its end, and returns the number of things.
func (h Host) run(t *testing.T, progress *nth) int {
	t.Helper()
	if progress == nil {
		progress = &nth{}
	}
	require.NoError(t, h.Migrate(func(m *migrate.Migration) error { _, err := m.Run(t.Context(), progress); return err }))
	return progress.n
}

func (h Host) undo(t *testing.T) error {
	return h.Migrate(func(m *migrate.Migration) error { _, err := m.Undo(t.Context(), nil); return err })
}

func (h Host) verify(t *testing.T) {
	t.Helper()
	require.NoError(t, h.Migrate(func(m *migrate.Migration) error { _, err := m.Verify(t.Context(), nil); return err }))
}

// runsFull runs the migration while the filesystem becomes full.
func (h Host) runsFull(t *testing.T, n int, spaces []testfs.Space) {
	t.Helper()
	fill := &nth{at: n, do: func() {
		for _, space := range spaces {
			testfs.Fill(t, h.Mountpoint, space, 100)
		}
	}}
	err := h.Migrate(func(m *migrate.Migration) error { _, err := m.Run(t.Context(), fill); return err })
	require.ErrorIs(t, err, unix.ENOSPC)
	var partial *migrate.PartialError
	require.NotErrorAs(t, err, &partial, "it stops")
}

// undoFull takes the migration back while the filesystem is full, as far as that is possible. A later Undo can do the rest.
func (h Host) undoFull(t *testing.T) {
	t.Helper()
	err := h.undo(t)
	var partial *migrate.PartialError
	switch {
	case err == nil, errors.Is(err, unix.ENOSPC):
	case errors.As(err, &partial):
		for _, problem := range partial.Problems {
			require.ErrorIs(t, problem.Err, unix.ENOSPC)
		}
	default:
		require.NoError(t, err)
	}
}

// verifyPart verifies the things that are there.
func (h Host) verifyPart(t *testing.T) {
	t.Helper()
	err := h.Migrate(func(m *migrate.Migration) error { _, err := m.Verify(t.Context(), nil); return err })
	var partial *migrate.PartialError
	require.ErrorAs(t, err, &partial)
	for _, problem := range partial.Problems {
		assert.ErrorIs(t, problem.Err, errdefs.ErrNotFound, problem.String())
	}
}
