package sharedroot

import (
	"log/slog"

	"github.com/cowshed/cowshed/cowcommon"
)

// Options configures shared roots. The zero value is usable.
type Options struct {
	Default  cowcommon.RootStyle // of clones that name none; DefaultRoot: SnapshotRoot
	GID      int                 // group that may pass through the directory of mount points, besides root
	ReadOnly bool                // the Backend inside was opened for reading alone
	Logger   *slog.Logger        // nil: slog.Default
}
