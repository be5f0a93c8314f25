package parts

import (
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// Parts that unpack to more than any layer has are an error.
func TestManyParts(t *testing.T) {
	r := &reader{file: io.NopCloser(nil), data: strings.NewReader("0123456789"), left: 5}
	_, err := io.ReadAll(r)
	require.ErrorIs(t, err, errdefs.ErrResourceExhausted)
}
