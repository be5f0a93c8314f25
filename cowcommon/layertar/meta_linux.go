package layertar

import (
	"archive/tar"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

const (
	permMask    = 0o777
	modeMask    = 0o7777
	specialBits = 0o7000
	maxID       = 1<<32 - 2 // the highest is "do not change" (chown(2))
	keepID      = -1
)

// meta has a file's attributes in its header.
type meta struct {
	uid, gid int    // keepID: as the kernel made it
	mode     uint32 // the lower 12 bits
	times    [2]unix.Timespec
	moved    bool    // the times are not those of the header
	xattrs   []xattr // sorted by name
}

type xattr struct {
	name, value string
	malformed   error // why no filesystem can take the value, if that is known
}

// lateMeta has attributes that are set on a directory when nothing more will be made in it.
type lateMeta struct {
	times      [2]unix.Timespec
	defaultACL *xattr
}

// metaOf reads a header.
func metaOf(hdr *tar.Header, ids user.IdentityMapping) (meta, error) {
	uid, gid, err := ids.ToHost(hdr.Uid, hdr.Gid)
	if err != nil {
		return meta{}, err
	}
	if uid < 0 || int64(uid) > maxID || gid < 0 || int64(gid) > maxID {
		return meta{}, fmt.Errorf("%w: owner %d:%d", ErrMalformed, uid, gid)
	}
	atime := hdr.AccessTime
	if atime.Before(hdr.ModTime) {
		atime = hdr.ModTime
	}
	m := meta{
		uid: uid, gid: gid,
		mode:  uint32(hdr.Mode & modeMask),
		times: [2]unix.Timespec{timespec(atime), timespec(hdr.ModTime)},
		moved: outOfBounds(hdr.ModTime) || outOfBounds(atime),
	}
	m.xattrs, err = xattrsOf(hdr, ids)
	return m, err
}

// xattrsOf returns the extended attributes of a header.
func xattrsOf(hdr *tar.Header, ids user.IdentityMapping) ([]xattr, error) {
	var xs []xattr
	names := 0
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if names += len(name) + 1; names > treeat.MaxXattrNames || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf("%w: extended attributes that no file can have", ErrMalformed)
		}
		var malformed error
		if !ids.Empty() && (name == aclAccess || name == aclDefault) {
			var err error
			if value, err = mapACL(value, ids, user.IdentityMapping.ToHost); errors.Is(err, ErrMalformed) {
				malformed = err
			} else if err != nil {
				return nil, err
			}
		}
		xs = append(xs, xattr{name, value, malformed})
	}
	slices.SortFunc(xs, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	return xs, nil
}

// setter sets attributes, and counts attributes that could not be set and need not be.
type setter struct {
	xattrs XattrPolicy

	mu      sync.Mutex
	leftOut leftOutXattrs
	moved   movedTimes
}

// set gives a file that is not yet linked from elsewhere the attributes of m, except times. st is its present state.
// Equal attributes are not set again: each call would be a change to the inode that the filesystem has to record.
func (s *setter) set(t treeat.File, st *unix.Stat_t, m *meta) error {
	chowned := m.uid != keepID && int(st.Uid) != m.uid || m.gid != keepID && int(st.Gid) != m.gid
	if chowned {
		if err := t.Chown(m.uid, m.gid); err != nil {
			return fmt.Errorf("set owner to %d:%d: %w", m.uid, m.gid, err)
		}
	}
	aclSet := false
	for _, x := range m.xattrs {
		err := x.malformed
		if err == nil {
			err = t.SetXattr(x.name, []byte(x.value))
		}
		switch {
		case err == nil:
			aclSet = aclSet || x.name == aclAccess
		case s.xattrs.leavesOut(x.name, st.Mode, err):
			s.leaveOut(t.Name, x.name, err)
		default:
			return fmt.Errorf("set extended attribute %s: %w", treeat.Quote(x.name), err)
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil // has no mode of its own
	}
	// A change of owner takes setuid and setgid away, an ACL comes with permission bits.
	if st.Mode&modeMask != m.mode || (chowned && m.mode&specialBits != 0) || aclSet {
		if err := t.Chmod(m.mode); err != nil {
			return fmt.Errorf("set mode to %#o: %w", m.mode, err)
		}
	}
	return nil
}

// report logs ignored attributes, once, however many.
func (s *setter) report(log *slog.Logger) {
	if log == nil {
		log = slog.Default()
	}
	s.moved.report(log)
	s.leftOut.report(log)
}

// aclState says whether new files in a directory inherit an ACL.
type aclState uint8

const (
	aclUnknown aclState = iota
	aclNone
	aclInherited
)

// handsDownACL says whether new files in an open directory inherit an ACL from it.
func (d *dir) handsDownACL(fd int) bool {
	if d.acl == aclUnknown {
		d.acl = aclNone
		if n, err := unix.Getxattr(treeat.ProcPath(fd, ""), aclDefault, nil); err == nil && n > 0 {
			d.acl = aclInherited
		}
	}
	return d.acl == aclInherited
}

// dropACL takes the ACLs away that a file has inherited.
func dropACL(t treeat.File) error {
	for _, name := range []string{aclAccess, aclDefault} {
		err := t.RemoveXattr(name)
		if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("remove inherited ACL: %w", err)
		}
	}
	return nil
}
