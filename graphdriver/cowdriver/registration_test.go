package cowdriver

import (
	"errors"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/quota"
)

func TestParseOptionsOfNone(t *testing.T) {
	_, err := ParseOptions("ext4", nil)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.ErrorContains(t, err, `driver "ext4" has no options`)
}

func TestOpen(t *testing.T) {
	readOnly := &detect.ReadOnlyError{What: "/mnt", Cause: "it is mounted read-only"}
	wrong := graphdriver.ErrPrerequisites
	for name, c := range map[string]struct {
		usable error
		asked  bool   // to open for reading alone
		why    string // it is opened for reading alone
		err    error
	}{
		"usable":                   {},
		"usable, to be read":       {asked: true, why: "it was opened with cow.read_only=true"},
		"read-only":                {usable: readOnly, err: graphdriver.ErrIncompatibleFS},
		"read-only, to be read":    {usable: readOnly, asked: true, why: readOnly.Error()},
		"not usable":               {usable: wrong, err: wrong},
		"not usable, to be read":   {usable: wrong, asked: true, err: wrong},
		"usable, cannot be opened": {err: errors.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			opened := false
			d, err := Open(t.Context(), "cow", t.TempDir(), c.usable, Options{Quota: quota.Options{ReadOnly: c.asked}}, func(why error) (cowcommon.Backend, error) {
				if c.err != nil {
					return nil, c.err
				}
				opened = true
				if c.why == "" {
					assert.NoError(t, why)
				} else {
					assert.EqualError(t, why, c.why)
				}
				return nil, nil
			})
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.err == nil, opened)
			assert.Equal(t, c.err == nil, d != nil)
		})
	}
}
