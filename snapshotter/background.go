package snapshotter

import (
	"context"
	"sync"
)

// background runs functions in goroutines of their own, none of which outlives end.
type background struct {
	mu      sync.Mutex
	ctx     context.Context //nolint:containedctx // ends with end
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func newBackground() *background {
	b := &background{}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// run calls do in a goroutine. Its context has the values of ctx, and ends with end alone. After end, run does nothing.
func (b *background) run(ctx context.Context, do func(ctx context.Context)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(b.ctx, cancel)
	b.running.Go(func() {
		defer cancel()
		defer stop()
		do(ctx)
	})
}

// end ends the contexts of all functions, and waits for these.
func (b *background) end() {
	b.mu.Lock()
	b.cancel()
	b.mu.Unlock()
	b.running.Wait()
}
