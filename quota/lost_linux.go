package quota

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (q *Qgroups) limited() string { return filepath.Join(q.dir.Name(), LimitedName) }

// remember makes the file that says that there are limits, unless the file exists. The caller does so when it turns
// quotas on for a limit, sets a limit, or says how a subvolume is made with one. On a filesystem without room for the file, the
// next limit tries again: until then a later warning is lost, and no limit.
func (q *Qgroups) remember() {
	if q.remembered.Load() {
		return
	}
	f, err := os.OpenFile(q.limited(), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err == nil {
		q.remembered.Store(true)
		_ = f.Close() // nothing was written
	}
}

// Lost reports whether there have been limits that are gone because somebody has turned quotas off.
func (q *Qgroups) Lost() (bool, error) {
	mode, err := q.Mode()
	if err != nil || mode != Off {
		return false, err
	}
	_, err = os.Lstat(q.limited())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
