package sealing_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/sealing"
)

// TestRelyUndoes seals a writable volume for an operation that fails. The claim ends with the error of the undo, since a
// step of it may be under way.
func TestRelyUndoes(t *testing.T) {
	broken, underWay := errors.New("broken"), errors.New("under way")
	for name, undo := range map[string]error{"undone": nil, "undo under way": underWay} {
		t.Run(name, func(t *testing.T) {
			var moves []sealing.State
			var causes []error
			volumes := sealing.Volumes[string]{
				Use: func(context.Context, string) (sealing.Held[string], error) {
					return sealing.Held[string]{Done: func(error) error { return nil }}, nil
				},
				Claim: func(context.Context, string) (sealing.Held[string], error) {
					return sealing.Held[string]{
						Done: func(cause error) error { causes = append(causes, cause); return nil },
						Move: func(ctx context.Context, to sealing.State) (bool, error) {
							moves = append(moves, to)
							if to == sealing.Writable {
								return undo == nil, errors.Join(undo, ctx.Err())
							}
							return true, nil
						},
					}, nil
				},
				After: func(_ error, f func() error) error { return f() },
			}
			ctx, cancel := context.WithCancel(t.Context())
			err := volumes.Rely(ctx, "volume", func(string, sealing.State) error { cancel(); return broken })
			require.ErrorIs(t, err, broken)
			assert.Equal(t, []sealing.State{sealing.Sealed, sealing.Writable}, moves)
			require.Len(t, causes, 1)
			assert.ErrorIs(t, causes[0], undo)
		})
	}
}
