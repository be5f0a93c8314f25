package filemeta

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

const (
	modeMask    = 0o7777
	specialBits = 0o7000

	seLinuxLabel = "security.selinux"
)

// Copier copies attributes, and counts extended attributes that the filesystem of the targets does not have.
type Copier struct {
	// IsContent tells the extended attributes that are copied.
	IsContent func(name string) bool

	names, value, other []byte

	leftOut int
	first   error
}

// Set gives a file the attributes of another, except times. st describes the other.
func (m *Copier) Set(target, source treeat.File, st *unix.Stat_t) error {
	var now unix.Stat_t
	var err error
	if target.FD >= 0 {
		err = unix.Fstat(target.FD, &now)
	} else {
		err = treeat.Lstat(target.Dir, target.Name, &now)
	}
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	chowned := now.Uid != st.Uid || now.Gid != st.Gid
	if chowned {
		if err := target.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	acl, err := m.xattrs(target, source)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil // has no mode of its own
	}
	// A change of owner takes setuid and setgid away, and an ACL comes with permission bits.
	if now.Mode&modeMask != st.Mode&modeMask || acl || chowned && st.Mode&specialBits != 0 {
		if err := target.Chmod(st.Mode & modeMask); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return nil
}

// xattrs gives a file the extended attributes of another, and no others. acl: the access ACL has changed.
func (m *Copier) xattrs(target, source treeat.File) (acl bool, err error) {
	want, err := m.list(source)
	if err != nil {
		return false, err
	}
	have, err := m.list(target)
	if err != nil {
		return false, err
	}
	for name := range have {
		if want[name] {
			continue
		}
		err := target.RemoveXattr(name)
		if errors.Is(err, unix.EACCES) && name == seLinuxLabel {
			continue // with SELinux each file has a label, which cannot be removed
		}
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return false, fmt.Errorf("remove extended attribute %s: %w", treeat.Quote(name), err)
		}
		acl = acl || name == treeat.ACLAccess
	}
	for name := range want {
		changed, err := m.xattr(target, source, name, have[name])
		if err != nil {
			return false, fmt.Errorf("extended attribute %s: %w", treeat.Quote(name), err)
		}
		acl = acl || changed && name == treeat.ACLAccess
	}
	return acl, nil
}

// xattr copies an extended attribute, unless both files have it with the same value.
func (m *Copier) xattr(target, source treeat.File, name string, has bool) (changed bool, err error) {
	if m.value == nil {
		m.value, m.other = make([]byte, treeat.MaxXattrValue), make([]byte, treeat.MaxXattrValue)
	}
	n, err := source.GetXattr(name, m.value)
	if err != nil {
		return false, err
	}
	if has {
		if o, err := target.GetXattr(name, m.other); err == nil && bytes.Equal(m.value[:n], m.other[:o]) {
			return false, nil
		}
	}
	err = target.SetXattr(name, m.value[:n])
	if errors.Is(err, unix.ENOTSUP) {
		if m.leftOut++; m.leftOut == 1 {
			m.first = fmt.Errorf("%s of %s: %w", treeat.Quote(name), treeat.Quote(target.Name), err)
		}
		return false, nil
	}
	return err == nil, err
}

// list returns the names of the extended attributes of a file that are copied, nil if there are none.
func (m *Copier) list(file treeat.File) (map[string]bool, error) {
	if m.names == nil {
		m.names = make([]byte, treeat.MaxXattrNames)
	}
	n, err := file.ListXattr(m.names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil //nolint:nilnil // none
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var list map[string]bool
	for name := range bytes.SplitSeq(m.names[:n], []byte{0}) {
		if len(name) == 0 || !m.IsContent(string(name)) {
			continue
		}
		if list == nil {
			list = make(map[string]bool)
		}
		list[string(name)] = true
	}
	return list, nil
}

// Log warns of the extended attributes that were left out. operation begins the message.
func (m *Copier) Log(log *slog.Logger, operation string) {
	if m.leftOut > 0 {
		log.Warn(operation+": extended attributes were left out, which the filesystem cannot take", "count", m.leftOut, "first", m.first)
	}
}

// SetTimes sets the times of access and modification.
func SetTimes(target treeat.File, st *unix.Stat_t) error {
	if err := target.SetTimes(&[2]unix.Timespec{st.Atim, st.Mtim}); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
