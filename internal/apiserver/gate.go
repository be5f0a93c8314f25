package apiserver

import (
	"sync"

	"github.com/cowshed/cowshed/api"
)

// bounds limit the connections or requests that are under way. Those of root do not count for the limit of all others together,
// so that others cannot keep root out.
type bounds struct {
	perUser int
	all     int // of all users but root
}

var (
	connectionBounds = bounds{perUser: 64, all: 192}
	requestBounds    = bounds{perUser: 16, all: 48}
)

// gate counts the connections or requests of each user that are under way.
type gate struct {
	bounds

	mu     sync.Mutex
	users  map[uint32]int
	others int // of all users but root
}

func newGate(b bounds) *gate { return &gate{bounds: b, users: make(map[uint32]int)} }

// enter lets a user begin something, and returns a function for its end, which is called once. The kind is KindTooManyRequests or
// KindUnavailable if the user may not begin it.
func (g *gate) enter(uid uint32) (leave func(), _ api.Kind) {
	g.mu.Lock()
	defer g.mu.Unlock()
	perUser := g.perUser
	if uid == 0 {
		perUser = g.all
	}
	switch {
	case g.users[uid] >= perUser:
		return nil, api.KindTooManyRequests
	case uid != 0 && g.others >= g.all:
		return nil, api.KindUnavailable
	}
	g.users[uid]++
	if uid != 0 {
		g.others++
	}
	return func() { g.leave(uid) }, ""
}

func (g *gate) leave(uid uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users[uid]--; g.users[uid] == 0 {
		delete(g.users, uid)
	}
	if uid != 0 {
		g.others--
	}
}
