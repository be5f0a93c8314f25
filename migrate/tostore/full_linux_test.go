package tostore

import (
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate/internal/fulldisk"
)

// TestFullFilesystem copies from another filesystem, so that the data of layers needs room too.
func TestFullFilesystem(t *testing.T) {
	mnt := testfs.Btrfs(t, testfs.WithSize(fulldisk.Size))
	p := newPlaceOf(t, testroot.NewSample(t, filepath.Join(testfs.Btrfs(t), "docker"), "overlay2"), mnt)
	fulldisk.Test(t, fulldisk.Host{
		Mountpoint: mnt, Migrate: p.migrate, Things: func() []string { return append(p.volumes(), p.imageNames()...) },
	})
}
