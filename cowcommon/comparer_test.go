package cowcommon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
)

// unreadable is a Backend that cannot show volumes without a snapshot.
type unreadable struct {
	cowcommon.Backend
	err error
}

func (b *unreadable) ReadUnused(context.Context, string, string, func(ctx context.Context, top, base cowcommon.View) error) error {
	return b.err
}

// A failure that is not to be expected is logged, once: each comparison then takes a snapshot.
func TestCompareUnusedTellsFailure(t *testing.T) {
	var log bytes.Buffer
	b := &unreadable{}
	comparer := cowcommon.NewComparer(b, user.IdentityMapping{}, slog.New(slog.NewTextHandler(&log, nil)))
	compare := func(err error) {
		b.err = err
		require.ErrorIs(t, comparer.CompareUnused(t.Context(), "c", "image", func(context.Context, *cowcommon.Comparison) error {
			return errors.New("called")
		}), err)
	}
	for _, err := range []error{errdefs.ErrNotImplemented, errdefs.ErrFailedPrecondition, errdefs.ErrNotFound, context.DeadlineExceeded, context.Canceled} {
		compare(err)
	}
	assert.Empty(t, log.String())
	for range 2 {
		compare(fmt.Errorf("option lowerdir: %w", syscall.EINVAL))
	}
	assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
	assert.Contains(t, log.String(), "invalid argument")
}
