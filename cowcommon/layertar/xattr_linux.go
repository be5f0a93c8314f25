package layertar

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// The form of a file capability (struct vfs_cap_data and vfs_ns_cap_data of the kernel's
// include/uapi/linux/capability.h): the revision is the highest byte of the first 32 bits, little-endian.
const (
	capRevisionAt = 3
	capRevision2  = 2
	capRevision3  = 3
	capLen2       = 20 // revision 3 has the user id of the namespace's root after it
)

const capability = treeat.Capability

// xattrReader reads extended attributes into buffers of its own.
type xattrReader struct {
	names, value []byte
}

// records returns the PAX records of a file's extended attributes, nil if it has none.
func (x *xattrReader) records(t treeat.File, opts *WriteOptions) (map[string]string, error) {
	if x.names == nil {
		x.names, x.value = make([]byte, treeat.MaxXattrNames), make([]byte, treeat.MaxXattrValue)
	}
	n, err := t.ListXattr(x.names)
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOTSUP):
		return nil, nil //nolint:nilnil // none
	case errors.Is(err, unix.E2BIG):
		return nil, fmt.Errorf("%w: %w", ErrManyXattrs, err)
	default:
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var records map[string]string
	for names := x.names[:n]; len(names) > 0; {
		i := bytes.IndexByte(names, 0)
		if i < 0 {
			break
		}
		name := string(names[:i])
		names = names[i+1:]
		if !treeat.Exported(name) {
			continue
		}
		if strings.Contains(name, "=") {
			logger(opts.Logger).Warn("layertar: extended attribute cannot be written to a layer", "file", t.Name, "attribute", name)
			continue
		}
		value, err := x.get(t, name)
		if err == nil && !opts.IDMap.Empty() && (name == aclAccess || name == aclDefault) {
			value, err = mapACL(value, opts.IDMap, user.IdentityMapping.ToContainer)
		}
		if err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", treeat.Quote(name), err)
		}
		if records == nil {
			records = make(map[string]string)
		}
		records[paxXattr+name] = value
	}
	return records, nil
}

func (x *xattrReader) get(t treeat.File, name string) (string, error) {
	n, err := t.GetXattr(name, x.value)
	if err != nil {
		return "", err
	}
	value := x.value[:n]
	if name == capability && n >= capLen2 && value[capRevisionAt] == capRevision3 {
		// The user namespace that it holds in means nothing elsewhere.
		value = value[:capLen2]
		value[capRevisionAt] = capRevision2
	}
	return string(value), nil
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}
