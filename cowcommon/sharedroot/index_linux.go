package sharedroot

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/dirlist"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// index is a directory with a symbolic link for each volume that may be shared. The link has the name of the volume,
// and its target is the name of the lower. It is made before the volume becomes shared, and removed after the volume has
// ceased to be. So a volume without a link is not shared. A volume with a link may be, which its own tree says.
type index struct {
	dir string
}

// make makes the directory, unless it is there.
func (x index) make() error {
	err := os.Mkdir(x.dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncdir.Sync(filepath.Dir(x.dir))
}

// lower returns the lower that is noted for a volume, or "".
func (x index) lower(name string) (string, error) {
	if err := cowcommon.CheckID(name); err != nil {
		return "", err
	}
	lower, err := os.Readlink(filepath.Join(x.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return lower, err
}

// add notes, so that it survives a power cut, that a volume may be shared.
func (x index) add(name, lower string) error {
	if noted, err := x.lower(name); err != nil || noted == lower {
		return err
	}
	return errors.Join(x.put(name, lower), x.sync())
}

// sync makes notes survive a power cut.
func (x index) sync() error { return syncdir.Sync(x.dir) }

// put writes a note, in place of one of the same name.
func (x index) put(note, text string) error {
	staged := filepath.Join(x.dir, staging.Name(stagedNotes))
	if err := os.Symlink(text, staged); err != nil {
		return err
	}
	err := os.Rename(staged, filepath.Join(x.dir, note))
	if err != nil {
		return errors.Join(err, os.Remove(staged))
	}
	return nil
}

// forget removes the note about a volume, if there is one.
func (x index) forget(name string) error {
	err := os.Remove(filepath.Join(x.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// syncAll makes all changes of the filesystem of the index durable.
func (x index) syncAll() error {
	dir, err := os.Open(x.dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(dir.Fd())), dir.Close())
}

// all lists the volumes that may be shared.
func (x index) all() (names []string, err error) {
	entries, err := dirlist.Read(x.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		if !isNoVolume(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// users lists the volumes that may have a volume as their lower.
func (x index) users(lower string) (names []string, err error) {
	all, err := x.all()
	if err != nil {
		return nil, err
	}
	for _, name := range all {
		noted, err := x.lower(name)
		if err != nil {
			return nil, err
		}
		if noted == lower {
			names = append(names, name)
		}
	}
	return names, nil
}

// clean removes notes that a crash left half made.
func (x index) clean() error {
	staged, err := filepath.Glob(filepath.Join(x.dir, stagedNotes+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range staged {
		errs = append(errs, os.Remove(file))
	}
	return errors.Join(errs...)
}

// stagedNotes begins the names of notes that are being made. No volume has such a name.
const stagedNotes = ".new-"

func isNoVolume(name string) bool { return cowcommon.CheckID(name) != nil }
