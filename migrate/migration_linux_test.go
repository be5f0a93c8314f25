package migrate

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

func TestRun(t *testing.T) {
	a := newAttempt(t)
	result, err := a.migration().Run(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, map[string]int{"layer": 5, "image": 2, "container": 1}, result.Made)
	assert.Empty(t, result.There)
	assert.Len(t, a.things(), 9)

	made := len(a.w.log)
	result, err = a.migration().Run(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, map[string]int{"layer": 5, "image": 2, "container": 1}, result.Made)
	assert.Len(t, a.w.log, made, "nothing is made twice")

	equal, err := a.migration().Verify(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, 8, equal)
}

// TestUndoLeavesOthers: things that were there before the run stay.
func TestUndoLeavesOthers(t *testing.T) {
	a := newAttempt(t)
	a.w.target["layer base"] = true
	a.w.target["layer other"] = true
	result, err := a.migration().Run(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, 1, result.There["layer"])
	removed, err := a.migration().Undo(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, 7, removed)
	assert.Equal(t, []string{"layer base", "layer other"}, a.things())
	assert.Empty(t, a.leftInState())
	assert.NoDirExists(t, a.state)
	assert.Equal(t, []string{
		"remove container web", "remove image " + id("two").String(), "remove image " + id("one").String(),
		"remove layer web", "remove layer web-init", "remove layer two", "remove layer one",
	}, a.w.log[7:])
	_, err = a.migration().Undo(t.Context(), nil)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

// TestKilledRun kills the run at each of its points. Then it goes on, or is undone.
func TestKilledRun(t *testing.T) {
	want := whole(t)
	points := 0
	for at := 1; ; at++ {
		a := newAttempt(t)
		a.w.target["layer base"] = true // of somebody else
		a.w.killAt = at
		wasKilled, err := a.do(func(m *Migration) error { _, err := m.Run(t.Context(), nil); return err })
		require.NoError(t, err)
		if !wasKilled {
			break
		}
		points++
		if at%2 == 0 { // once more, a few points later
			a.w.killAt = a.w.points + 3
			_, err := a.do(func(m *Migration) error { _, err := m.Run(t.Context(), nil); return err })
			require.NoError(t, err)
		}
		a.w.killAt = 0
		// A second world that is undone from the same state.
		undone := &attempt{t: t, w: newWorld(t), inv: inventory(), state: t.TempDir() + "/copy"}
		if _, err := os.Stat(a.state); err == nil {
			require.NoError(t, os.CopyFS(undone.state, os.DirFS(a.state)))
		}
		for name := range a.w.target {
			undone.w.target[name] = true
		}
		_, err = undone.migration().Undo(t.Context(), nil)
		if !errdefs.IsNotFound(err) { // killed before there was a journal
			require.NoError(t, err, "point %d", at)
		}
		assert.Equal(t, []string{"layer base"}, undone.things(), "point %d", at)

		require.NoError(t, a.run(), "point %d", at)
		assert.Equal(t, want, a.things(), "point %d", at)
		_, err = a.migration().Undo(t.Context(), nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"layer base"}, a.things(), "point %d", at)
	}
	assert.Greater(t, points, 40)
}

// TestKilledUndo kills the undoing at each of its points. Then it goes on, or the run is done again.
func TestKilledUndo(t *testing.T) {
	want := whole(t)
	for at := 1; ; at++ {
		a := newAttempt(t)
		require.NoError(t, a.run())
		a.w.killAt = a.w.points + at
		wasKilled, err := a.do(func(m *Migration) error { _, err := m.Undo(t.Context(), nil); return err })
		require.NoError(t, err)
		if !wasKilled {
			assert.Greater(t, at, 30)
			break
		}
		a.w.killAt = 0
		if at%2 == 0 {
			require.NoError(t, a.run(), "point %d", at)
			assert.Equal(t, want, a.things(), "point %d", at)
		}
		_, err = a.migration().Undo(t.Context(), nil)
		if !errdefs.IsNotFound(err) {
			require.NoError(t, err, "point %d", at)
		}
		assert.Empty(t, a.things(), "point %d", at)
	}
}

// TestKilledFinish: once the source is being removed, the only way is forward.
func TestKilledFinish(t *testing.T) {
	want := whole(t)
	for at := 1; ; at++ {
		a := newAttempt(t)
		require.NoError(t, a.run())
		a.w.killAt = a.w.points + at
		wasKilled, err := a.do(func(m *Migration) error { return finish(m, false) })
		require.NoError(t, err)
		a.w.killAt = 0
		if wasKilled {
			if a.w.gone {
				_, err = a.migration().Undo(t.Context(), nil)
				require.Error(t, err, "point %d", at)
				if !errdefs.IsNotFound(err) { // there still is a journal
					require.Error(t, a.run())
				}
			}
			if err = finish(a.migration(), false); !errdefs.IsNotFound(err) {
				require.NoError(t, err, "point %d", at)
			}
		}
		assert.True(t, a.w.gone)
		assert.Equal(t, want, a.things())
		if !wasKilled {
			break
		}
	}
}

// TestFinishSettles: each layer becomes independent of the source before that is removed, parents first.
func TestFinishSettles(t *testing.T) {
	a := newAttempt(t)
	require.NoError(t, a.run())
	a.w.log = nil
	a.w.fail["settle layer two"] = fault.New(errdefs.ErrNotFound, "its user has removed it")
	boom := errors.New("boom")
	a.w.fail["settle layer web"] = boom
	require.ErrorIs(t, finish(a.migration(), false), boom)
	assert.False(t, a.w.gone)
	assert.Equal(t, []string{"settle layer base", "settle layer one", "settle layer web-init"}, a.w.log)

	delete(a.w.fail, "settle layer web")
	a.w.log = nil
	require.NoError(t, finish(a.migration(), false))
	assert.True(t, a.w.gone)
	assert.Equal(t, []string{"settle layer base", "settle layer one", "settle layer web-init", "settle layer web"}, a.w.log)
}

// TestFinishChecksSettling: a finish that could not go on does not begin, so that undo is possible.
func TestFinishChecksSettling(t *testing.T) {
	a := newAttempt(t)
	require.NoError(t, a.run())
	a.w.log = nil
	a.w.fail["check settle layer two"] = fault.New(errdefs.ErrNotFound, "its user has removed it")
	a.w.fail["check settle layer web"] = fault.New(errdefs.ErrFailedPrecondition, "others have snapshots")
	for _, partial := range []bool{false, true} {
		var refused *PartialError
		require.ErrorAs(t, finish(a.migration(), partial), &refused)
		require.Len(t, refused.Problems, 1)
		assert.Equal(t, "web", refused.Problems[0].ID)
	}
	delete(a.w.fail, "check settle layer web")
	a.w.fail["check settle all"] = unix.EDQUOT
	require.ErrorIs(t, finish(a.migration(), true), unix.EDQUOT)
	assert.Empty(t, a.w.log)
	assert.False(t, a.w.gone)
	_, err := a.migration().Undo(t.Context(), nil)
	require.NoError(t, err)
	assert.Empty(t, a.things())
}

// TestFinishOfRemoved: if nothing is left of the source, a finish that has begun to remove it is done.
func TestFinishOfRemoved(t *testing.T) {
	left := fault.New(errdefs.ErrNotFound, "nothing is left")
	for _, point := range []string{"before removing the source", "after removing the source", "before delete"} {
		a := newAttempt(t)
		require.NoError(t, a.run())
		removed := New(Removed(left), &fakeTarget{a.w}, Options{Source: "/old", Target: "store /new", State: a.state})
		require.ErrorIs(t, finish(removed, true), left, "it was not begun")
		a.w.killPoint = point
		wasKilled, err := a.do(func(m *Migration) error { return finish(m, false) })
		require.NoError(t, err)
		require.True(t, wasKilled)
		require.NoError(t, finish(removed, false))
		assert.NoDirExists(t, a.state)
		require.ErrorIs(t, finish(removed, false), errdefs.ErrNotFound)
	}
}

// TestFinishOfAnother: the root may have another driver's layers left, which stay.
func TestFinishOfAnother(t *testing.T) {
	a := newAttempt(t)
	require.NoError(t, a.run())
	a.w.killPoint = "before removing the source"
	wasKilled, err := a.do(func(m *Migration) error { return finish(m, false) })
	require.NoError(t, err)
	require.True(t, wasKilled)
	a.w.killPoint = ""
	a.inv.Driver = "another"
	require.ErrorIs(t, finish(a.migration(), true), errdefs.ErrFailedPrecondition)
	assert.False(t, a.w.gone)
	a.inv.Driver = "fake"
	require.NoError(t, finish(a.migration(), false))
	assert.True(t, a.w.gone)
}

// TestJournalOfOldDocker: an earlier version wrote "docker" into the journal of a migration from Docker before 0.7. This version goes
// on with it, and ends it.
func TestJournalOfOldDocker(t *testing.T) {
	for name, end := range map[string]func(m *Migration) error{
		"undo":   func(m *Migration) error { _, err := m.Undo(t.Context(), nil); return err },
		"finish": func(m *Migration) error { return finish(m, false) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			a.inv.Program, a.inv.Driver = ProgramOldDocker, DriverGraph
			require.NoError(t, a.run())
			path := filepath.Join(a.state, journalFile)
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, bytes.Replace(text, []byte(ProgramOldDocker), []byte("docker"), 1), 0o600))
			ends, err := ReadEnds(a.state)
			require.NoError(t, err)
			assert.Equal(t, ProgramOldDocker, ends.Program)
			require.NoError(t, a.run())
			require.NoError(t, end(a.migration()))
			assert.NoDirExists(t, a.state)
		})
	}
}

// TestPartial: a thing that cannot come along leaves the rest alone, and those that need it behind.
func TestPartial(t *testing.T) {
	boom := fault.New(errdefs.ErrDataLoss, "boom")
	for name, c := range map[string]struct {
		fail     string
		problems []string
		made     map[string]int
	}{
		"layer": {
			"make layer one", []string{"layer one", "layer web-init", "layer web", "image " + id("one").String(), "container web"},
			map[string]int{"layer": 2, "image": 1},
		},
		"source": {
			"open two", []string{"layer two", "image " + id("two").String()}, map[string]int{"layer": 4, "image": 1, "container": 1},
		},
		"image": {
			"make image " + id("one").String(), []string{"image " + id("one").String(), "container web"}, map[string]int{"layer": 5, "image": 1},
		},
		"container": {"make container web", []string{"container web"}, map[string]int{"layer": 5, "image": 2}},
		"verify": {
			"verify layer web", []string{"layer web", "container web"}, map[string]int{"layer": 4, "image": 2},
		},
		"has": {"has layer web", []string{"layer web", "container web"}, map[string]int{"layer": 4, "image": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			a.w.fail[c.fail] = boom
			result, err := a.migration().Run(t.Context(), nil)
			var partial *PartialError
			require.ErrorAs(t, err, &partial)
			var problems []string
			for _, p := range partial.Problems {
				problems = append(problems, p.What+" "+p.ID)
			}
			assert.Equal(t, c.problems, problems)
			assert.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrDataLoss)
			assert.Equal(t, c.made, result.Made)
			assert.True(t, a.w.target["committed"])
			n := 0
			for _, count := range c.made {
				n += count
			}
			assert.Len(t, a.things(), n+1)

			require.ErrorAs(t, finish(a.migration(), false), &partial)
			assert.False(t, a.w.gone)
			delete(a.w.fail, c.fail)
			require.NoError(t, a.run(), "once it is repaired, the rest comes along")
			assert.Len(t, a.things(), 9)
			require.NoError(t, finish(a.migration(), false))
			assert.True(t, a.w.gone)
		})
	}
}

// TestProblemsOfTheSource: a problem of the source is one of the run, and of its finish.
func TestProblemsOfTheSource(t *testing.T) {
	a := newAttempt(t)
	a.inv.Problems = []Problem{{What: "image", ID: "broken", Err: errdefs.ErrDataLoss}}
	var partial *PartialError
	require.ErrorAs(t, a.run(), &partial)
	assert.Len(t, partial.Problems, 1)
	assert.Len(t, a.things(), 9)
	require.ErrorAs(t, finish(a.migration(), false), &partial)
	require.NoError(t, finish(a.migration(), true))
	assert.True(t, a.w.gone)
}

// TestRefuses: nothing is changed where the source is in use, the target cannot, or the journal is another's.
func TestRefuses(t *testing.T) {
	busy := fault.New(errdefs.ErrFailedPrecondition, "dockerd works on it")
	a := newAttempt(t)
	a.w.busy = busy
	require.ErrorIs(t, a.run(), errdefs.ErrFailedPrecondition)
	a.w.busy = nil
	a.w.fail["check"] = errdefs.ErrAlreadyExists
	require.ErrorIs(t, a.run(), errdefs.ErrAlreadyExists)
	assert.Empty(t, a.things())
	assert.NoDirExists(t, a.state)
	plan, err := a.migration().Plan(t.Context())
	require.NoError(t, err)
	assert.Len(t, plan.Refusals, 1)
	delete(a.w.fail, "check")

	require.NoError(t, a.run())
	before := a.things()
	for name, change := range map[string]func(*Options, *Inventory){
		"source": func(o *Options, _ *Inventory) { o.Source = "/other" },
		"target": func(o *Options, _ *Inventory) { o.Target = "plugin /new" },
		"driver": func(_ *Options, i *Inventory) { i.Driver = "other" },
	} {
		t.Run(name, func(t *testing.T) {
			o, inv := Options{Source: "/old", Target: "store /new", State: a.state}, inventory()
			change(&o, inv)
			m := New(&fakeSource{a.w, inv}, &fakeTarget{a.w}, o)
			_, err := m.Run(t.Context(), nil)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			plan, err := m.Plan(t.Context())
			require.NoError(t, err)
			assert.NotEmpty(t, plan.Refusals)
			require.ErrorIs(t, finish(m, true), errdefs.ErrFailedPrecondition)
			if name != "driver" {
				_, err = m.Undo(t.Context(), nil)
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			}
			assert.Equal(t, before, a.things())
		})
	}
	a.w.busy = busy
	require.ErrorIs(t, finish(a.migration(), true), errdefs.ErrFailedPrecondition)
	assert.False(t, a.w.gone)
}

// TestOneAtATime: two migrations with one state exclude each other.
func TestOneAtATime(t *testing.T) {
	a := newAttempt(t)
	lock, err := lockState(a.state)
	require.NoError(t, err)
	require.ErrorIs(t, a.run(), errdefs.ErrFailedPrecondition)
	_, err = a.migration().Undo(t.Context(), nil)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NoError(t, lock.release())
	require.NoError(t, a.run())
}

// TestFullDisk: an error that would come again with everything else ends the run, and it goes on later.
func TestFullDisk(t *testing.T) {
	a := newAttempt(t)
	a.w.fail["make layer one"] = fault.New(errdefs.ErrResourceExhausted, "write: %w", syscall.ENOSPC)
	require.ErrorIs(t, a.run(), syscall.ENOSPC)
	assert.Equal(t, []string{"layer base"}, a.things())
	delete(a.w.fail, "make layer one")
	require.NoError(t, a.run())
	assert.Len(t, a.things(), 9)
}

func TestCancelled(t *testing.T) {
	a := newAttempt(t)
	cause := errors.New("stopped")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err := a.migration().Run(ctx, nil)
	require.ErrorIs(t, err, cause)
	assert.Empty(t, a.things())
}

// TestUndoThatCannot: things that others have come to need stay, and a later undo removes them.
func TestUndoThatCannot(t *testing.T) {
	a := newAttempt(t)
	require.NoError(t, a.run())
	a.w.fail["remove layer base"] = fault.New(errdefs.ErrFailedPrecondition, "layer new was made from it")
	removed, err := a.migration().Undo(t.Context(), nil)
	var partial *PartialError
	require.ErrorAs(t, err, &partial)
	assert.Equal(t, 7, removed)
	assert.Equal(t, []string{"layer base"}, a.things())
	clear(a.w.fail)
	removed, err = a.migration().Undo(t.Context(), nil)
	require.NoError(t, err)
	assert.Equal(t, 1, removed)
	assert.Empty(t, a.things())
}

// TestVerifyFinds: differences, and things that are gone, are found and change nothing.
func TestVerifyFinds(t *testing.T) {
	a := newAttempt(t)
	_, err := a.migration().Verify(t.Context(), nil)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.NoError(t, a.run())
	delete(a.w.target, "layer two")
	a.w.fail["verify layer web"] = fault.New(errdefs.ErrDataLoss, "content")
	a.inv.Containers = nil // as after a commit that has given it to another driver
	equal, err := a.migration().Verify(t.Context(), nil)
	var partial *PartialError
	require.ErrorAs(t, err, &partial)
	assert.Equal(t, 6, equal)
	assert.Len(t, partial.Problems, 2)
}

func TestFinishNeedsARun(t *testing.T) {
	a := newAttempt(t)
	require.ErrorIs(t, finish(a.migration(), true), errdefs.ErrNotFound)
	a.w.fail["commit"] = errdefs.ErrUnavailable
	require.ErrorIs(t, a.run(), errdefs.ErrUnavailable)
	require.ErrorIs(t, finish(a.migration(), true), errdefs.ErrFailedPrecondition)
	delete(a.w.fail, "commit")
	require.NoError(t, a.run())
	require.NoError(t, finish(a.migration(), false))
	assert.True(t, a.w.gone)
	assert.NoDirExists(t, a.state)
}

func TestPlan(t *testing.T) {
	a := newAttempt(t)
	a.w.target["layer base"] = true
	a.w.fail["open two"] = fault.New(errdefs.ErrNotFound, "no directory")
	plan, err := a.migration().Plan(t.Context())
	require.NoError(t, err)
	assert.Len(t, plan.Layers, 4)
	assert.True(t, plan.Layers[0].There)
	assert.Equal(t, Copied, plan.Layers[1].How)
	assert.Equal(t, int64(3*120<<20), plan.Bytes)
	assert.Equal(t, int64(10), plan.Layers[1].Blob)
	assert.Equal(t, int64(10), plan.Blobs, "of a layer that is there no blob is written")
	assert.Greater(t, plan.Estimate.Seconds(), 3.0)
	assert.Len(t, plan.Images, 1)
	assert.Len(t, plan.Containers, 1)
	assert.Len(t, plan.Problems, 2, "the layer, and the image that needs it")
	assert.Empty(t, plan.Refusals)
	assert.NoDirExists(t, a.state)
}

// TestPlanOfLies: sizes that cannot be do not overflow.
func TestPlanOfLies(t *testing.T) {
	a := newAttempt(t)
	for i := range a.inv.Layers {
		a.inv.Layers[i].Size = math.MaxInt64
	}
	plan, err := New(&fakeSource{a.w, a.inv}, &liar{fakeTarget{a.w}}, Options{Source: "/old", Target: "store /new", State: a.state}).Plan(t.Context())
	require.NoError(t, err)
	assert.Equal(t, int64(math.MaxInt64), plan.Bytes)
	assert.Equal(t, int64(math.MaxInt64), plan.Blobs)
	assert.Positive(t, plan.Estimate)
}

// liar is a target for which layers are as large as can be.
type liar struct{ fakeTarget }

func (*liar) How(context.Context, *Layer, *Content, Coming) (How, int64, error) {
	return Copied, math.MaxInt64, nil
}

func (*liar) BlobSize(context.Context, *Layer) (int64, error) { return math.MaxInt64, nil }

// TestJournalIsRead: a line that was cut off is none, and other damage is an error and stays.
func TestJournalIsRead(t *testing.T) {
	a := newAttempt(t)
	require.NoError(t, a.run())
	path := filepath.Join(a.state, journalFile)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		text []byte
		err  error
	}{
		"cut off":       {append(slices.Clone(good), `{"step":"intent","item":{"lay`...), nil},
		"in the middle": {append(slices.Clone(good), "{\n"+string(good)...), errdefs.ErrDataLoss},
		"no header":     {[]byte(`{"step":"done","item":{"layer":{"ID":"x"}}}` + "\n"), errdefs.ErrNotImplemented},
		"empty":         {[]byte{}, errdefs.ErrDataLoss},
		"later":         {[]byte(`{"version":2}` + "\n"), errdefs.ErrNotImplemented},
		"a path":        {append(slices.Clone(good), `{"step":"intent","item":{"layer":{"ID":"../x"}}}`+"\n"...), errdefs.ErrDataLoss},
		"no digest":     {append(slices.Clone(good), `{"step":"intent","item":{"image":{"ID":"x"}}}`+"\n"...), errdefs.ErrDataLoss},
		"names nothing": {append(slices.Clone(good), `{"step":"done","item":{}}`+"\n"...), errdefs.ErrDataLoss},
		"long line":     {append(slices.Clone(good), make([]byte, maxLine+1)...), errdefs.ErrDataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, c.text, 0o600))
			err := a.run()
			if c.err == nil {
				require.NoError(t, err)
				now, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.Equal(t, string(good), string(now))
				return
			}
			require.ErrorIs(t, err, c.err)
			now, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.Equal(t, c.text, now)
		})
	}
}

// FuzzJournal: no text makes the reader fail otherwise than with an error, or take memory without bound.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"version":1,"source":"/a"}` + "\n" + `{"step":"intent","item":{"layer":{"ID":"x"}}}` + "\n" + `{"step":"removed","item":{"layer":{"ID":"x"}}}` + "\n"))
	f.Add([]byte(`{"version":1}` + "\n" + `{"step":"done","item":{"image":{"ID":"sha256:0"}}}` + "\n" + `{"phase":"commit","step":"intent"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, journalFile)
		require.NoError(t, os.WriteFile(path, text, 0o600))
		j, err := openJournal(dir, true)
		if err != nil {
			now, rerr := os.ReadFile(path)
			require.NoError(t, rerr)
			require.Equal(t, text, now)
			return
		}
		begun := len(j.begun)
		require.NoError(t, j.intent(Item{Layer: &Layer{ID: "one-more"}}, time.Now()))
		require.NoError(t, j.close())
		j, err = openJournal(dir, false)
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(j.begun), begun)
		require.True(t, j.hasBegun(Item{Layer: &Layer{ID: "one-more"}}))
		require.NoError(t, j.close())
	})
}
