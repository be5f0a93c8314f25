package treediff

import (
	"errors"
	"maps"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/treeat"
)

// sameExtra reports whether two files, described by w.st, are equal in the differences that w.extra names.
func (w *worker) sameExtra(name string, files [2]treeat.File) (bool, error) {
	if w.extra&Times != 0 && w.st[top].Mtime != w.st[base].Mtime {
		return false, nil
	}
	if w.extra&Xattrs == 0 {
		return true, nil
	}
	var values [2]map[string]string
	for s, file := range files {
		var err error
		if values[s], err = w.xattrs.read(file); err != nil {
			return false, w.fail("read extended attributes", side(s), name, err)
		}
	}
	return maps.Equal(values[top], values[base]), nil
}

// xattrReader reads extended attributes and uses its memory again for the next.
type xattrReader struct{ names, value []byte }

// read reads the attributes of a file that are content, by name. A file that vanished has none.
func (r *xattrReader) read(file treeat.File) (values map[string]string, err error) {
	if r.names == nil {
		r.names, r.value = make([]byte, treeat.MaxXattrNames), make([]byte, treeat.MaxXattrValue)
	}
	n, err := file.ListXattr(r.names)
	if isNone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(string(r.names[:n]), "\x00") {
		if name == "" || !filemeta.IsContent(name) {
			continue
		}
		n, err := file.GetXattr(name, r.value)
		if isNone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if values == nil {
			values = make(map[string]string)
		}
		values[name] = string(r.value[:n])
	}
	return values, nil
}

// isNone reports whether an error says that there is no attribute, or no file any more.
func isNone(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODATA) || noSuch(err)
}
