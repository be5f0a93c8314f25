//go:build !linux

package migrate

import (
	"context"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

func changedSince(context.Context, *os.File, time.Time) (bool, error) {
	return false, errdefs.ErrNotImplemented
}
