package graphdriver

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
)

// unsupported is an error type of another package that implements ErrUnSupported.
type unsupported struct{}

func (unsupported) Error() string { return "not here" }
func (unsupported) NotSupported() {}

func TestIsDriverNotSupported(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"nil", nil, false},
		{"other", io.ErrUnexpectedEOF, false},
		{"constant", ErrNotSupported, true},
		{"value", NotSupportedError("no such luck"), true},
		{"other type", unsupported{}, true},
		{"wrapped", fmt.Errorf("%w: reason", ErrPrerequisites), true},
		{"wrapped twice", fmt.Errorf("open: %w", fmt.Errorf("%w: reason", ErrIncompatibleFS)), true},
		{"joined", errors.Join(io.ErrUnexpectedEOF, ErrNotSupported), true},
		{"same text", errors.New(ErrNotSupported.Error()), false},
	} {
		t.Run(test.name, func(t *testing.T) { assert.Equal(t, test.want, IsDriverNotSupported(test.err)) })
	}
}

func TestErrorTexts(t *testing.T) {
	assert.Equal(t, "driver not supported", ErrNotSupported.Error())
	assert.Equal(t, "prerequisites for driver not satisfied (wrong filesystem?)", ErrPrerequisites.Error())
	assert.Equal(t, "backing file system is unsupported for this graph driver", ErrIncompatibleFS.Error())
}
