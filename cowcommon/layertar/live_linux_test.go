package layertar

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
)

const bigSize = 8*segmentBytes + 1000

// snapshotted is a subvolume that holds dir/big and dir/small, and a snapshot of it.
type snapshotted struct {
	dir, snapshot string
	live          *Live
	changes       []archive.Change
}

// snapshotOf has the subvolume filled further and then takes the snapshot, age after its files were made.
func snapshotOf(t *testing.T, age time.Duration, fill func(dir string)) *snapshotted {
	t.Helper()
	mnt := testfs.Btrfs(t)
	top, err := os.Open(mnt)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, top.Close()) })
	require.NoError(t, btrfsctl.CreateSubvolume(int(top.Fd()), "live", nil))
	s := &snapshotted{dir: filepath.Join(mnt, "live"), snapshot: filepath.Join(mnt, "snapshot")}
	require.NoError(t, os.Mkdir(s.dir+"/dir", 0o755))
	require.NoError(t, os.WriteFile(s.dir+"/dir/big", bytes.Repeat([]byte("as it was "), bigSize/10), 0o600))
	require.NoError(t, os.WriteFile(s.dir+"/dir/small", bytes.Repeat([]byte("x"), liveBytes), 0o600))
	if fill != nil {
		fill(s.dir)
	}
	require.NoError(t, unix.Syncfs(int(top.Fd())))

	root, err := os.Open(s.dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, root.Close()) })
	s.live = &Live{Root: root, Snapshot: time.Now().Add(age)}
	require.NoError(t, btrfsctl.Snapshot(int(top.Fd()), "snapshot", int(root.Fd()), true, nil))
	for _, path := range []string{"/dir", "/dir/big", "/dir/small"} {
		s.changes = append(s.changes, archive.Change{Path: path, Kind: archive.ChangeAdd})
	}
	time.Sleep(20 * time.Millisecond) // later changes have another change time on any kernel
	return s
}

// write writes the snapshot to w, with the help of the live tree.
func (s *snapshotted) write(t *testing.T, w io.Writer) {
	t.Helper()
	require.NoError(t, Write(t.Context(), w, s.snapshot, s.changes, WriteOptions{Live: s.live, Workers: 1}))
}

// same fails the test unless the tar is that of the snapshot alone.
func (s *snapshotted) same(t *testing.T, got []byte) {
	t.Helper()
	var want bytes.Buffer
	require.NoError(t, Write(t.Context(), &want, s.snapshot, s.changes, WriteOptions{}))
	assert.True(t, bytes.Equal(want.Bytes(), got), "the tar is not that of the snapshot")
}

// cached is how many pages of a file are in the page cache.
func cached(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var stat unix.Cachestat_t
	require.NoError(t, unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0))
	return stat.Cache
}

const longAgo = time.Minute

func TestLiveDataIsReadInPlaceOfTheSnapshots(t *testing.T) {
	s := snapshotOf(t, longAgo, nil)
	require.NoError(t, unix.Mount("", filepath.Dir(s.dir), "", unix.MS_REMOUNT|unix.MS_STRICTATIME, ""))
	before, err := os.Stat(s.dir + "/dir/big")
	require.NoError(t, err)
	testfs.CheckLeaks(t)
	var got bytes.Buffer
	s.write(t, &got)
	assert.Zero(t, cached(t, s.snapshot+"/dir/big"), "read from the snapshot")
	assert.NotZero(t, cached(t, s.snapshot+"/dir/small"), "small files are read from the snapshot")
	s.same(t, got.Bytes())
	after, err := os.Stat(s.dir + "/dir/big")
	require.NoError(t, err)
	assert.Equal(t, before.Sys(), after.Sys(), "the access time too")
}

func TestLiveFileThatChangedJustBeforeTheSnapshotIsLeftAlone(t *testing.T) {
	s := snapshotOf(t, 0, nil)
	var got bytes.Buffer
	s.write(t, &got)
	assert.NotZero(t, cached(t, s.snapshot+"/dir/big"))
	s.same(t, got.Bytes())
}

// Later changes of the live tree never show.
func TestLiveTreeThatChanges(t *testing.T) {
	overwrite := func(t *testing.T, path string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte("different "), bigSize/10), 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	for name, change := range map[string]func(t *testing.T, dir string){
		"written": func(t *testing.T, dir string) { overwrite(t, dir+"/dir/big") },
		"written, with its times put back": func(t *testing.T, dir string) {
			info, err := os.Stat(dir + "/dir/big")
			require.NoError(t, err)
			overwrite(t, dir+"/dir/big")
			require.NoError(t, os.Chtimes(dir+"/dir/big", info.ModTime(), info.ModTime()))
		},
		"written back": func(t *testing.T, dir string) {
			overwrite(t, dir+"/dir/big")
			unix.Sync()
		},
		"longer":  func(t *testing.T, dir string) { require.NoError(t, os.Truncate(dir+"/dir/big", 2*bigSize)) },
		"shorter": func(t *testing.T, dir string) { require.NoError(t, os.Truncate(dir+"/dir/big", 1)) },
		"gone":    func(t *testing.T, dir string) { require.NoError(t, os.Remove(dir+"/dir/big")) },
		"all gone": func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(dir+"/dir"))
		},
		"another file": func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(dir+"/other", bytes.Repeat([]byte("different "), bigSize/10), 0o600))
			require.NoError(t, os.Rename(dir+"/other", dir+"/dir/big"))
		},
		"a symbolic link": func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(dir+"/dir/big", dir+"/moved"))
			require.NoError(t, os.Symlink("../moved", dir+"/dir/big"))
		},
		"a directory that is a symbolic link": func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(dir+"/dir", dir+"/moved"))
			require.NoError(t, os.Symlink("moved", dir+"/dir"))
		},
		"a pipe": func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(dir+"/dir/big"))
			require.NoError(t, unix.Mkfifo(dir+"/dir/big", 0o600))
		},
		"another subvolume": func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(dir+"/dir"))
			top, err := os.Open(dir)
			require.NoError(t, err)
			defer top.Close()
			require.NoError(t, btrfsctl.CreateSubvolume(int(top.Fd()), "dir", nil))
			require.NoError(t, os.WriteFile(dir+"/dir/big", bytes.Repeat([]byte("different "), bigSize/10), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshotOf(t, longAgo, nil)
			change(t, s.dir)
			testfs.CheckLeaks(t)
			var got bytes.Buffer
			s.write(t, &got)
			s.same(t, got.Bytes())
		})
	}
}

// A file may change between two reads of it.
func TestLiveFileThatChangesWhileItIsRead(t *testing.T) {
	s := snapshotOf(t, longAgo, nil)
	big, err := os.OpenFile(s.dir+"/dir/big", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer big.Close()
	testfs.CheckLeaks(t)
	r, w, err := os.Pipe() // of 64 KiB: written data is read only a little later
	require.NoError(t, err)
	var got bytes.Buffer
	done := make(chan error, 1)
	go func() {
		defer r.Close()
		// Most of the first segment, after which the writer has others under way, of the live file.
		if _, err := io.CopyN(&got, r, segmentBytes/2); err != nil {
			done <- err
			return
		}
		_, err := big.WriteAt(bytes.Repeat([]byte("different "), bigSize/10), 0)
		if err == nil {
			_, err = io.Copy(&got, r)
		}
		done <- err
	}()
	s.write(t, w)
	require.NoError(t, w.Close())
	require.NoError(t, <-done)
	assert.NotZero(t, cached(t, s.snapshot+"/dir/big"), "the rest is of the snapshot")
	s.same(t, got.Bytes())
}

// A process that has the file mapped writes to it without a system call.
func TestLiveFileThatIsMapped(t *testing.T) {
	var memory []byte
	s := snapshotOf(t, longAgo, func(dir string) {
		f, err := os.OpenFile(dir+"/dir/big", os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		memory, err = unix.Mmap(int(f.Fd()), 0, bigSize/10*10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		memory[0] = 'A' // the page can be written to from here on, until it is written back
	})
	defer func() { assert.NoError(t, unix.Munmap(memory)) }()
	memory[0], memory[len(memory)-1] = 'B', 'B'
	var got bytes.Buffer
	s.write(t, &got)
	s.same(t, got.Bytes())
	assert.Contains(t, got.String(), "As it was", "the tree was changed before the snapshot")
}

func TestLiveTreeThatIsGone(t *testing.T) {
	s := snapshotOf(t, longAgo, nil)
	top, err := os.Open(filepath.Dir(s.dir))
	require.NoError(t, err)
	defer top.Close()
	require.NoError(t, btrfsctl.DestroySubvolume(int(top.Fd()), "live"))
	var got bytes.Buffer
	s.write(t, &got)
	s.same(t, got.Bytes())
}
