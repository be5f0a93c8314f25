package apiserver

import (
	"fmt"
	"slices"
	"sync"

	"github.com/cowshed/cowshed/api"
)

// sender is on whose account connections and requests count: root's, that of a user whom a namespace names, that of all other
// members of a namespace, or that of everybody else. A user can be more than one user of the kernel, as with the subordinate ones of
// subuid(5). None of them is a sender of its own.
type sender string

// Senders that are always there.
const (
	rootSender  sender = "root"
	otherSender sender = "users that are in no namespace"
)

// senderOf finds the sender of a peer.
func (s *Server) senderOf(p Peer) sender {
	if p.UID == 0 {
		return rootSender
	}
	if !s.isMember(p) {
		return otherSender
	}
	for _, n := range s.namespaces {
		if slices.Contains(n.UIDs, p.UID) {
			return sender(fmt.Sprintf("user %d", p.UID))
		}
	}
	for _, n := range s.namespaces {
		if n.hasMember(p) {
			return sender("the groups of namespace " + n.Name)
		}
	}
	return otherSender
}

// bounds limit the connections or requests that are under way. Those of root do not count for the limit of all others together,
// so that others cannot keep root out.
type bounds struct {
	each int // of a sender
	all  int // of all senders but root
	kept int // of a sender of a namespace, also when there are so many of all
}

var (
	connectionBounds = bounds{each: 64, all: 192, kept: 8}
	requestBounds    = bounds{each: 16, all: 48, kept: 2}
	// exportBounds are for requests whose answers are temporary files first, and take up the disk until the client has them.
	exportBounds = bounds{each: 1, all: 2}
	// walkBounds are for requests that read whole trees.
	walkBounds = bounds{each: 2, all: 4, kept: 1}
)

// gate counts the connections or requests of each sender that are under way.
type gate struct {
	bounds
	refused func(api.Kind) // is called for each refusal; nil: nobody counts

	mu      sync.Mutex
	senders map[sender]int
	others  int // of all senders but root
}

func newGate(b bounds) *gate { return &gate{bounds: b, senders: make(map[sender]int)} }

// enter lets a sender begin something, and returns a function for its end, which is called once. The kind is KindTooManyRequests or
// KindUnavailable if the sender may not begin it.
func (g *gate) enter(who sender) (leave func(), _ api.Kind) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if kind := g.refuses(who); kind != "" {
		if g.refused != nil {
			g.refused(kind)
		}
		return nil, kind
	}
	g.senders[who]++
	if who != rootSender {
		g.others++
	}
	return func() { g.leave(who) }, ""
}

// refuses is the kind of the refusal if a sender may not begin something, and "" if it may.
func (g *gate) refuses(who sender) api.Kind {
	each, kept := g.each, g.kept
	switch who {
	case rootSender:
		each = g.all
	case otherSender:
		kept = 0
	}
	switch {
	case g.senders[who] >= each:
		return api.KindTooManyRequests
	case who != rootSender && g.others >= g.all && g.senders[who] >= kept:
		return api.KindUnavailable
	}
	return ""
}

// enterGate lets the request begin something of which administrators have any number.
func (r *request) enterGate(g *gate, what string) (leave func(), err error) {
	if r.caller.admin {
		return func() {}, nil
	}
	who := r.server.senderOf(r.caller.peer)
	leave, kind := g.enter(who)
	if kind != "" {
		err = tooMany(kind, who, what)
	}
	return leave, err
}

// enterWalk lets the request read whole trees.
func (r *request) enterWalk() (leave func(), err error) {
	return r.enterGate(r.server.walks, "comparisons, streams and countings of usage under way")
}

func (g *gate) leave(who sender) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.senders[who]--; g.senders[who] == 0 {
		delete(g.senders, who)
	}
	if who != rootSender {
		g.others--
	}
}
