//go:build !linux

package live

import "os"

const noFollow, nonBlock = 0, 0

// checkTrusted does nothing where no driver works.
func checkTrusted(string, *os.File) error { return nil }
