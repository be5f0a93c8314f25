package containername

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
)

// answers counts questions.
type answers struct {
	asked int
	err   error
}

func (a *answers) Name(_ context.Context, id ID) (Name, error) {
	a.asked++
	return Name{Container: "of " + id.ID}, a.err
}

// TestLook: a name is asked for once, also by the next Look. An engine that does not answer is not asked again in the same
// Look, and an engine that does not know a container is.
func TestLook(t *testing.T) {
	for name, test := range map[string]struct {
		err         error
		asked, next int
		want        string
	}{
		"answers":   {nil, 2, 2, "of a"},
		"away":      {errdefs.ErrUnavailable, 1, 2, ""},
		"not found": {errdefs.ErrNotFound, 3, 4, ""},
	} {
		t.Run(name, func(t *testing.T) {
			source := &answers{err: test.err}
			l := NewLook(t.Context(), source, nil)
			for _, id := range []string{"a", "b", "a"} {
				l.Name(ID{"test", id})
			}
			assert.Zero(t, l.Name(ID{"", "unknown"}))
			assert.Equal(t, test.asked, source.asked)
			l = NewLook(t.Context(), source, l.Known())
			assert.Equal(t, test.want, l.Name(ID{"test", "a"}).Container)
			assert.Equal(t, test.next, source.asked)
			assert.NotContains(t, l.Known(), ID{"test", "b"}, "nobody asks for it any more")
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	source := &answers{}
	assert.Zero(t, NewLook(ctx, source, nil).Name(ID{"test", "a"}))
	assert.Zero(t, source.asked)
}
