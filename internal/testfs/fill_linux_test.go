package testfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const small = 256 << 20

func TestFillData(t *testing.T) {
	mnt := Btrfs(t, WithSize(small))
	file := filepath.Join(mnt, "file")
	for _, percent := range []int{95, 98} {
		Fill(t, mnt, Data, percent)
		var stat unix.Statfs_t
		require.NoError(t, unix.Statfs(mnt, &stat))
		used := stat.Blocks - stat.Bfree
		assert.InDelta(t, percent, 100*float64(used)/float64(used+stat.Bavail), 2)
	}
	Fill(t, mnt, Data, 100)
	f, err := os.Create(file)
	require.NoError(t, err, "there is room for metadata")
	defer f.Close()
	_, err = f.Write(make([]byte, 64<<10))
	assert.ErrorIs(t, err, unix.ENOSPC)
}

func TestFillMetadata(t *testing.T) {
	for name, dataToo := range map[string]bool{"data left": false, "nothing left": true} {
		t.Run(name, func(t *testing.T) {
			mnt := Btrfs(t, WithSize(small))
			if dataToo {
				Fill(t, mnt, Data, 100)
			}
			Fill(t, mnt, Metadata, 75)
			require.NoError(t, os.Mkdir(filepath.Join(mnt, "directory"), 0o700))
			Fill(t, mnt, Metadata, 100)
			assert.ErrorIs(t, os.Mkdir(filepath.Join(mnt, "directory", "another"), 0o700), unix.ENOSPC)
			assert.NoError(t, os.RemoveAll(filepath.Join(mnt, fillerName)))
		})
	}
}
