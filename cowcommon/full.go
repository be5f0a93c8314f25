package cowcommon

import (
	"errors"
	"syscall"
)

// IsFull reports whether an error is for want of space: the filesystem is full, or a limit is reached.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
