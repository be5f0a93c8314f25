package layertar

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// leavesOut reports whether a file of that mode stays without an attribute that could not be set because of err.
func (p XattrPolicy) leavesOut(name string, mode uint32, err error) bool {
	kind := mode & unix.S_IFMT
	isACL := name == aclAccess || name == aclDefault
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return p >= SupportedXattrs
	case errors.Is(err, unix.EINVAL), errors.Is(err, ErrMalformed):
		return p >= SupportedXattrs && isACL
	case errors.Is(err, unix.EACCES) && name == aclDefault && kind != unix.S_IFDIR: // as in set_posix_acl of the kernel
		return p >= SupportedXattrs
	case errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user.") && kind != unix.S_IFREG && kind != unix.S_IFDIR: // as in xattr_permission
		return true
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return p == BestEffortXattrs
	}
	return false
}

// leftOutXattrs counts the attributes that were left out.
type leftOutXattrs struct {
	count        int
	first        error
	capabilities int
	firstProgram string
}

// leaveOut counts an attribute of a file that is left out because of err.
func (s *setter) leaveOut(file, name string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &s.leftOut
	if l.count++; l.count == 1 {
		l.first = fmt.Errorf("%s of %s: %w", treeat.Quote(name), treeat.Quote(file), err)
	}
	if name == capability {
		if l.capabilities++; l.capabilities == 1 {
			l.firstProgram = file
		}
	}
}

func (l *leftOutXattrs) report(log *slog.Logger) {
	if l.count > 0 {
		log.Warn("layertar: extended attributes of a layer were left out, which the filesystem cannot take", "count", l.count, "first", l.first)
	}
	if l.capabilities > 0 {
		log.Warn("layertar: programs of a layer lack their capabilities, which the filesystem cannot take", "count", l.capabilities, "first", treeat.Quote(l.firstProgram))
	}
}
