package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	inUse := New(ErrInUse, "mounts: %d", 1)
	for want, err := range map[string]error{
		`in use: mounts: 1`:                                                 inUse,
		`already exists`:                                                    As(errdefs.ErrAlreadyExists, errdefs.ErrAlreadyExists),
		`not found: file does not exist`:                                    As(errdefs.ErrNotFound, fs.ErrNotExist),
		`create layer "web": already exists`:                                Wrap("create layer", "web", errdefs.ErrAlreadyExists),
		`create layer "web": in use: mounts: 1`:                             Wrap("create layer", "web", Wrap("create volume", "web", inUse)),
		`get layer "web": mount volume: in use: mounts: 1`:                  Wrap("get layer", "web", Wrap("mount volume", "web", inUse)),
		`create layer "web": clone volume from "base": in use: mounts: 1`:   Wrap("create layer", "web", WrapWith("clone volume", "web", From("base"), inUse)),
		`prepare snapshot "k": create volume "s-k": already exists`:         Wrap("prepare snapshot", "k", Wrap("create volume", "s-k", errdefs.ErrAlreadyExists)),
		`remove layer "web": unavailable: in use: mounts: 1`:                Wrap("remove layer", "web", As(errdefs.ErrUnavailable, Wrap("remove volume", "web", inUse))),
		`remove layer "web": in use: mounts: 1`:                             Wrap("remove layer", "web", errors.Join(Wrap("remove volume", "web", errors.Join(inUse, nil)), nil)),
		`there is no layer web`:                                             Said(errdefs.ErrNotFound, "there is no layer %s", "web"),
		`clean up: in use: mounts: 1`:                                       Wrap("clean up", "", inUse),
		"remove layer \"web\": remove volume \"web\": in use: mounts: 1\nx": Wrap("remove layer", "web", errors.Join(Wrap("remove volume", "web", inUse), errors.New("x"))),
	} {
		assert.EqualError(t, err, want)
	}
}

// TestThroughGRPC sends errors as the daemon does, and reads them as containerd does.
func TestThroughGRPC(t *testing.T) {
	for _, err := range []error{
		Wrap("prepare snapshot", "k", New(errdefs.ErrAlreadyExists, "snapshot %q", "k")),
		Wrap("remove layer", "web", New(ErrInUse, "mounts: %d", 1)),
		Said(errdefs.ErrNotFound, "there is no layer %s", "web"),
	} {
		received := errgrpc.ToNative(errgrpc.ToGRPC(err))
		require.EqualError(t, received, err.Error())
		assert.False(t, errdefs.IsUnknown(received))
		assert.Equal(t, errdefs.IsNotFound(err), errdefs.IsNotFound(received))
		assert.Equal(t, errdefs.IsAlreadyExists(err), errdefs.IsAlreadyExists(received))
		assert.Equal(t, errdefs.IsFailedPrecondition(err), errdefs.IsFailedPrecondition(received))
	}
}

func TestKinds(t *testing.T) {
	cause := &fs.PathError{Op: "open", Path: "x", Err: syscall.ENOSPC}
	err := Wrap("create layer", "web", fmt.Errorf("parent: %w", As(ErrInUse, cause)))
	require.ErrorIs(t, err, ErrInUse)
	assert.True(t, errdefs.IsFailedPrecondition(err))
	assert.False(t, errdefs.IsNotFound(err))
	assert.True(t, IsFull(err))
	var path *fs.PathError
	require.ErrorAs(t, err, &path)
	var outer *Error
	require.ErrorAs(t, err, &outer)
	assert.Equal(t, "web", outer.Name)

	require.ErrorIs(t, Said(errdefs.ErrNotFound, "x: %w", cause), syscall.ENOSPC)
	assert.True(t, errdefs.IsNotFound(Said(errdefs.ErrNotFound, "x")))
	assert.NoError(t, Wrap("create layer", "web", nil))
	assert.NoError(t, As(ErrInUse, nil))
	assert.Equal(t, cause, As(syscall.ENOSPC, cause))
}

func TestOfOwnFile(t *testing.T) {
	full := OfOwnFile(&fs.PathError{Op: "open", Path: "file", Err: syscall.EDQUOT})
	require.ErrorIs(t, full, syscall.ENOSPC)
	require.NotErrorIs(t, full, syscall.EDQUOT)
	require.ErrorContains(t, full, "open file")
	require.ErrorIs(t, OfOwnFile(fs.ErrExist), fs.ErrExist)
	require.NoError(t, OfOwnFile(nil))
}
