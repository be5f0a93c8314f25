package cowcommon

import (
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// maxIDLength leaves room, within the 255 bytes that btrfs and ZFS allow, for a backend's additions to an id: a
// staging suffix, or the name of the parent dataset.
const maxIDLength = 200

// CheckID reports whether id can name a layer on every backend: 1 to 200 letters, digits and any of
// "_.:-", the first being a letter or digit. So an id is never a path, an option or a hidden file.
// The error is errdefs.ErrInvalidArgument.
func CheckID(id string) error {
	if id == "" {
		return fault.New(errdefs.ErrInvalidArgument, "layer id is empty")
	}
	if len(id) > maxIDLength {
		return fault.New(errdefs.ErrInvalidArgument, "layer id %.32q… has %d bytes, more than %d", id, len(id), maxIDLength)
	}
	for i := range len(id) {
		if c := id[i]; !isAlphanumeric(c) && (i == 0 || !isPunctuation(c)) {
			return fault.New(errdefs.ErrInvalidArgument, "layer id %q: byte %d is not allowed; use letters, digits and _.:- with a letter or digit first", id, i)
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isPunctuation(c byte) bool {
	switch c {
	case '_', '.', ':', '-':
		return true
	}
	return false
}
