// Package inuse counts the users of named things, each opened at its first use and closed after its last. It can give
// one caller exclusive use of an unused thing.
package inuse

import (
	"context"
	"errors"
	"sync"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Kind says how long a use may last.
type Kind int

const (
	// Held is a use that lasts as long as its user likes. Claim fails because of it.
	Held Kind = iota
	// Viewed is the same, counted by itself: one Release of Held too many does not end it.
	Viewed
	// Brief is a use that ends by itself before long. Claim waits for it.
	Brief
	kinds
)

// Table has the things in use, by name. The zero value is empty. It is safe for concurrent use, and holds no lock
// while it opens or closes.
type Table[R any] struct {
	mu      sync.Mutex
	entries map[string]*entry[R]
}

// entry is one thing that is in use, or is about to be or to be no longer.
type entry[R any] struct {
	resource R
	uses     [kinds]int
	// changed is closed when waiting goroutines should look at the entry again: its claim or change is over, or a use
	// has ended.
	changed chan struct{}
	busy    bool // being opened, closed or claimed: its other fields are not to be touched
}

// Acquire counts one more use of name, and opens it if it is the first. It waits while name is claimed.
func (t *Table[R]) Acquire(ctx context.Context, name string, k Kind, open func() (R, error)) (R, error) {
	e, ok := t.lockIdle(ctx.Done(), name)
	if !ok {
		return *new(R), context.Cause(ctx)
	}
	if e != nil {
		defer t.mu.Unlock()
		e.uses[k]++
		return e.resource, nil
	}
	e = t.reserve(name)
	t.mu.Unlock()

	resource, err := open()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.drop(name, e)
		return *new(R), err
	}
	e.resource, e.busy = resource, false
	e.uses[k]++
	e.wake()
	return resource, nil
}

// Release ends one use of name, and closes it if it was the last. Without such a use it does nothing. It waits while name
// is claimed, for as long as that takes: a use that is not given back is never claimed.
func (t *Table[R]) Release(name string, k Kind, close func(R) error) error {
	e, _ := t.lockIdle(nil, name)
	if e == nil || e.uses[k] == 0 {
		t.mu.Unlock()
		return nil
	}
	e.uses[k]--
	if e.uses != [kinds]int{} {
		e.wake()
		t.mu.Unlock()
		return nil
	}
	e.busy = true
	t.mu.Unlock()

	err := close(e.resource)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(name, e)
	return err
}

// Claim takes name, which nobody uses, for the caller alone: until release is called, other users and claims wait.
// Returns fault.ErrInUse if name is held or viewed.
func (t *Table[R]) Claim(ctx context.Context, name string) (release func(), err error) {
	for {
		e, ok := t.lockIdle(ctx.Done(), name)
		if !ok {
			return nil, context.Cause(ctx)
		}
		if e == nil {
			break
		}
		uses, changed := e.uses, e.changed
		t.mu.Unlock()
		if uses[Viewed] > 0 {
			return nil, fault.New(fault.ErrInUse, "mounts: %d, views: %d", uses[Held], uses[Viewed])
		}
		if uses[Held] > 0 {
			return nil, fault.New(fault.ErrInUse, "mounts: %d", uses[Held])
		}
		if !wait(ctx.Done(), changed) {
			return nil, context.Cause(ctx)
		}
	}
	e := t.reserve(name)
	t.mu.Unlock()
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.drop(name, e)
	}), nil
}

// ByAnotherProcess is why a volume cannot be claimed that another process has locked.
func ByAnotherProcess(name string) error {
	return fault.New(fault.ErrInUse, "another process uses volume %s", name)
}

// Held is how many uses of that kind name has.
func (t *Table[R]) Held(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.entries[name]; e != nil && !e.busy {
		return e.uses[Held]
	}
	return 0
}

// CloseAll closes all things in use, whatever their users do. A thing that is claimed or changing is left to its
// claimant.
func (t *Table[R]) CloseAll(close func(name string, resource R) error) error {
	t.mu.Lock()
	idle := make(map[string]*entry[R])
	for name, e := range t.entries {
		if !e.busy {
			e.busy = true
			idle[name] = e
		}
	}
	t.mu.Unlock()
	var errs []error
	for name, e := range idle {
		errs = append(errs, close(name, e.resource))
		t.mu.Lock()
		t.drop(name, e)
		t.mu.Unlock()
	}
	return errors.Join(errs...)
}

// lockIdle waits until name is neither claimed nor changing, and returns its entry, nil if it is not in use,
// with t.mu locked. If done is closed before that, ok is false and t.mu is not locked.
func (t *Table[R]) lockIdle(done <-chan struct{}, name string) (idle *entry[R], ok bool) {
	for {
		t.mu.Lock()
		e := t.entries[name]
		if e == nil || !e.busy {
			return e, true
		}
		changed := e.changed
		t.mu.Unlock()
		if !wait(done, changed) {
			return nil, false
		}
	}
}

// wait reports whether changed was closed, and not done.
func wait(done, changed <-chan struct{}) bool {
	select {
	case <-changed:
		return true
	case <-done:
		return false
	}
}

// reserve makes a busy entry, with t.mu locked.
func (t *Table[R]) reserve(name string) *entry[R] {
	if t.entries == nil {
		t.entries = make(map[string]*entry[R])
	}
	e := &entry[R]{changed: make(chan struct{}), busy: true}
	t.entries[name] = e
	return e
}

// drop removes an entry, with t.mu locked.
func (t *Table[R]) drop(name string, e *entry[R]) {
	delete(t.entries, name)
	close(e.changed)
}

// wake lets waiting goroutines look again, with t.mu locked.
func (e *entry[R]) wake() {
	close(e.changed)
	e.changed = make(chan struct{})
}
