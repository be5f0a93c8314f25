package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/writelog"
)

// runScript makes a store below mnt and takes the steps, with a mark before and after each.
func runScript(t *testing.T, s system, mnt string, steps []step, keeps []kept, marks testfs.Marks) {
	t.Helper()
	h, err := openHost(s, mnt)
	require.NoError(t, err)
	for i, step := range steps {
		require.NoError(t, marks.Write(begun(i)))
		require.NoError(t, step.run(t.Context(), h), step.name)
		require.NoError(t, marks.Write(done(i)))
		require.Empty(t, h.find(t).diff(t, keeps[i+1], false), "after %q", step.name)
	}
	require.NoError(t, h.close())
}

// begun and done are the marks of step i.
func begun(i int) uint64 { return uint64(2*i + 1) }
func done(i int) uint64  { return uint64(2*i + 2) }

// cut is a moment at which the power is cut.
type cut struct {
	writelog.Cut
	acknowledged int  // steps
	inStep       bool // the step after these has begun
}

func newCut(c writelog.Cut) cut {
	acknowledged := int(c.Acknowledged / 2)
	return cut{Cut: c, acknowledged: acknowledged, inStep: c.Written >= begun(acknowledged)}
}

func (c cut) name(steps []step) string {
	switch {
	case c.inStep:
		return fmt.Sprintf("%d in %s", c.Entries, steps[c.acknowledged].name)
	default:
		return fmt.Sprintf("%d after %s", c.Entries, steps[c.acknowledged-1].name)
	}
}

// chooseCuts returns the moments to look at. If the test is long, these are all from the first step on, else that
// many of those right after a flush, evenly spread.
func chooseCuts(t *testing.T, log string, marksAt int64, most int) []cut {
	t.Helper()
	f, err := os.Open(log)
	require.NoError(t, err)
	defer f.Close()
	all, err := writelog.Cuts(f, marksAt)
	require.NoError(t, err)
	var cuts []cut
	flushes := 0
	for _, c := range all {
		if c.Written == 0 || c.Between && !testfs.Long() {
			continue // before the script
		}
		if !c.Between {
			flushes++
		}
		cuts = append(cuts, newCut(c))
	}
	t.Logf("%d flushes, %d writes and flushes", flushes, all[len(all)-1].Entries)
	require.GreaterOrEqual(t, flushes, most, "the script is long enough")
	if testfs.Long() {
		return cuts
	}
	chosen := make([]cut, most)
	for i := range chosen {
		chosen[i] = cuts[i*len(cuts)/most]
	}
	return chosen
}

// replay calls check with each cut and an image of the disk's content, from byte from up to byte to, at that moment.
func replay(t *testing.T, log string, from, to int64, cuts []cut, check func(c cut, image string)) {
	t.Helper()
	f, err := os.Open(log)
	require.NoError(t, err)
	defer f.Close()
	dir := t.TempDir()
	state, copied := filepath.Join(dir, "state.img"), filepath.Join(dir, "copy.img")
	target, err := os.Create(state)
	require.NoError(t, err)
	defer target.Close()
	require.NoError(t, target.Truncate(to-from))
	disk, err := writelog.NewDisk(bufio.NewReaderSize(f, 1<<20), target, from, to)
	require.NoError(t, err)
	for _, c := range cuts {
		require.NoError(t, disk.Replay(c.Entries))
		out, err := exec.Command("cp", "--sparse=auto", state, copied).CombinedOutput()
		require.NoError(t, err, "%s", out)
		check(c, copied)
		require.NoError(t, os.Remove(copied))
	}
}

// check opens the store that the power cut has left below mnt.
func (c cut) check(t *testing.T, s system, mnt string, steps []step, keeps []kept) {
	t.Helper()
	h, err := openHost(s, mnt)
	require.NoError(t, err)
	f := h.find(t)
	wanted := []kept{keeps[c.acknowledged]}
	if c.inStep {
		for _, change := range steps[c.acknowledged].between {
			k := keeps[c.acknowledged].clone()
			change(k)
			wanted = append(wanted, k)
		}
		wanted = append(wanted, keeps[c.acknowledged+1])
	}
	var diffs [][]string
	for _, want := range wanted {
		diffs = append(diffs, f.diff(t, want, c.inStep && steps[c.acknowledged].partial))
	}
	nearest := slices.MinFunc(diffs, func(a, b []string) int { return len(a) - len(b) })
	assert.Empty(t, nearest, "what there is differs from all of the %d states that there may be; from the nearest:", len(wanted))
	f.assertNothingElse(t)
	require.NoError(t, h.close())
}
