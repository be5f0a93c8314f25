//go:build linux

package graphtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/graphdriver"
)

var concurrencyTests = []Test{
	{"ConcurrentDifferentIDs", concurrentDifferentIDs},
	{"ConcurrentCreateOfOneID", concurrentCreateOfOneID},
	{"ConcurrentRemoveOfOneID", concurrentRemoveOfOneID},
	{"ConcurrentGetOfOneID", concurrentGetOfOneID},
	{"ConcurrentLifeOfOneID", concurrentLifeOfOneID},
	{"ConcurrentDiffs", concurrentDiffs},
}

const (
	workers = 8 // goroutines at once
	rounds  = 4 // of each
)

// inParallel calls f with 0 to workers-1 at once and ends the test if one fails.
func inParallel(t testing.TB, f func(worker int) error) {
	t.Helper()
	var group errgroup.Group
	start := make(chan struct{})
	for worker := range workers {
		group.Go(func() error {
			<-start
			if err := f(worker); err != nil {
				return fmt.Errorf("worker %d: %w", worker, err)
			}
			return nil
		})
	}
	close(start)
	require.NoError(t, group.Wait())
}

// concurrentDifferentIDs: layers of one base live their lives side by side.
func concurrentDifferentIDs(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	var gone sync.Map
	inParallel(t, func(worker int) error {
		for range rounds {
			id := newID()
			gone.Store(id, worker)
			if err := oneLife(l.Driver, id, base); err != nil {
				return err
			}
		}
		return nil
	})
	gone.Range(func(id, _ any) bool {
		assert.False(t, l.Exists(id.(string)))
		return true
	})
	assertSameTree(t, want, l.scan(base), "the base of all")
}

// oneLife makes a layer, uses it, and removes it.
func oneLife(d graphdriver.Driver, id, base string) error {
	if err := d.CreateReadWrite(id, base, nil); err != nil {
		return err
	}
	dir, err := d.Get(id, "")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "id"), []byte(id), 0o644); err != nil {
		return err
	}
	if err := d.Put(id); err != nil {
		return err
	}
	if !d.Exists(id) {
		return errors.New("a layer does not exist that was created")
	}
	changes, err := d.Changes(id, base)
	if err != nil {
		return err
	}
	if len(changes) != 1 || changes[0].Path != "/id" {
		return fmt.Errorf("changes are %q", changes)
	}
	size, err := d.DiffSize(id, base)
	if err != nil || size != int64(len(id)) {
		return fmt.Errorf("size of the diff: %d, %w", size, err)
	}
	if _, err := readDiff(d, id, base); err != nil {
		return err
	}
	if err := d.Remove(id); err != nil {
		return err
	}
	if d.Exists(id) {
		return errors.New("a layer exists that was removed")
	}
	return nil
}

// concurrentCreateOfOneID: of several that create the same layer, one does.
func concurrentCreateOfOneID(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	for range rounds {
		id := newID()
		var created atomic.Int32
		inParallel(t, func(worker int) error {
			creator := creators(l.Driver)[worker%2]
			err := creator.create(id, base, nil)
			if err == nil {
				created.Add(1)
				return nil
			}
			if !errors.Is(err, errdefs.ErrAlreadyExists) {
				return err
			}
			if !l.Exists(id) {
				return errors.New("a layer exists for Create, and does not for Exists")
			}
			return nil
		})
		assert.Equal(t, int32(1), created.Load())
		assertSameTree(t, want, l.scan(id), "the layer that several created")
		require.NoError(t, l.Remove(id))
	}
}

// concurrentRemoveOfOneID: several that remove the same layer all succeed.
func concurrentRemoveOfOneID(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	for range rounds {
		id := newID()
		require.NoError(t, l.Create(id, base, nil))
		inParallel(t, func(int) error { return l.Remove(id) })
		assert.False(t, l.Exists(id))
		require.NoError(t, l.Create(id, base, nil), "the id is free")
		require.NoError(t, l.Remove(id))
	}
	assertSameTree(t, want, l.scan(base), "the parent of removed layers")
}

// concurrentGetOfOneID: a holder of a layer can use it, whatever other holders do.
func concurrentGetOfOneID(t testing.TB, c Config) {
	l := c.open(t)
	id := l.filled("", someContent)
	inParallel(t, func(worker int) error {
		for round := range rounds * 5 {
			dir, err := l.Get(id, "")
			if err != nil {
				return err
			}
			name := filepath.Join(dir, fmt.Sprintf("%d-%d", worker, round))
			if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
				return err
			}
			if _, err := os.ReadFile(filepath.Join(dir, "etc/passwd")); err != nil {
				return err
			}
			if err := l.Put(id); err != nil {
				return err
			}
		}
		return nil
	})
	got := l.scan(id)
	for worker := range workers {
		for round := range rounds * 5 {
			assert.Contains(t, got, fmt.Sprintf("%d-%d", worker, round))
		}
	}
}

// concurrentLifeOfOneID: whatever order calls for one layer come in, each does all or nothing.
func concurrentLifeOfOneID(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	want := l.scan(base)
	id := newID()
	inParallel(t, func(worker int) error {
		for range rounds * 2 {
			var err error
			switch worker % 4 {
			case 0:
				err = l.Create(id, base, nil)
			case 1:
				err = l.Remove(id)
			case 2:
				if _, err = l.Get(id, ""); err == nil {
					err = l.Put(id)
				}
			case 3:
				l.Exists(id)
				_, err = l.Changes(id, base)
			}
			expected := errors.Is(err, errdefs.ErrAlreadyExists) || errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrFailedPrecondition)
			// A reader that does not freeze the layer may have it removed under its hands.
			if err != nil && !expected && !(worker%4 == 3 && !c.FrozenDiff) {
				return err
			}
		}
		return nil
	})
	if l.Exists(id) {
		assertSameTree(t, want, l.scan(id), "a layer that was created and not removed")
	}
	require.NoError(t, l.Remove(id))
	assert.False(t, l.Exists(id))
	_, err := l.Get(id, "")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, l.Create(id, base, nil), "the id is free")
	assertSameTree(t, want, l.scan(id), "a layer after all that")
	require.NoError(t, l.Remove(id))
	assertSameTree(t, want, l.scan(base), "the base")
}

// concurrentDiffs: several diffs of the same layers give the same bytes, while children come and go.
func concurrentDiffs(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	id := l.filled(base, editOf)
	want := l.diff(id, base)
	inParallel(t, func(worker int) error {
		for range rounds {
			if worker%4 == 0 {
				child := newID()
				if err := errors.Join(l.Create(child, id, nil), l.Remove(child)); err != nil {
					return err
				}
				continue
			}
			got, err := readDiff(l.Driver, id, base)
			if err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return errors.New("a diff differs from an earlier one of the same layers")
			}
		}
		return nil
	})
}
