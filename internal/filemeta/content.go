package filemeta

import (
	"strings"

	"github.com/cowshed/cowshed/internal/treeat"
)

// IsContent reports whether an extended attribute belongs to the content of a file. Others are of the host, or of Cowshed.
func IsContent(name string) bool {
	switch name {
	case treeat.Capability, treeat.ACLAccess, treeat.ACLDefault:
		return true
	}
	return (strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.")) && !strings.HasPrefix(name, "trusted.cowshed.")
}
