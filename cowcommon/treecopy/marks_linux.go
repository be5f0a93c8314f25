package treecopy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// overlays reports whether marks are attributes and devices, and files whether they are files.
func (m Marks) overlays() bool { return m != AufsMarks }

func (m Marks) files() bool { return m != OverlayMarks }

// meaning is the meaning of a name in a directory of changes.
type meaning struct {
	skip     bool   // nothing
	whiteout bool   // gone has been removed
	gone     string // in the same directory
	metacopy bool   // the data of the file is in the layer below
}

// mean returns the meaning of an entry of src.
func (m Marks) mean(e *entry) (meaning, error) {
	if m.files() && strings.HasPrefix(e.name, archive.WhiteoutPrefix) {
		return whiteoutFile(e)
	}
	if !m.overlays() {
		return meaning{}, nil
	}
	switch e.kind() {
	case unix.S_IFCHR:
		if e.st.Rdev == 0 {
			return meaning{whiteout: true, gone: e.name}, nil
		}
	case unix.S_IFREG:
		return m.meanFile(e)
	}
	return meaning{}, nil
}

// whiteoutFile returns the meaning of a file whose name begins with ".wh.".
func whiteoutFile(e *entry) (meaning, error) {
	if strings.HasPrefix(e.name, archive.WhiteoutMetaPrefix) || e.kind() == unix.S_IFDIR {
		return meaning{skip: true}, nil // read with its directory, or the filesystem's own
	}
	gone := strings.TrimPrefix(e.name, archive.WhiteoutPrefix)
	switch gone {
	case "", ".", "..":
		return meaning{}, fault.New(errdefs.ErrInvalidArgument, "a whiteout of %q", gone)
	}
	var st unix.Stat_t
	err := treeat.Lstat(e.srcDir, gone, &st)
	if err == nil { // it replaces all that was there
		return meaning{skip: true}, nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return meaning{}, fmt.Errorf("stat: %w", err)
	}
	return meaning{whiteout: true, gone: gone}, nil
}

// meanFile returns the meaning of a regular file in an overlay's layer.
func (m Marks) meanFile(e *entry) (meaning, error) {
	// Most files have no attributes.
	var none [1]byte
	if n, err := e.source().ListXattr(none[:0]); err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return meaning{}, err
	}
	if e.st.Size == 0 {
		_, is, err := overlaymark.Read(e.source(), "whiteout", m.Spaces()...)
		if err != nil || is {
			return meaning{whiteout: is, gone: e.name}, err
		}
	}
	_, is, err := overlaymark.Read(e.source(), "metacopy", m.Spaces()...)
	if err != nil || !is {
		return meaning{}, err
	}
	if _, moved, err := overlaymark.Read(e.source(), "redirect", m.Spaces()...); err != nil || moved {
		return meaning{}, errors.Join(err, ErrRedirected)
	}
	return meaning{metacopy: true}, nil
}

// opaque reports whether the directory of an entry of src hides the directory below.
func (m Marks) opaque(e *entry) (bool, error) {
	if m.overlays() {
		if is, err := overlaymark.Opaque(e.source(), m.Spaces()...); err != nil || is {
			return is, err
		}
	}
	if !m.files() {
		return false, nil
	}
	dir, err := treeat.OpenDir(e.srcDir, e.name)
	if err != nil {
		return false, err
	}
	defer unix.Close(dir)
	is, err := exists(dir, archive.WhiteoutOpaqueDir)
	if err != nil || is || e.name == "." {
		return is, err
	}
	return exists(e.srcDir, archive.WhiteoutPrefix+e.name)
}

func exists(dir int, name string) (bool, error) {
	var st unix.Stat_t
	err := treeat.Lstat(dir, name, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return false, nil
	}
	return err == nil, err
}
