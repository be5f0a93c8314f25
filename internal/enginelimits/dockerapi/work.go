package dockerapi

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

const (
	// atOnce is how many lists of containers, mostly of one, are limited at the same time.
	atOnce = 8
	// quickTime is how long such a list waits for one description. The engine describes no container while it starts it.
	quickTime = 2 * time.Second
	// slowAtOnce is how many of the other descriptions are waited for at the same time, each for answerTimeout.
	slowAtOnce = 32
	// Pauses between attempts to get one of these.
	firstPause   = time.Second
	longestPause = time.Minute
)

// work limits the containers that one connection has named.
type work struct {
	source  *Source
	limiter *enginelimits.Limiter
	quick   errgroup.Group
	slow    sync.WaitGroup // is added to in the goroutines of quick
	places  chan struct{}  // of slow requests
}

func newWork(s *Source, l *enginelimits.Limiter) *work {
	w := &work{source: s, limiter: l, places: make(chan struct{}, slowAtOnce)}
	w.quick.SetLimit(atOnce)
	return w
}

// wait waits until all has ended, which it does soon after its context.
func (w *work) wait() {
	_ = w.quick.Wait() // it has no errors
	w.slow.Wait()
}

// limit limits containers that were made with a size. It waits for a place if there is none. Containers that the engine does not
// describe soon do not keep theirs.
func (w *work) limit(ctx context.Context, ids ...string) {
	w.quick.Go(func() error {
		w.tryEach(ctx, ids)
		return nil
	})
}

func (w *work) tryEach(ctx context.Context, ids []string) {
	for _, id := range ids {
		if ctx.Err() != nil {
			return
		}
		if known, err := w.try(ctx, id, quickTime); err != nil {
			if !known {
				w.limiter.Unknown(ctx, enginelimits.Container{Engine: engine, Namespace: Namespace, ID: id, Name: id}, err)
			}
			w.slow.Go(func() { w.tryAgain(ctx, id) })
		}
	}
}

// tryAgain tries until the engine has described a container, or until ctx is done.
func (w *work) tryAgain(ctx context.Context, id string) {
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		select {
		case w.places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		_, err := w.try(ctx, id, answerTimeout)
		<-w.places
		if err == nil {
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// try limits a container. Returns an error if the engine has not described it in time; known tells whether it has once.
func (w *work) try(ctx context.Context, id string, patience time.Duration) (known bool, err error) {
	c, sized, err := w.describe(ctx, id, patience)
	if err != nil || !sized || !w.limiter.Catch(ctx, c) {
		return err == nil, err
	}
	// The engine may have begun to start it since it gave that description. It gives the next one when the start has ended. Until
	// then it starts the container no other time, so the refusal can stay.
	c, sized, err = w.describe(ctx, id, patience)
	if err == nil && sized && !c.Unstarted {
		w.limiter.Started(Namespace, id)
	}
	return true, err
}

// describe asks for the size of a container. The Report has no container that is without, or that is gone.
func (w *work) describe(ctx context.Context, id string, patience time.Duration) (limited enginelimits.Container, sized bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := w.source.Client.Container(waiting, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return limited, false, err
	}
	if err == nil {
		limited, sized = w.source.limited(id, c)
	}
	if !sized {
		w.limiter.Forget(Namespace, id)
	}
	return limited, sized, nil
}
