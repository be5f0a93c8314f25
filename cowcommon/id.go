package cowcommon

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// maxIDLength leaves room, within the 255 bytes that btrfs and ZFS allow, for a backend's additions to an id: a
// staging suffix, or the name of the parent dataset.
const maxIDLength = 200

// CheckID reports whether id can name a layer on every backend: 1 to 200 letters, digits and any of
// "_.:-", the first being a letter or digit. So an id is never a path, an option or a hidden file.
// The error is errdefs.ErrInvalidArgument.
func CheckID(id string) error {
	if id == "" {
		return fmt.Errorf("layer id is empty: %w", errdefs.ErrInvalidArgument)
	}
	if len(id) > maxIDLength {
		return fmt.Errorf("layer id %.32q… has %d bytes, more than %d: %w", id, len(id), maxIDLength, errdefs.ErrInvalidArgument)
	}
	for i := range len(id) {
		if c := id[i]; !isAlphanumeric(c) && (i == 0 || !isPunctuation(c)) {
			return fmt.Errorf("layer id %q: byte %d is not allowed; use letters, digits and _.:- with a letter or digit first: %w",
				id, i, errdefs.ErrInvalidArgument)
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
