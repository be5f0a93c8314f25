package migrate

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// TestChangedSince: each kind of change in a tree is found, however deep, and whatever time the file claims.
func TestChangedSince(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"nothing": nil,
		"bytes with an old time": func(dir string) error {
			if err := os.WriteFile(dir+"/a/b/file", []byte("new"), 0o600); err != nil {
				return err
			}
			return os.Chtimes(dir+"/a/b/file", time.Unix(1, 0), time.Unix(1, 0))
		},
		"mode":           func(dir string) error { return os.Chmod(dir+"/a/b/file", 0o640) },
		"removed":        func(dir string) error { return os.Remove(dir + "/a/b/file") },
		"at the top":     func(dir string) error { return os.WriteFile(dir+"/new", nil, 0o600) },
		"of the top":     func(dir string) error { return os.Chmod(dir, 0o700) },
		"of a symlink":   func(dir string) error { return os.Lchown(dir+"/link", os.Getuid(), os.Getgid()) },
		"in another dir": func(dir string) error { return os.WriteFile(dir+"/../elsewhere/file", []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "layer")
			require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
			require.NoError(t, os.MkdirAll(dir+"/c/d/e", 0o755))
			require.NoError(t, os.Mkdir(dir+"/../elsewhere", 0o755))
			require.NoError(t, os.WriteFile(dir+"/a/b/file", []byte("old"), 0o600))
			require.NoError(t, os.Symlink("../elsewhere", dir+"/link"))
			time.Sleep(20 * time.Millisecond)
			since := time.Now()
			time.Sleep(20 * time.Millisecond)
			want := change != nil && name != "in another dir"
			if change != nil {
				require.NoError(t, change(dir))
			}
			tree, err := os.Open(dir)
			require.NoError(t, err)
			defer tree.Close()
			for range 2 { // the open directory can be used again
				changed, err := changedSince(t.Context(), tree, since)
				require.NoError(t, err)
				assert.Equal(t, want, changed)
			}
		})
	}
}

// TestChangedBeforeCommit: an engine has worked on a container between two runs. Its layer is made again.
func TestChangedBeforeCommit(t *testing.T) {
	for _, trusts := range []bool{false, true} {
		a := newAttempt(t)
		a.w.trusts = trusts
		a.w.killPoint = "before make container web"
		wasKilled, err := a.do(func(m *Migration) error { _, err := m.Run(t.Context(), nil); return err })
		require.NoError(t, err)
		require.True(t, wasKilled)
		a.w.killPoint = ""
		a.w.engineWrites(t, "web-init")
		a.w.log = nil
		require.NoError(t, a.run())
		assert.Equal(t, []string{
			"remove container web", "remove layer web", "remove layer web-init",
			"make layer web-init", "make layer web", "make container web",
		}, a.w.log)
		require.NoError(t, finish(a.migration(), false))
	}
}

// TestChangedWhileMade: the run was killed when a layer was there, but not noted. No comparison finds the change.
func TestChangedWhileMade(t *testing.T) {
	a := newAttempt(t)
	a.w.trusts = true
	a.w.killPoint = "after make layer web"
	wasKilled, err := a.do(func(m *Migration) error { _, err := m.Run(t.Context(), nil); return err })
	require.NoError(t, err)
	require.True(t, wasKilled)
	a.w.killPoint = ""
	a.w.engineWrites(t, "web")
	a.w.log = nil
	require.NoError(t, a.run())
	assert.Equal(t, []string{"remove layer web", "make layer web"}, a.w.log[:2])
}

// TestChangedAfterCommit: the target may have changed too. Nothing is removed, neither here nor there.
func TestChangedAfterCommit(t *testing.T) {
	a := newAttempt(t)
	require.NoError(t, a.run())
	a.w.engineWrites(t, "web")
	made := len(a.w.log)
	var partial *PartialError
	require.ErrorAs(t, a.run(), &partial)
	require.Len(t, partial.Problems, 1)
	assert.Equal(t, "web", partial.Problems[0].ID)
	assert.Len(t, a.w.log, made)
	for _, force := range []bool{false, true} {
		require.ErrorAs(t, finish(a.migration(), force), &partial)
		require.Len(t, partial.Problems, 1)
		assert.ErrorIs(t, partial.Problems[0].Err, errChanged)
		assert.False(t, a.w.gone)
	}
	_, err := a.migration().Undo(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, a.run())
	require.NoError(t, finish(a.migration(), false))
}

// TestEngineBeforeCommit: an engine that was started during the run gets nothing.
func TestEngineBeforeCommit(t *testing.T) {
	for name, start := range map[string]func(*world){
		"source": func(w *world) { w.busy = fault.New(errdefs.ErrFailedPrecondition, "dockerd works on it") },
		"target": func(w *world) { w.fail["check"] = fault.New(errdefs.ErrFailedPrecondition, "dockerd runs") },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			a.w.at["before make container web"] = func() { start(a.w) }
			require.ErrorIs(t, a.run(), errdefs.ErrFailedPrecondition)
			assert.False(t, a.w.target["committed"])
			clear(a.w.at)
			clear(a.w.fail)
			a.w.busy = nil
			require.NoError(t, a.run())
			assert.True(t, a.w.target["committed"])
		})
	}
}

// TestPartialFinish: only things that are known to be lost may be lost.
func TestPartialFinish(t *testing.T) {
	boom := fault.New(errdefs.ErrUnavailable, "no answer")
	a := newAttempt(t)
	a.inv.Problems = []Problem{{What: "image", ID: "broken", Err: errdefs.ErrDataLoss}}
	a.w.fail["make container web"] = fault.New(errdefs.ErrDataLoss, "boom")
	var partial *PartialError
	require.ErrorAs(t, a.run(), &partial)

	a.w.fail["has layer base"] = boom
	require.ErrorAs(t, finish(a.migration(), true), &partial)
	assert.Len(t, partial.Problems, 3)
	assert.ErrorIs(t, partial.Problems[2].Err, boom)
	assert.False(t, a.w.gone)

	a.w.fail["has layer base"] = fault.New(errdefs.ErrNotFound, "no such layer")
	lost, err := a.migration().Finish(t.Context(), true)
	require.NoError(t, err)
	var ids []string
	for _, p := range lost {
		ids = append(ids, p.What+" "+p.ID)
	}
	assert.Equal(t, []string{"image broken", "layer base", "container web"}, ids)
	assert.True(t, a.w.gone)
}

// TestLimitOfAll: a limit that is not that of a container is as bad as a full disk.
func TestLimitOfAll(t *testing.T) {
	a := newAttempt(t)
	a.w.fail["make layer web"] = fault.New(errdefs.ErrResourceExhausted, "write: %w", syscall.EDQUOT)
	require.ErrorIs(t, a.run(), syscall.EDQUOT)
	assert.False(t, a.w.target["committed"])
	delete(a.w.fail, "make layer web")
	require.NoError(t, a.run())
	assert.True(t, a.w.target["committed"])
}

// TestLimitOfOne: a container at its limit leaves the others alone.
func TestLimitOfOne(t *testing.T) {
	a := newAttempt(t)
	for i := range a.inv.Layers {
		if a.inv.Layers[i].ID == "web" {
			a.inv.Layers[i].Limit = 1 << 20
		}
	}
	a.w.fail["make layer web"] = fault.New(errdefs.ErrResourceExhausted, "write: %w", syscall.EDQUOT)
	var partial *PartialError
	require.ErrorAs(t, a.run(), &partial)
	assert.Len(t, partial.Problems, 2)
	assert.True(t, a.w.target["image "+id("two").String()])
	assert.True(t, a.w.target["committed"])
}

// TestNothingIsLeft: without a journal, no command leaves files behind, also where the directory is there already.
func TestNothingIsLeft(t *testing.T) {
	for _, isThere := range []bool{false, true} {
		a := newAttempt(t)
		if isThere {
			require.NoError(t, os.Mkdir(a.state, 0o700))
		}
		_, err := a.migration().Undo(t.Context(), nil)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = a.migration().Verify(t.Context(), nil)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		require.ErrorIs(t, finish(a.migration(), true), errdefs.ErrNotFound)
		assert.Empty(t, a.leftInState())
		if !isThere {
			assert.NoDirExists(t, a.state)
		}
	}
}

// TestJournalForgets: removed things are no longer begun, in any order, and the rest keeps its place.
func TestJournalForgets(t *testing.T) {
	j, err := openJournal(t.TempDir(), true)
	require.NoError(t, err)
	const n = 1000
	noteAll(j, n)
	for i := range n {
		require.True(t, j.hasBegun(numbered(i)))
	}
	j.note(entry{Step: stepRemoved, Item: numbered(0)})
	require.False(t, j.hasBegun(numbered(0)))
	require.Equal(t, numbered(1).key(), j.begun[0].key())
	require.Equal(t, n-2, j.at[numbered(n-1).key()])
	for i := n - 1; i > 0; i-- {
		j.note(entry{Step: stepRemoved, Item: numbered(i)})
	}
	assert.Empty(t, j.begun)
}

// BenchmarkJournal measures a migration's notes: the time of each must not grow with their number.
func BenchmarkJournal(b *testing.B) {
	j, err := openJournal(b.TempDir(), true)
	require.NoError(b, err)
	b.ResetTimer()
	noteAll(j, b.N)
	for i := b.N - 1; i >= 0; i-- {
		j.note(entry{Step: stepRemoved, Item: numbered(i)})
	}
}

func numbered(i int) Item { return Item{Layer: &Layer{ID: time.Duration(i).String()}} }

// noteAll notes that n things are begun and done.
func noteAll(j *journal, n int) {
	for i := range n {
		j.note(entry{Step: stepIntent, Item: numbered(i)})
		j.note(entry{Step: stepDone, Item: numbered(i)})
	}
}
