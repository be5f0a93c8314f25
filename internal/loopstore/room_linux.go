package loopstore

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/quota"
)

// Room returns the possible growth of the image, and the free space of its filesystem. Returns fs.ErrNotExist if
// there is no image.
func (s Store) Room() (Room, error) {
	f, err := s.openImage(unix.O_RDONLY)
	if err != nil {
		return Room{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Room{}, err
	}
	free, err := s.free()
	if err != nil {
		return Room{}, err
	}
	room := Room{Free: free}
	if size, has := uint64(info.Size()), allocated(info); size > has {
		room.MayTake = size - has
	}
	return room, nil
}

// allocated is how many bytes a file takes, which are less than its size where it is sparse.
func allocated(info fs.FileInfo) uint64 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(stat.Blocks) * 512
	}
	return 0
}

// free is how many bytes the filesystem of the image has left.
func (s Store) free() (uint64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(s.Image), &stat); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", filepath.Dir(s.Image), err)
	}
	return stat.Bavail * uint64(stat.Bsize), nil
}

// checkRoom returns ErrNoRoom if an image of that size could not be filled, of which has bytes are allocated.
func (s Store) checkRoom(size, has uint64) error {
	free, err := s.free()
	if err != nil || size <= has || size-has <= free {
		return err
	}
	return fmt.Errorf("%w: it may become %s large, and the filesystem of %s has %s left for it",
		ErrNoRoom, quota.FormatSize(size), filepath.Dir(s.Image), quota.FormatSize(has+free))
}
