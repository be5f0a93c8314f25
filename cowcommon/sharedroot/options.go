package sharedroot

import (
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// indexName is the directory of a home whose volumes can have shared roots. It has a symbolic link for each volume that may
// be shared, to the name of its lower.
const indexName = "shared"

// IsOn reports whether a home was opened with shared roots before.
func IsOn(home string) bool {
	info, err := os.Lstat(filepath.Join(home, indexName))
	return err == nil && info.IsDir()
}

// Options configures shared roots. The zero value is usable.
type Options struct {
	GID      int          // group that may pass through the directory of mount points, besides root
	ReadOnly bool         // the Backend inside was opened for reading alone
	Logger   *slog.Logger // nil: slog.Default

	// LongestRead is how long others may wait for a volume that is read without a snapshot. 0: 50 ms.
	LongestRead time.Duration
}
