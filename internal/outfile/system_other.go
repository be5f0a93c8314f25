//go:build !linux

package outfile

import (
	"io/fs"
	"os"
)

func tryOpenPipe(path string) (*os.File, error) { return os.OpenFile(path, os.O_WRONLY, 0) }

func rename(from, to string, replace bool) error {
	if _, err := os.Lstat(to); err == nil && !replace {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: fs.ErrExist}
	}
	return os.Rename(from, to)
}
