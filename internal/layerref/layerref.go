// Package layerref resolves references to containers, such as docker:web, to the snapshots of their roots. It asks the engine
// that knows the container.
package layerref

import (
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Kind is the kind of a reference. A reference begins with its kind.
type Kind string

// The kinds.
const (
	Docker     Kind = "docker"     // docker:NAME
	Containerd Kind = "containerd" // containerd:NAMESPACE/KEY, the key of a snapshot
	Nerdctl    Kind = "nerdctl"    // nerdctl:NAME or nerdctl:NAMESPACE/NAME
	CRI        Kind = "cri"        // cri:ID
	Fork       Kind = "fork"       // fork:NAME, a fork of a container
)

// forms are the forms of references, for messages.
var forms = map[Kind]string{
	Docker: "docker:NAME", Containerd: "containerd:NAMESPACE/KEY, such as containerd:k8s.io/CONTAINER-ID",
	Nerdctl: "nerdctl:NAME or nerdctl:NAMESPACE/NAME", CRI: "cri:ID", Fork: "fork:NAME",
}

const (
	nerdctlNamespace = "default" // unless another is named
	criNamespace     = "k8s.io"
)

// Reference names a container or a fork, and perhaps a snapshot of it.
type Reference struct {
	Kind      Kind
	Namespace string // of containerd; "" for Docker and Fork
	Name      string // name, id or key
	Snapshot  string // "" for none
}

// Is reports whether a name is a reference, and not the name of a layer, which has no colon.
func Is(name string) bool {
	kind, _, ok := strings.Cut(name, ":")
	_, known := forms[Kind(kind)]
	return ok && known
}

// Parse reads a reference, with @SNAPSHOT at its end or not. Returns errdefs.ErrInvalidArgument if it is none.
func Parse(name string) (Reference, error) {
	kind, rest, _ := strings.Cut(name, ":")
	r := Reference{Kind: Kind(kind)}
	form, ok := forms[r.Kind]
	if !ok {
		return r, fault.New(errdefs.ErrInvalidArgument, "%q is no reference to a container", name)
	}
	r.Name = rest
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		r.Name, r.Snapshot = rest[:at], rest[at+1:]
		ok = r.Snapshot != ""
	}
	namespace, own, hasNamespace := strings.Cut(r.Name, "/")
	switch {
	case r.Kind == Containerd || r.Kind == Nerdctl && hasNamespace:
		r.Namespace, r.Name = namespace, own
		ok = ok && namespace != ""
	case r.Kind == Nerdctl:
		r.Namespace = nerdctlNamespace
	case r.Kind == CRI:
		r.Namespace = criNamespace
	}
	if !ok || r.Name == "" {
		return r, fault.New(errdefs.ErrInvalidArgument, "%q: say %s", name, form)
	}
	return r, nil
}

// Layer is the reference without its snapshot, as people write it.
func Layer(name string) string {
	if at := strings.LastIndexByte(name, '@'); at >= 0 {
		return name[:at]
	}
	return name
}
