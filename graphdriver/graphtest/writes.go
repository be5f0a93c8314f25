//go:build linux

package graphtest

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var writesTests = []Test{
	{"HiddenWrites", hiddenWrites},
	{"WritesAfterApply", writesAfterApply},
}

// hiddenWrites: a driver that declares it sees a write that leaves size and time as they were. Any other driver may
// miss it; neither lists anything else.
func hiddenWrites(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", func(w tree) {
		w.mkdir("d")
		w.file("d/f", "before")
		w.file("d/untouched", "before")
		w.file("linked", "before")
		w.link("linked", "d/linked")
		w.file("hole", string(randomBytes(1, 64<<10)))
		w.file("other", "x")
	})
	id := l.filled(base, func(w tree) { // everything keeps its time
		w.file("d/f", "behind")
		w.file("linked", "behind")
		f, err := os.OpenFile(w.path("hole"), os.O_WRONLY, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192))
		require.NoError(t, f.Close())
		w.touch("hole")
	})
	want := []string{"C /d", "C /d/f", "C /d/linked", "C /hole", "C /linked"}
	if c.Overlay {
		want = without(want, "C /d/linked")
	}
	if c.SeesWrites {
		assertSameList(t, want, l.agree(id, base, loss{seconds: true}), "the changes")
		return
	}
	assert.Subset(t, want, l.changes(id, base))
}

// writesAfterApply: a file that came from a tar, so that its time has no fraction, is written in the same
// second without changing its size.
func writesAfterApply(t testing.TB, c Config) {
	l := c.open(t)
	second := baseTime.Truncate(time.Second)
	origin := l.filled("", func(w tree) { w.at(second).file("f", "before") })
	base := l.layer("")
	l.apply(base, "", l.diff(origin, ""))
	id := l.filled(base, func(w tree) { w.at(second.Add(time.Second/2)).file("f", "behind") })
	if c.SeesWrites {
		assert.Equal(t, []string{"C /f"}, l.agree(id, base, loss{seconds: true}))
		return
	}
	assert.Subset(t, []string{"C /f"}, l.changes(id, base))
}
