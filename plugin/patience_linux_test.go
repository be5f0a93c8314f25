package plugin

import (
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// TestRequestThatDoesNotEnd: neither Init, Cleanup nor Close waits for good for a request that does not end. Its driver
// is closed when it has.
func TestRequestThatDoesNotEnd(t *testing.T) {
	for name, end := range map[string]func(*Adapter) error{
		"init":    func(a *Adapter) error { return a.Init("/home", nil, nil, nil) },
		"cleanup": (*Adapter).Cleanup,
		"close":   (*Adapter).Close,
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			removing, release, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
			letEnd := sync.OnceFunc(func() { close(release) })
			defer letEnd()
			drivers := []*fake{{
				remove:  func(string) error { close(removing); <-release; return nil },
				cleanup: func() error { close(closed); return nil },
			}, {}}
			a := NewAdapter(func(InitRequest) (graphdriver.Driver, error) {
				opened := drivers[0]
				drivers = drivers[1:]
				return opened, nil
			}, AdapterOptions{Patience: 50 * time.Millisecond})
			require.NoError(t, a.Init("/home", nil, nil, nil))
			removed := make(chan error, 1)
			go func() { removed <- a.Remove("layer") }()
			testfs.Begun(t, removing, removed)

			ended := make(chan error, 1)
			go func() { ended <- end(a) }()
			err := testfs.Receive(t, ended)
			if name == "init" {
				require.NoError(t, err, "the next driver is open")
				assert.False(t, a.Exists("layer"))
			} else {
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
			}
			select {
			case <-closed:
				t.Error("the driver is closed while it is used")
			default:
			}
			letEnd()
			require.NoError(t, testfs.Receive(t, removed))
			testfs.Receive(t, closed)
			require.NoError(t, a.Close())
		})
	}
}
