package daemon

import "golang.org/x/sys/unix"

// filesystemSpace is the space of the filesystem that holds dir in bytes, by state; nil if it cannot be told.
func filesystemSpace(dir string) map[string]uint64 {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return nil
	}
	block := uint64(stat.Bsize)
	return map[string]uint64{
		"total":     stat.Blocks * block,
		"free":      stat.Bfree * block,
		"available": stat.Bavail * block,
	}
}
