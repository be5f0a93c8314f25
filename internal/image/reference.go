package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/outfile"
)

// Transport says how images are kept in the place that a [Reference] names.
type Transport string

// The transports, by the names that stand before the colon in a reference.
const (
	Registry      Transport = "docker"         // a registry that speaks the OCI distribution protocol
	OCILayout     Transport = "oci"            // an OCI image layout in a directory
	OCIArchive    Transport = "oci-archive"    // an OCI image layout in a tar
	DockerArchive Transport = "docker-archive" // the tar of docker save
	Containerd    Transport = "containerd"     // the images of a namespace of containerd; can be written to only
	RootFS        Transport = "rootfs"         // the tar of a root filesystem; becomes an image of one layer

	guessed Transport = "" // a file or stream that is to be looked into
)

// Stdio is the path that stands for standard input or output.
const Stdio = "-"

// Reference names a place where images are.
type Reference struct {
	Transport Transport
	Path      string // of a file or directory; [Stdio]; of a registry: the reference there; of containerd: the namespace
	// Image says which image of a layout or archive: a name, a digest, or @ and a place in the list, from 0. "" is the
	// only one. In containerd it is the whole name.
	Image string
}

// String is the form that ParseReference reads.
func (r Reference) String() string {
	switch {
	case r.Transport == guessed:
		return r.Path
	case r.Transport == Registry:
		return "docker://" + r.Path
	case r.Transport == Containerd:
		return "containerd://" + r.Path + "/" + r.Image
	case r.Image == "":
		return string(r.Transport) + ":" + r.Path
	}
	return string(r.Transport) + ":" + r.Path + ":" + r.Image
}

// ParseReference reads a reference. Its forms are:
//
//   - docker://NAME
//   - TRANSPORT:PATH[:IMAGE], where the path has no colon unless it exists
//   - without a transport a path or [Stdio], or a name whose first part is the host of a registry
//
// A path that exists is always a path, whatever else it looks like. Returns errdefs.ErrInvalidArgument or
// ErrNotFound.
func ParseReference(s string) (Reference, error) {
	if s == "" {
		return Reference{}, fault.New(errdefs.ErrInvalidArgument, "reference is empty")
	}
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return parseRegistry(rest)
	}
	transport, rest, ok := strings.Cut(s, ":")
	switch t := Transport(transport); t {
	case OCILayout, OCIArchive, DockerArchive, RootFS:
		if ok {
			return parsePath(t, rest)
		}
	}
	return guessReference(s)
}

// NamesDestination reports whether a text begins with a transport that an image can be written to.
func NamesDestination(s string) bool {
	transport, rest, ok := strings.Cut(s, ":")
	switch Transport(transport) {
	case OCILayout, OCIArchive, DockerArchive:
		return ok
	case Registry, Containerd:
		return strings.HasPrefix(rest, "//")
	}
	return false
}

// ParseDestination reads a reference to a place that an image is to be written to, which therefore names
// its transport. The error is errdefs.ErrInvalidArgument.
func ParseDestination(s string) (Reference, error) {
	if rest, ok := strings.CutPrefix(s, "docker://"); ok {
		return parseRegistry(rest)
	}
	if rest, ok := strings.CutPrefix(s, "containerd://"); ok {
		return parseContainerd(rest)
	}
	if transport, rest, ok := strings.Cut(s, ":"); ok {
		switch t := Transport(transport); t {
		case OCILayout, OCIArchive, DockerArchive:
			return parsePath(t, rest)
		}
	}
	return Reference{}, fault.New(errdefs.ErrInvalidArgument, "destination %q: name the kind: oci:DIR, oci-archive:FILE, docker-archive:FILE, docker://NAME or containerd://NAMESPACE/NAME", clip(s))
}

func parseRegistry(s string) (Reference, error) {
	if _, err := name.ParseReference(s); err != nil {
		return Reference{}, fault.New(errdefs.ErrInvalidArgument, "registry reference %q: %w", s, err)
	}
	return Reference{Transport: Registry, Path: s}, nil
}

// parseContainerd reads NAMESPACE/NAME. The name becomes the whole one, as all clients of containerd write it.
func parseContainerd(s string) (Reference, error) {
	namespace, named, _ := strings.Cut(s, "/")
	_, _, ok := repoTag(named)
	if !ok || identifiers.Validate(namespace) != nil {
		return Reference{}, fault.New(errdefs.ErrInvalidArgument, "reference containerd://%s: say containerd://NAMESPACE/NAME, such as containerd://k8s.io/team/app:2", clip(s))
	}
	return Reference{Transport: Containerd, Path: namespace, Image: canonicalName(named)}, nil
}

func parsePath(t Transport, s string) (Reference, error) {
	path, image := cutImage(s)
	if t == RootFS {
		path, image = s, ""
	}
	if t != OCILayout && outfile.Stdout(path) {
		path = Stdio
	}
	if path == "" {
		return Reference{}, fault.New(errdefs.ErrInvalidArgument, "reference %s:%s has no path", t, s)
	}
	return Reference{Transport: t, Path: path, Image: image}, nil
}

// cutImage cuts PATH[:IMAGE] where the longest path ends that exists, or else at the first colon.
func cutImage(s string) (path, image string) {
	for end := len(s); end > 0; end = strings.LastIndexByte(s[:end], ':') {
		if exists(s[:end]) {
			return s[:end], strings.TrimPrefix(s[end:], ":")
		}
	}
	path, image, _ = strings.Cut(s, ":")
	return path, image
}

func guessReference(s string) (Reference, error) {
	if s == Stdio {
		return Reference{Path: s}, nil
	}
	info, err := os.Stat(s)
	switch {
	case err == nil && !info.IsDir():
		return Reference{Path: s}, nil
	case err == nil:
		if exists(filepath.Join(s, "oci-layout")) {
			return Reference{Transport: OCILayout, Path: s}, nil
		}
		return Reference{}, fault.New(errdefs.ErrInvalidArgument, "directory %s is not an OCI layout (it has no oci-layout file); "+
			"a root filesystem is imported as a tar of it: tar -C %[1]s -c . | cowshed import rootfs:-", s)
	case !errors.Is(err, fs.ErrNotExist):
		return Reference{}, err
	case hasRegistryHost(s):
		return parseRegistry(s)
	}
	return Reference{}, fault.New(errdefs.ErrNotFound, "there is no file %s (an image in a registry is written docker://NAME)", s)
}

// hasRegistryHost reports whether s starts with the form of a host, by the rule of Docker's reference grammar: a dot,
// a port or "localhost" before the first slash.
func hasRegistryHost(s string) bool {
	host, _, ok := strings.Cut(s, "/")
	if !ok || host == "" || host[0] == '.' {
		return false
	}
	return host == "localhost" || strings.ContainsAny(host, ".:")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
