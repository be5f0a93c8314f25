// Package treeat makes system calls on names in open directories. None follows a symbolic link, so that nothing outside
// of a tree is reached, whatever is in it.
package treeat

import "strconv"

// Quote makes a name fit for a message: on one line and of bounded length.
func Quote(name string) string {
	const most = 256
	if len(name) <= most {
		return strconv.Quote(name)
	}
	return strconv.Quote(name[:most]) + "…"
}
