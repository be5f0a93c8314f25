package mounttable

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestDeadServer: a server that does not answer keeps nobody waiting who looks for holders or mounts.
func TestDeadServer(t *testing.T) {
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer file.Close()
	var stat unix.Stat_t
	require.NoError(t, unix.Fstat(int(file.Fd()), &stat))
	fs, err := New(int(file.Fd()))
	require.NoError(t, err)

	end := testfs.DeadServer(t, dir)
	inside, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(inside)
	waits := make(chan error, 1)
	go func() {
		var stat unix.Stat_t
		waits <- unix.Stat(dir, &stat)
	}()

	testfs.Within(t, func() {
		assert.False(t, HasOpen(os.Getpid(), File{Device: stat.Dev, Inode: stat.Ino + 1<<40}))
		assert.True(t, HasOpen(os.Getpid(), File{Device: stat.Dev, Inode: stat.Ino}))
		assert.Contains(t, Holders(File{Device: stat.Dev, Inode: stat.Ino}), os.Getpid())
	})
	for _, fs := range []*Filesystem{fs, fs.ByProc()} {
		testfs.Within(t, func() {
			uses, err := fs.UsesOf("/nothing/of/that/name", nil)
			require.NoError(t, err)
			assert.Empty(t, uses)
		})
	}
	uses, err := UsesOfSource("fuse", func(source string) bool { return source == "dead-server" })
	require.NoError(t, err)
	require.NotEmpty(t, uses)
	assert.Contains(t, InUse("it", uses).Error(), "it is mounted on ")

	select {
	case err := <-waits:
		t.Fatalf("stat did not wait: %v", err)
	default:
	}
	end()
	assert.Error(t, testfs.Receive(t, waits))
}

func TestLayersOf(t *testing.T) {
	for options, layers := range map[string][]string{
		"rw,lowerdir=/a:/b,upperdir=/c,workdir=/d,index=off": {"/a", "/b", "/c", "/d"},
		"ro,lowerdir+=/a,lowerdir+=/b:c,datadir+=/d":         {"/a", "/b:c", "/d"},
		`ro,lowerdir=/a\134:b:/c\040d::/e`:                   {"/a:b", "/c d", "/e"},
		"rw":                                                 nil,
	} {
		assert.Equal(t, layers, LayersOf(options), options)
	}
}

func TestLooksWithin(t *testing.T) {
	for path, want := range map[string]bool{
		"/gone/subvolumes/web":        true,
		"/gone/subvolumes/web/inside": true,
		"subvolumes/web":              true,
		"../subvolumes/web":           true,
		"web":                         true,
		"web/inside":                  true,
		"/web":                        false,
		"/gone/subvolumes/web2":       false,
		"/gone/subvolumes":            false,
		"/gone/xsubvolumes/web":       false,
		"website":                     false,
	} {
		assert.Equal(t, want, looksWithin(path, "/home/subvolumes/web"), path)
	}
}

func TestWithin(t *testing.T) {
	assert.True(t, within("/a/b", "/a/b"))
	assert.True(t, within("/a/b/c", "/a/b"))
	assert.True(t, within("/a", "/"))
	assert.False(t, within("/a/bc", "/a/b"))
	assert.False(t, within("/a", "/a/b"))
}
