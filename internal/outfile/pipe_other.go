//go:build !linux

package outfile

import "os"

func tryOpenPipe(path string) (*os.File, error) { return os.OpenFile(path, os.O_WRONLY, 0) }
