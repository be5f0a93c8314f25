package kubelet

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

// bubble is a Source in a bubble of synctest, whose kubelet is a function.
type bubble struct {
	*Source
	group *enginelimits.Group
	set   *limits
	asked int
	state string
}

// inBubble runs a Source while test does. The kubelet's answer gets the number of the request.
func inBubble(t *testing.T, answer func(ctx context.Context, n int) (pods, error), test func(t *testing.T, b *bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{Source: NewSource(&Client{}, 0), set: &limits{}, state: t.TempDir()}
		b.ask = func(ctx context.Context) (pods, error) {
			b.asked++
			return answer(ctx, b.asked)
		}
		b.group = enginelimits.NewGroup([]enginelimits.Source{b.Source}, b.set, enginelimits.NewMetrics(), b.state, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.group.Run(ctx) })
		test(t, b)
		cancel()
		running.Wait()
	})
}

// TestIdle: the kubelet is not asked at intervals, nor for pods that it has named.
func TestIdle(t *testing.T) {
	inBubble(t, func(context.Context, int) (pods, error) {
		return pods{"1": {"web": "1Ki"}}, nil
	}, func(t *testing.T, b *bubble) {
		synctest.Wait()
		for range 24 {
			time.Sleep(time.Hour)
			b.group.Wake()
			b.Wanted("1")
			c, err := b.Limit(t.Context(), containerIn("1", "web"))
			require.NoError(t, err)
			assert.Equal(t, "1024", c.Size)
		}
		synctest.Wait()
		assert.Equal(t, 1, b.asked)
		b.Wanted("2")
		synctest.Wait()
		assert.Equal(t, 2, b.asked)
	})
}

// TestRefused: a kubelet that refuses the daemon is not asked each time that a snapshot is prepared.
func TestRefused(t *testing.T) {
	inBubble(t, func(context.Context, int) (pods, error) { return nil, errdefs.ErrPermissionDenied }, func(t *testing.T, b *bubble) {
		for range 1000 {
			time.Sleep(10 * time.Millisecond)
			b.group.Wake()
		}
		synctest.Wait()
		assert.InDelta(t, 10*time.Second/failurePause, b.asked, 1)
	})
}

// TestSlowKubelet: one container waits for a slow answer. The others do not, until the kubelet has answered.
func TestSlowKubelet(t *testing.T) {
	const patience, slow = time.Second / 2, 5 * time.Second
	inBubble(t, func(_ context.Context, n int) (pods, error) {
		if n == 2 {
			time.Sleep(slow)
		}
		return pods{"1": {"web": "1Ki"}}, nil
	}, func(t *testing.T, b *bubble) {
		synctest.Wait() // until the first answer
		limit := func(pod string) (size string, waited time.Duration, err error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			start := time.Now()
			c, err := b.Limit(ctx, containerIn(pod, "web"))
			return c.Size, time.Since(start), err
		}
		for _, want := range []time.Duration{patience, 0, 0} {
			_, waited, err := limit("2")
			require.ErrorContains(t, err, "no answer yet")
			assert.Equal(t, want, waited)
		}
		size, waited, err := limit("1")
		require.NoError(t, err)
		assert.Equal(t, "1024", size)
		assert.Zero(t, waited)
		time.Sleep(slow)
		_, _, err = limit("2")
		require.NoError(t, err, "the kubelet has answered, and answers soon")
	})
}

// TestMissingPod: a pod that the kubelet does not name right after its start is asked for once more. A pod that it does not name
// then is not the kubelet's. Nobody asks again.
func TestMissingPod(t *testing.T) {
	var complete atomic.Bool
	inBubble(t, func(context.Context, int) (pods, error) {
		if !complete.Load() {
			return pods{}, nil
		}
		return pods{"waits": {"web": "1Ki"}, "new": {"web": "2Ki"}}, nil
	}, func(t *testing.T, b *bubble) {
		require.NoError(t, b.Later(containerIn("waits", "web")))
		require.NoError(t, b.Later(containerIn("of crictl", "web")))
		synctest.Wait()
		c, err := b.Limit(t.Context(), containerIn("new", "web"))
		require.NoError(t, err)
		assert.Empty(t, c.Size)
		_, ok := b.set.Load("waitsweb")
		require.False(t, ok)
		complete.Store(true)
		time.Sleep(missingTime)
		synctest.Wait()
		for id, want := range map[string]any{"waitsweb": uint64(1 << 10), "newweb": uint64(2 << 10), "of crictlweb": nil} {
			limit, _ := b.set.Load(id)
			assert.Equal(t, want, limit, id)
		}
		asked := b.asked
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		assert.Equal(t, asked, b.asked)
		assert.Len(t, b.later, 1, "the pod of crictl may still be named")
		b.Gone("of crictlweb")
		assert.Empty(t, b.later)
	})
}
