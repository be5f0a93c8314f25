package mounttable

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/eintr"
)

// IsUpper reports whether a directory is the upper of a mounted overlay, by whichever path, in any mount namespace or in none.
//
// IsUpper asks the kernel for an overlay that must not share its upper, and that has no valid work directory. So the kernel
// makes no overlay. It looks at the upper first: EBUSY says that another overlay has it, EINVAL that none has.
func IsUpper(dir *os.File) (bool, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("ask for an overlay: %w", err)
	}
	defer unix.Close(fd)
	at := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	for _, option := range [][2]string{{"lowerdir", at}, {"upperdir", at}, {"workdir", at}, {"index", "on"}} {
		if err := unix.FsconfigSetString(fd, option[0], option[1]); err != nil {
			return false, fmt.Errorf("%s of an overlay: %w", option[0], err)
		}
	}
	err = eintr.Ignore(func() error { return unix.FsconfigCreate(fd) })
	switch {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case errors.Is(err, unix.EINVAL):
		return false, nil
	}
	return false, fmt.Errorf("ask for an overlay of %s: %w", dir.Name(), err)
}
