package cowcommon

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/quota"
)

func TestReadOnly(t *testing.T) {
	b := ReadOnly(nil, errors.New("the disk is worn out"))
	for name, err := range map[string]error{
		"create": b.Create(t.Context(), "a", VolumeOptions{}),
		"clone":  b.Clone(t.Context(), "a", "b", VolumeOptions{}),
		"seal":   Seal(t.Context(), b, "a"),
		"rename": Rename(t.Context(), b, "a", "b"),
		"remove": b.Remove(t.Context(), "a"),
		"limit":  SetLimit(t.Context(), b, "a", quota.Limit{}),
		"sync":   b.Sync(t.Context(), "a"),
		"keep":   second(Keep(t.Context(), b, "a")),

		"fork":              b.(Forker).Fork(t.Context(), "b", "a", nil, VolumeOptions{}),
		"exchange":          b.(Exchanger).Exchange(t.Context(), "a", "b"),
		"set root style of": SetRootStyle(t.Context(), b, "a", SharedRoot),
		"receive":           Receive(t.Context(), b, "a", "", nil),
		"adopt":             Adopt(t.Context(), b, "a", "", "/b", VolumeOptions{}),
		"settle":            Settle(t.Context(), b, "a"),
	} {
		require.ErrorIs(t, err, ErrReadOnly)
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorIs(t, err, syscall.EROFS)
		assert.ErrorContains(t, err, name+` volume "a"`)
		assert.ErrorContains(t, err, "the disk is worn out")
	}
	require.ErrorIs(t, CheckSettle(t.Context(), b, "a"), ErrReadOnly)
}

// An error of a filesystem that the kernel made read-only meanwhile has the type too.
func TestAsReadOnly(t *testing.T) {
	cause := &fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EROFS}
	err := AsReadOnly(cause)
	require.ErrorIs(t, err, ErrReadOnly)
	require.ErrorIs(t, err, cause)
	assert.Equal(t, ErrReadOnly, AsReadOnly(ErrReadOnly))
	other := errors.New("other")
	assert.Equal(t, other, AsReadOnly(other))
	assert.NoError(t, AsReadOnly(nil))
}

func second[T any](_ T, err error) error { return err }
