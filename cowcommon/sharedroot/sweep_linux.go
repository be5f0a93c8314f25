package sharedroot

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/mountdir"
	"github.com/cowshed/cowshed/internal/namelock"
)

// Sweep unmounts the overlays of views that killed processes have left in a home, unless somebody has it open with shared
// roots. It comes before the Backend inside is opened, which cannot destroy the views below an overlay on ZFS.
func Sweep(home string, log *slog.Logger) {
	if !IsOn(home) {
		return
	}
	if err := sweep(home); err != nil {
		log.Warn("shared roots: views are left over, and cannot be unmounted", "home", home, "error", err)
	}
}

func sweep(home string) error {
	home, err := filepath.Abs(home)
	if err == nil {
		home, err = filepath.EvalSymlinks(home) // as the kernel lists mount points
	}
	if err != nil {
		return err
	}
	lock, alone, err := namelock.TryExclusive(homedir.LockFile(home), openKey)
	if err != nil || !alone {
		return err
	}
	return lock.Unlock(func() error {
		err := mountdir.UnmountBelow(filepath.Join(home, rootsName), func(m *mountinfo.Info) bool {
			return strings.HasPrefix(filepath.Base(m.Mountpoint), viewPrefix)
		})
		if errors.Is(err, fs.ErrNotExist) { // no overlay was ever mounted
			return nil
		}
		return err
	})
}
