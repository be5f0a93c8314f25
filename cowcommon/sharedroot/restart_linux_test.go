package sharedroot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// endingContext ends after it has been asked a number of times. A fold asks before each step.
type endingContext struct {
	context.Context
	left int
}

func (c *endingContext) Err() error {
	if c.left == 0 {
		return context.Canceled
	}
	c.left--
	return c.Context.Err()
}

// stopped folds a volume until that many steps are done. done: the fold has ended before.
func (h home) stopped(name string, steps int) (done bool) {
	h.t.Helper()
	err := fold(&endingContext{h.t.Context(), steps}, h.open(name), nil)
	if err != nil {
		require.ErrorIs(h.t, err, context.Canceled)
	}
	return err == nil
}

// kinds makes a lower with all kinds of files that a fold treats in a way of its own, and changes them in an overlay.
func (h home) kinds() (view string) {
	h.t.Helper()
	must := func(errs ...error) {
		h.t.Helper()
		for _, err := range errs {
			require.NoError(h.t, err)
		}
	}
	h.create("lower")
	lower := h.path("lower")
	write := func(path string) error { return os.WriteFile(path, []byte(path), 0o644) }
	for _, dir := range []string{"/d/e/f", "/opaque/x/y", "/gone/x", "/tofile/x", "/kept"} {
		must(os.MkdirAll(lower+dir, 0o755), write(lower+dir+"/1"), write(lower+dir+"/2"))
	}
	must(write(lower+"/todir"), write(lower+"/linked"), os.Link(lower+"/linked", lower+"/d/linked"))
	h.seal("lower")
	h.prepare("v", "lower")
	view, _ = h.mount("v", "lower")
	must(
		os.Chmod(view, 0o711),
		write(view+"/d/e/f/1"), os.Remove(view+"/d/e/f/2"), os.Mkdir(view+"/d/e/new", 0o700), write(view+"/d/e/new/1"),
		os.Rename(view+"/d/e/f/1", view+"/d/e/new/moved"), // with the attributes of a file that was copied up
		os.RemoveAll(view+"/opaque"), os.MkdirAll(view+"/opaque/x", 0o750), write(view+"/opaque/x/new"),
		os.RemoveAll(view+"/gone"),
		os.RemoveAll(view+"/tofile"), write(view+"/tofile"),
		os.Remove(view+"/todir"), os.Mkdir(view+"/todir", 0o755), write(view+"/todir/1"),
		write(view+"/linked"), os.Link(view+"/linked", view+"/kept/linked"),
		unix.Setxattr(view+"/d/e", "user.e", []byte("1"), 0),
	)
	times := []unix.Timespec{{Sec: 1, Nsec: 2}, {Sec: 3, Nsec: 4}}
	for _, dir := range []string{"/d/e/f", "/d/e", "/d", "/opaque", "/kept", ""} {
		must(unix.UtimesNanoAt(unix.AT_FDCWD, view+dir, times, 0))
	}
	return view
}

// TestFoldStopped stops a fold after each of its steps. Folded on, the volume and a snapshot of it at that moment, as a
// crash would leave it, are the tree that the overlay shows.
func TestFoldStopped(t *testing.T) { testFoldStopped(t, newHome(t, testfs.Btrfs(t)+"/home"), 1) }

func TestFoldStoppedZFS(t *testing.T) { testFoldStopped(t, newZFSHome(t), 11) }

// testFoldStopped stops folds after so many steps more each time.
func testFoldStopped(t *testing.T, h home, stride int) {
	t.Helper()
	view := h.kinds()
	want, err := treecmp.Read(view, merged)
	require.NoError(t, err)
	steps := 0
	for ; ; steps += stride {
		name, crashed := fmt.Sprint("v-", steps), fmt.Sprint("crashed-", steps)
		h.clone(name, "v")
		done := h.stopped(name, steps)
		h.clone(crashed, name)
		s, lower, err := inspect(h.open(crashed))
		require.NoError(t, err)
		switch {
		case done:
			h.isPlain(name)
		case s == stateShared: // nothing has changed
			frozen, unmount := h.view(crashed, "lower")
			treecmp.Equal(t, view, frozen, treecmp.Options{Roots: true, LinksInTree: true, SkipXattr: isNote})
			unmount()
			fallthrough
		default:
			require.NotEqual(t, stateNone, s)
			if s == stateFolding && lower != "" {
				require.Equal(t, "lower", lower)
			}
		}
		// Stopped again and again, soon after it has begun.
		for more := 2; !h.stopped(crashed, more); more++ {
		}
		for _, folded := range []string{name, crashed} {
			h.fold(folded)
			got, err := treecmp.Read(h.path(folded), merged)
			require.NoError(t, err)
			require.Empty(t, want.Diff(got, merged), "after %d steps", steps)
		}
		if done {
			break
		}
	}
	t.Logf("%d steps", steps)
	assert.Greater(t, steps, 50)
}

// TestFoldWhileMounting folds beside an overlay that nobody finds, since its mount has not ended. Each write in it is in the
// folded volume, or fails.
func TestFoldWhileMounting(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	for i := range 20 {
		dir := fmt.Sprint(h.path("lower"), "/d-", i)
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.WriteFile(dir+"/file", []byte("lower"), 0o644))
	}
	h.seal("lower")
	for round := range 20 {
		name := fmt.Sprint("v-", round)
		h.prepare(name, "lower")
		view, unmount := h.mount(name, "lower")
		for i := range 10 { // some directories are copied up before
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/d-%d/before", view, i), nil, 0o644))
		}
		var written []string
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				file := fmt.Sprintf("/d-%d/%d", i%20, i)
				if i%3 == 0 {
					file = fmt.Sprintf("/d-%d/file", i/3%20)
				}
				if os.WriteFile(view+file, []byte(file), 0o644) == nil {
					written = append(written, file)
				}
			}
		}()
		time.Sleep(time.Duration(round) * 100 * time.Microsecond)
		err := fold(t.Context(), h.open(name), nil)
		close(stop)
		<-stopped
		unmount()
		if err != nil { // a name came when its directory had been read
			require.ErrorIs(t, err, unix.ENOTEMPTY)
			h.fold(name)
		}
		h.isPlain(name)
		for _, file := range written {
			content, err := os.ReadFile(h.path(name) + file)
			require.NoError(t, err)
			require.Equal(t, file, string(content))
		}
	}
}

func isNote(_, name string) bool { return name == noteXattr }

// TestPrepareStopped has remains of a prepare that a crash has ended. A fold removes them.
func TestPrepareStopped(t *testing.T) {
	h := newHome(t, testfs.Btrfs(t)+"/home")
	h.create("lower")
	require.NoError(t, os.WriteFile(h.path("lower/f"), nil, 0o600))
	h.seal("lower")
	for name, remains := range map[string][]string{"mark": nil, "work": {"work"}, "staged": {"work", "upper.new"}} {
		h.clone(name, "lower")
		own := h.path(name) + "/.cowshed"
		require.NoError(t, os.Mkdir(own, 0o700))
		require.NoError(t, makePrivate(int(h.open(name+"/.cowshed").Fd()), "lower"))
		for _, dir := range remains {
			require.NoError(t, os.Mkdir(own+"/"+dir, 0o700))
		}
		s, _, err := inspect(h.open(name))
		require.NoError(t, err)
		require.Equal(t, stateFolding, s)
		h.fold(name)
		treecmp.Equal(t, h.path("lower"), h.path(name), treecmp.Options{})
	}
}

// TestFoldOnAFullDisk folds where no block is left, and again with room.
func TestFoldOnAFullDisk(t *testing.T) {
	mnt := testfs.Btrfs(t, testfs.WithSize(256<<20))
	h := newHome(t, mnt+"/home")
	h.create("lower")
	require.NoError(t, os.Mkdir(h.path("lower/d"), 0o755))
	const files = 3000
	for i := range files {
		require.NoError(t, os.WriteFile(filepath.Join(h.path("lower/d"), fmt.Sprint(i)), nil, 0o600))
	}
	h.seal("lower")
	h.prepare("v", "lower")
	view, unmount := h.mount("v", "lower")
	for i := range files {
		path := filepath.Join(view, "d", fmt.Sprint(i))
		if i%3 == 0 {
			require.NoError(t, os.Remove(path))
		} else {
			require.NoError(t, os.Chmod(path, 0o640))
		}
	}
	want, err := treecmp.Read(view, merged)
	require.NoError(t, err)
	unmount()
	testfs.Fill(t, mnt, testfs.Data, 100)
	testfs.Fill(t, mnt, testfs.Metadata, 100)

	err = fold(t.Context(), h.open("v"), nil)
	if err != nil {
		t.Log(err)
		require.True(t, fault.IsFull(err), "%v", err)
		s, _, err := inspect(h.open("v"))
		require.NoError(t, err)
		require.NotEqual(t, stateNone, s)
	}
	require.NoError(t, os.RemoveAll(mnt+"/filler"))
	h.fold("v")
	got, err := treecmp.Read(h.path("v"), merged)
	require.NoError(t, err)
	require.Empty(t, want.Diff(got, merged))
}
