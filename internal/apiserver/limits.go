package apiserver

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/docker/go-units"

	"github.com/cowshed/cowshed/api"
)

// amount is how much a namespace has, or a request adds.
type amount struct {
	layers int // and snapshots
	bytes  uint64
}

// namespace is a Namespace with the additions that are under way. A request first enters its addition, and then counts the layers
// that are there. So each request counts the additions of earlier ones too, and no lock is held while somebody counts.
type namespace struct {
	Namespace

	mu      sync.Mutex
	pending []*addition // in the order in which they were entered
}

type addition struct {
	amount
	done chan struct{} // closed when the addition has ended
}

// add lets a request make an addition to a namespace. count counts the layers that are there. The caller calls done when it has
// made the addition, or has failed. Returns an error of KindResourceExhausted if a limit forbids the addition.
func (n *namespace) add(ctx context.Context, a amount, count func(context.Context) (amount, error)) (done func(), err error) {
	if n == nil || n.Layers == 0 && n.Bytes == 0 {
		return func() {}, nil
	}
	if err := n.check(amount{}, a); err != nil { // alone it is too much already
		return nil, err
	}
	own := &addition{amount: a, done: make(chan struct{})}
	n.mu.Lock()
	n.pending = append(n.pending, own)
	n.mu.Unlock()
	done = sync.OnceFunc(func() { n.remove(own) })
	for {
		earlier := n.before(own) // before it counts: those that end meanwhile are counted twice, and never not at all
		there, err := count(ctx)
		if err == nil {
			err = n.check(there, a)
		}
		if err != nil {
			done()
			return nil, err
		}
		for _, e := range earlier {
			there = there.plus(e.amount)
		}
		if n.check(there, a) == nil {
			return done, nil
		}
		select { // with an earlier one it is too much, if that succeeds and was not counted
		case <-earlier[0].done:
		case <-ctx.Done():
			done()
			return nil, context.Cause(ctx)
		}
	}
}

// plus is the sum of two amounts. Its bytes are at most the largest number.
func (a amount) plus(b amount) amount {
	sum := amount{layers: a.layers + b.layers, bytes: a.bytes + b.bytes}
	if sum.bytes < a.bytes {
		sum.bytes = ^uint64(0)
	}
	return sum
}

func (n *namespace) remove(a *addition) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending = slices.DeleteFunc(n.pending, func(p *addition) bool { return p == a })
	close(a.done)
}

func (n *namespace) before(a *addition) []*addition {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.pending[:slices.Index(n.pending, a)])
}

// check refuses an addition to the layers that are there.
func (n *namespace) check(there, a amount) error {
	if a.layers > 0 && n.Layers > 0 && a.layers > n.Layers-there.layers {
		return refused(api.KindResourceExhausted, fmt.Sprintf("namespace %s has %d layers and snapshots, and may have %d", n.Name, there.layers, n.Layers),
			"remove layers or snapshots of the namespace")
	}
	if a.bytes > 0 && n.Bytes > 0 && (there.bytes > n.Bytes || a.bytes > n.Bytes-there.bytes) {
		return refused(api.KindResourceExhausted, fmt.Sprintf("the limits of the layers of namespace %s and the data of their snapshots are %s in all, and may be %s",
			n.Name, units.BytesSize(float64(there.bytes)), units.BytesSize(float64(n.Bytes))), "say a smaller size, or remove snapshots or layers of the namespace")
	}
	return nil
}

// checkLimit refuses a layer without a limit where the namespace has a limit of bytes.
func (n *namespace) checkLimit(bytes uint64) error {
	if n != nil && n.Bytes > 0 && bytes == 0 {
		return refused(api.KindInvalidArgument, fmt.Sprintf("a layer of namespace %s needs a limit", n.Name), "say a size, such as 1G")
	}
	return nil
}

// bytesOf is the sum of the limits of several layers, and at most the largest number.
func bytesOf(count int, bytes uint64) uint64 {
	if bytes != 0 && uint64(count) > ^uint64(0)/bytes {
		return ^uint64(0)
	}
	return uint64(count) * bytes
}
