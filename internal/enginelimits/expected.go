package enginelimits

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/cowshed/cowshed/snapshotter"
)

// maxExpected is how many containers can wait for their snapshots. Engines give up containers without a word, so the oldest goes.
const maxExpected = 1000

// expected are containers with good sizes that engines have announced before they prepare the snapshots.
type expected struct {
	mu   sync.Mutex
	list []Container // the newest last
}

func (e *expected) add(c Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) == maxExpected {
		e.list = slices.Delete(e.list, 0, 1)
	}
	e.list = append(e.list, c)
}

func (e *expected) take(namespace, id string) (Container, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.list, func(c Container) bool { return c.Namespace == namespace && c.ID == id })
	if i < 0 {
		return Container{}, false
	}
	c := e.list[i]
	e.list = slices.Delete(e.list, i, i+1)
	return c, true
}

// Expect is Limit for a container whose snapshot is prepared afterwards, with its limit.
func (l *Limiter) Expect(ctx context.Context, c Container) error {
	if _, err := c.bytes(); err != nil {
		l.note(ctx, c, outcomeInvalid, err)
		return err
	}
	l.expected.add(c)
	return nil
}

// Prepare calls prepare, which prepares the snapshot of a key, with the limit that an engine has announced for it as one more
// option. Options of the client come after it. An error of prepare is returned as it is, and the client may prepare again.
func (g *Group) Prepare(ctx context.Context, key string, prepare func(limit ...snapshots.Opt) error) error {
	c, ok := g.limiter.expected.take(snapshotter.SplitKey(key))
	if !ok {
		return prepare()
	}
	bytes, err := c.bytes()
	if err != nil {
		g.limiter.note(ctx, c, outcomeInvalid, err)
		return err
	}
	c.Created = time.Now() // at the earliest
	if err := prepare(snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: strconv.FormatUint(bytes, 10)})); err != nil {
		g.limiter.expected.add(c)
		return err
	}
	g.limiter.note(ctx, c, outcomeSet, nil)
	return nil
}
