//go:build !linux

package cowdriver

import "os"

// openInRoot opens name for reading without leaving root. Absolute symbolic links are refused.
func openInRoot(root *os.Root, name string) (*os.File, error) { return root.Open(name) }
