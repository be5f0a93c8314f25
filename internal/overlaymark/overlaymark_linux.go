package overlaymark

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// Read reads a mark, whose attribute has that name in one of the spaces. A value that is longer than a mark has is cut
// off.
func Read(file treeat.File, name string, spaces ...string) (value string, is bool, err error) {
	var buf [8]byte
	for _, space := range spaces {
		n, err := file.GetXattr(space+name, buf[:])
		switch {
		case err == nil:
			return string(buf[:n]), true, nil
		case errors.Is(err, unix.ERANGE):
			return "", true, nil
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		default:
			return "", false, fmt.Errorf("extended attribute %s: %w", space+name, err)
		}
	}
	return "", false, nil
}

// Opaque reports whether a directory hides the directory below. Returns [ErrRedirected] if its content is elsewhere.
func Opaque(dir treeat.File, spaces ...string) (bool, error) {
	if _, moved, err := Read(dir, "redirect", spaces...); err != nil || moved {
		return false, errors.Join(err, ErrRedirected)
	}
	value, is, err := Read(dir, "opaque", spaces...)
	return is && value == "y", err
}
