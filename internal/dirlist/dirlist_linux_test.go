package dirlist

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// TestRead: a name is listed once, although it is exchanged with another or renamed over itself while the directory is read.
func TestRead(t *testing.T) {
	dir := testfs.Btrfs(t)
	var want []string
	for n := range 500 {
		want = append(want, fmt.Sprintf("%03d", n))
		require.NoError(t, os.Mkdir(filepath.Join(dir, want[n]), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "record"), nil, 0o600))
	want = append(want, "record")
	renames := map[string]func() error{
		"exchange": func() error {
			return unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "100"), unix.AT_FDCWD, filepath.Join(dir, "400"), unix.RENAME_EXCHANGE)
		},
		"over itself": func() error {
			if err := os.WriteFile(filepath.Join(dir, ".new"), nil, 0o600); err != nil {
				return err
			}
			return os.Rename(filepath.Join(dir, ".new"), filepath.Join(dir, "record"))
		},
	}
	for name, rename := range renames {
		t.Run(name, func(t *testing.T) {
			read, end := make(chan struct{}), make(chan struct{})
			var group errgroup.Group
			group.Go(func() error {
				for range read { // one rename while each listing is made
					if err := rename(); err != nil {
						return err
					}
				}
				return nil
			})
			go func() { defer close(end); assert.NoError(t, group.Wait()) }()
			for range 300 {
				read <- struct{}{}
				entries, err := Read(dir)
				require.NoError(t, err)
				var got []string
				for _, entry := range entries {
					if entry.Name() != ".new" {
						got = append(got, entry.Name())
					}
				}
				if !assert.Equal(t, want, got) {
					break
				}
			}
			close(read)
			testfs.Receive(t, end)
		})
	}
}

// TestReadQuiet: a directory that has not changed for a while is read once, and its names are sorted.
func TestReadQuiet(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b", "a"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	past := time.Now().Add(-time.Hour)
	for range 2 {
		entries, err := Read(dir)
		require.NoError(t, err)
		assert.True(t, slices.EqualFunc(entries, []string{"a", "b"}, func(e os.DirEntry, name string) bool { return e.Name() == name }))
		require.NoError(t, os.Chtimes(dir, past, past))
	}
	_, err := Read(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
