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

// ProcPath names the file of a descriptor, or a name in it, for calls that take only paths.
func ProcPath(fd int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	if name != "" {
		p += "/" + name
	}
	return p
}
