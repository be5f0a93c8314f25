package treeat

import "strings"

// Extended attributes with a form of their own.
const (
	Capability = "security.capability"
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

// The most that the kernel returns: XATTR_LIST_MAX and XATTR_SIZE_MAX.
const (
	MaxXattrNames = 64 << 10
	MaxXattrValue = 64 << 10
)

// Exported says whether an extended attribute belongs to the content of a layer.
func Exported(name string) bool {
	switch name {
	case Capability, ACLAccess, ACLDefault:
		return true
	}
	for _, space := range []string{"user.", "trusted."} {
		if rest, ok := strings.CutPrefix(name, space); ok {
			// Where the layer is applied, records of overlay filesystems and of Cowshed about a directory would be
			// taken for instructions.
			return !strings.HasPrefix(rest, "overlay.") && !strings.HasPrefix(rest, "fuseoverlayfs.") &&
				!strings.HasPrefix(rest, "cowshed.")
		}
	}
	return false
}
