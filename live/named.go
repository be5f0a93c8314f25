package live

import (
	"errors"
	"io/fs"
	"os"

	"github.com/cowshed/cowshed/internal/syncdir"
)

// A new layer must not get the snapshots of a former layer of its name. Among many moments these take long to find. So a directory has a
// mark for each tag of which a moment may have a name. Without the directory, all moments are looked at.

// markNamed makes the mark of a layer that is about to get a snapshot.
func (l *Layers) markNamed(layer string) error {
	mark := l.path(namedDir, tag(layer))
	if _, err := os.Lstat(mark); err == nil {
		return nil
	}
	f, err := os.OpenFile(mark, os.O_CREATE|os.O_WRONLY|noFollow, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // a Sweep makes the directory
		return nil
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = syncdir.Sync(l.path(namedDir))
	}
	return err
}

// mayBeNamed reports whether a layer of one of the names may have had snapshots that are there.
func (l *Layers) mayBeNamed(names ...string) (bool, error) {
	if _, err := os.Lstat(l.path(namedDir)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			_, err = os.Lstat(l.path(momentsDir))
			return err == nil, nil // without moments there is nothing to look at
		}
		return false, err
	}
	for _, name := range names {
		_, err := os.Lstat(l.path(namedDir, tag(name)))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// sweepNamed removes the marks of layers without moments, and makes the directory if it is missing. The caller is alone.
func (l *Layers) sweepNamed() error {
	tags := make(map[string]bool)
	for _, dir := range []string{momentsDir, pendingDir} {
		volumes, err := l.recorded(dir, "")
		if err != nil {
			return err
		}
		for _, volume := range volumes {
			tags[tagOf(volume)] = true
		}
	}
	marks, err := os.ReadDir(l.path(namedDir))
	if errors.Is(err, fs.ErrNotExist) {
		return l.makeNamed(tags)
	}
	for _, mark := range marks {
		if !tags[mark.Name()] {
			err = errors.Join(err, os.Remove(l.path(namedDir, mark.Name())))
		}
	}
	return err
}

// makeNamed makes the directory of the marks with all of them at once.
func (l *Layers) makeNamed(tags map[string]bool) error {
	unfinished := l.path(temporaryPrefix + namedDir)
	err := os.RemoveAll(unfinished)
	if err == nil {
		err = os.Mkdir(unfinished, 0o700)
	}
	for t := range tags {
		if err == nil {
			err = os.WriteFile(l.path(temporaryPrefix+namedDir, t), nil, 0o600)
		}
	}
	if err == nil {
		err = syncdir.Sync(unfinished)
	}
	if err == nil {
		err = os.Rename(unfinished, l.path(namedDir))
	}
	return err
}
