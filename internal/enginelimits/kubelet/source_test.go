package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet/kubelettest"
	"github.com/cowshed/cowshed/internal/testfs"
)

// limits are the limits that have been set, by id.
type limits struct{ sync.Map }

func (l *limits) Key(_ context.Context, _, own string) (string, error) { return own, nil }

func (l *limits) Stat(context.Context, string) (snapshots.Info, error) { return snapshots.Info{}, nil }

func (l *limits) SetLimit(_ context.Context, key string, bytes uint64) error {
	l.Store(key, bytes)
	return nil
}

func containerIn(pod, name string) Container {
	return Container{Container: enginelimits.Container{Engine: Engine, Namespace: "k8s.io", ID: pod + name, Name: pod + "/" + name}, Pod: pod, InPod: name}
}

// TestSource: a new pod costs one request, and a known one none. While the kubelet is away its pods are known, and other containers
// wait until it is back.
func TestSource(t *testing.T) {
	var asked atomic.Int32
	var away atomic.Bool
	answer := func(w http.ResponseWriter, _ *http.Request) {
		if away.Load() {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		asked.Add(1)
		fmt.Fprint(w, twoPods)
	}
	k := kubelettest.Start(t, answer)
	s := NewSource(clientOf(k), 1<<30)
	var set limits
	state := t.TempDir()
	group := enginelimits.NewGroup([]enginelimits.Source{s}, &set, enginelimits.NewMetrics(), state, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { group.Run(ctx) })
	defer running.Wait()
	defer cancel()
	connected := func() bool {
		r, err := enginelimits.ReadReport(state)
		return err == nil && r.Engines[0].Connected
	}
	size := func(pod, name string) (string, error) {
		waiting, cancel := context.WithTimeout(ctx, testfs.Patience)
		defer cancel()
		c, err := s.Limit(waiting, containerIn(pod, name))
		return c.Size, err
	}

	for c, want := range map[[2]string]string{{"1", "web"}: "1073741824", {"1", "init"}: "1000000000", {"1", "free"}: "", {"2", "web"}: ""} {
		got, err := size(c[0], c[1])
		require.NoError(t, err)
		assert.Equal(t, want, got, c)
	}
	require.LessOrEqual(t, asked.Load(), int32(2), "the first request, and perhaps one for the first container")
	before := asked.Load()
	got, err := size("of crictl", "web")
	require.NoError(t, err)
	assert.Empty(t, got)
	assert.LessOrEqual(t, asked.Load(), before+2, "one may have been under way")
	require.True(t, connected())

	away.Store(true)
	got, err = size("1", "web")
	require.NoError(t, err)
	assert.Equal(t, "1073741824", got)
	_, err = size("3", "web")
	require.ErrorContains(t, err, "503 Service Unavailable")
	require.Eventually(t, func() bool { return !connected() }, testfs.Patience, time.Millisecond)
	for _, c := range []Container{containerIn("1", "web"), containerIn("2", "web"), containerIn("1", "gone")} {
		require.NoError(t, s.Later(c))
	}
	s.Gone("1gone")

	away.Store(false)
	require.Eventually(t, func() bool {
		group.Wake()
		_, ok := set.Load("1web")
		return ok
	}, testfs.Patience, time.Millisecond)
	limit, _ := set.Load("1web")
	assert.Equal(t, uint64(1<<30), limit)
	_, ok := set.Load("2web")
	assert.False(t, ok)
	require.True(t, connected())

	require.NoError(t, s.Later(containerIn("1", "init")))
	require.Eventually(t, func() bool { _, ok := set.Load("1init"); return ok }, testfs.Patience, time.Millisecond)
}

// TestHostileQuantity: a limit that is no quantity is reported, and the others count.
func TestHostileQuantity(t *testing.T) {
	s := NewSource(&Client{}, 0)
	s.pods = pods{"1": {"web": "much", "zero": "0", "good": "1Ki"}}
	_, err := s.Limit(t.Context(), containerIn("1", "web"))
	require.ErrorContains(t, err, `resources.limits.ephemeral-storage: invalid argument: "much" is no quantity`)
	c, err := s.Limit(t.Context(), containerIn("1", "zero"))
	require.NoError(t, err)
	assert.Empty(t, c.Size)
	c, err = s.Limit(t.Context(), containerIn("1", "good"))
	require.NoError(t, err)
	assert.Equal(t, "1024", c.Size)
}

// TestManyWait: no more than maxLater containers wait, and those that cannot are named.
func TestManyWait(t *testing.T) {
	s := NewSource(&Client{}, 0)
	for i := range maxLater {
		require.NoError(t, s.Later(containerIn(fmt.Sprint(i), "web")))
	}
	require.ErrorIs(t, s.Later(containerIn("another", "web")), errdefs.ErrResourceExhausted)
	require.NoError(t, s.Later(containerIn("0", "web")))
	s.Gone("0web")
	require.NoError(t, s.Later(containerIn("another", "web")))
}
