// Package faulttest checks, for tests, that error messages have the form of package fault.
package faulttest

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// kinds are the kinds of Cowshed's errors.
var kinds = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied,
	errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrAborted, errdefs.ErrNotImplemented,
	errdefs.ErrUnavailable, errdefs.ErrDataLoss, fault.ErrInUse, fault.ErrSealed,
}

// SaidOnce asserts that no line of a message has a kind, or a part between colons, twice.
func SaidOnce(t testing.TB, message string) {
	t.Helper()
	for line := range strings.Lines(message) {
		said := make(map[string]bool)
		for part := range strings.SplitSeq(strings.TrimSuffix(line, "\n"), ": ") {
			assert.False(t, said[part], "%q stands twice in %q", part, line)
			said[part] = true
		}
		for _, kind := range kinds {
			assert.LessOrEqual(t, strings.Count(line, kind.Error()), 1, "%q in %q", kind, line)
		}
	}
}
