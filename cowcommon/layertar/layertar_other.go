//go:build !linux

package layertar

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/moby/go-archive"
)

// Write is implemented on Linux only. Elsewhere it answers errors.ErrUnsupported.
func Write(context.Context, io.Writer, string, []archive.Change, WriteOptions) error {
	return fmt.Errorf("layertar: write: %w", errors.ErrUnsupported)
}

// Apply is implemented on Linux only. Elsewhere it answers errors.ErrUnsupported.
func Apply(context.Context, string, io.Reader, ApplyOptions) (int64, error) {
	return 0, fmt.Errorf("layertar: apply: %w", errors.ErrUnsupported)
}
