package sharedroot

import (
	"github.com/cowshed/cowshed/cowcommon"
)

// Abandon gives up the locks of a Backend, as the end of its process does, and leaves its mounts.
func Abandon(b cowcommon.Backend) {
	own, _ := cowcommon.As[*Backend](b)
	if own.open != nil {
		_ = own.open.Close()
	}
	_ = own.views.CloseAll(func(_ string, o *overlay) error { return o.lock.Close() })
	_ = own.mounts.CloseAll(func(_ string, m *mounted) error {
		if m.lower == "" {
			return nil
		}
		return m.lock.Close()
	})
}

// SetFlags sets flags of files, such as Immutable.
var SetFlags = setFlags

// Immutable is the flag of a file that nobody can change.
const Immutable = immutable
