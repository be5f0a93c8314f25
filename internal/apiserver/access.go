package apiserver

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/snapshotter"
)

// Peer is the process at the other end of a connection, as the kernel describes it.
type Peer struct {
	UID    uint32
	Groups []uint32 // with the primary one
}

// Namespace is a namespace of layers with its members and limits.
type Namespace struct {
	Name     string
	UIDs     []uint32      // of members
	GIDs     []uint32      // groups of members
	Readable []string      // references of layers outside that members may read and fork
	Layers   int           // most layers and snapshots; 0: any number
	Bytes    uint64        // largest sum of the limits of the layers and of the data of moments; 0: any sum, and layers without a limit
	Lifetime time.Duration // longest time after which a fork expires; 0: any time, and forks that do not expire
}

// prefix begins the names of the layers of a namespace. The name of a namespace has no dot.
func (n *Namespace) prefix() string { return n.Name + "." }

// owns reports whether a layer of that name, in a store, is the namespace's.
func (n *Namespace) owns(layer string) bool { return strings.HasPrefix(layer, n.prefix()) }

func (n *Namespace) hasMember(p Peer) bool {
	return slices.Contains(n.UIDs, p.UID) || slices.ContainsFunc(p.Groups, func(gid uint32) bool { return slices.Contains(n.GIDs, gid) })
}

func (n *Namespace) describe() api.Namespace {
	d := api.Namespace{Name: n.Name, Prefix: n.prefix(), Readable: slices.Clone(n.Readable), Layers: n.Layers, Bytes: n.Bytes}
	if d.Readable == nil {
		d.Readable = []string{}
	}
	if n.Lifetime > 0 {
		d.Lifetime = n.Lifetime.String()
	}
	return d
}

// caller is the sender of a request, with its rights.
type caller struct {
	peer       Peer
	admin      bool
	namespaces []*namespace // none of an admin
}

// namespaceOf returns the namespace of the caller that owns a layer, nil if there is none.
func (c *caller) namespaceOf(layer string) *namespace {
	if snapshotter.IsVolumeName(layer) {
		return nil
	}
	if i := slices.IndexFunc(c.namespaces, func(n *namespace) bool { return n.owns(layer) }); i >= 0 {
		return c.namespaces[i]
	}
	return nil
}

// isReadable reports whether a namespace of the caller may read a layer outside of it, or a snapshot of that layer. The
// configuration has to name the layer in the same way.
func (c *caller) isReadable(ref string) bool {
	return slices.ContainsFunc(c.namespaces, func(n *namespace) bool {
		return slices.Contains(n.Readable, ref) || slices.Contains(n.Readable, layerref.Layer(ref))
	})
}

// access is the use that a request makes of a layer that it names.
type access int

const (
	reads   access = iota // reads it, or makes forks of it
	changes               // changes it, or shows more than its content
)

// mayName refuses a reference that the caller may not use, whether such a layer exists or not. A reference that it lets pass may
// still lead to a volume that is not the caller's: see mayUse.
func (c *caller) mayName(ref string, a access) error {
	if c.admin || a == reads && c.isReadable(ref) {
		return nil
	}
	if c.namespaceOf(strings.TrimPrefix(layerref.Layer(ref), string(layerref.Fork)+":")) != nil {
		return nil
	}
	return forbidden(ref)
}

// mayUse refuses a volume to which a reference has led, if its layer is not the caller's.
func (c *caller) mayUse(ref, layer string, a access) error {
	if c.admin || a == reads && c.isReadable(ref) || c.namespaceOf(layer) != nil {
		return nil
	}
	return forbidden(ref)
}

// newName is the name for a new layer of the caller. A member gets one of its namespace.
func (c *caller) newName(name string, random func() string) (string, *namespace, error) {
	if c.admin {
		return name, nil, nil
	}
	if name == "" {
		if len(c.namespaces) != 1 {
			return "", nil, refused(api.KindInvalidArgument, "a name is needed, since the caller is a member of several namespaces", "begin it with the prefix of one of them")
		}
		return c.namespaces[0].prefix() + random(), c.namespaces[0], nil
	}
	own := strings.TrimPrefix(name, string(layerref.Fork)+":")
	n := c.namespaceOf(own)
	if n == nil {
		return "", nil, refused(api.KindPermissionDenied, fmt.Sprintf("the caller may not make a layer %q", name),
			"begin the name with the prefix of a namespace that GET /v1/info lists")
	}
	return own, n, nil
}

func forbidden(ref string) error {
	return refused(api.KindPermissionDenied, fmt.Sprintf("the caller may not run this request on %q", ref), "")
}
