package snapshotter

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// Use is the purpose of an active snapshot. Options says which uses have which limit.
type Use string

// Uses, as UseOf tells them apart.
const (
	// UseContainer is the root of a container, and whatever is not known to be something else.
	UseContainer Use = "container"
	// UseBuild is BuildKit's: a step, a context, a cache mount or a merge.
	UseBuild Use = "build"
	// UseUnpack is a layer of an image that is extracted, copied or given other owners.
	UseUnpack Use = "unpack"
)

// Uses lists them all.
func Uses() []Use { return []Use{UseContainer, UseBuild, UseUnpack} }

// UseOf derives the use of an active snapshot from its key. There is no other source: containerd passes on its
// namespace, which is part of the key, and labels that begin with "containerd.io/snapshot". BuildKit sets no such
// label. The labels of a sandbox are the annotations of its pod, whose author may be hostile.
//
// Layers have keys that no container can have as its id, because of a space, a colon, or their length. A build's key
// can be an id, and is the id of a container only if somebody with containerd's socket chose it: CRI, Docker and
// nerdctl make ids of 64 characters.
func UseOf(key string) Use {
	namespace, key := SplitKey(key)
	switch {
	case isUnpackKey(key) || layerKey.MatchString(key) || unmappedKey.MatchString(key):
		return UseUnpack
	case namespace == buildkitNamespace || buildkitID.MatchString(key):
		return UseBuild
	}
	return UseContainer
}

// buildkitNamespace is containerd's namespace that BuildKit uses if it is not told another one.
const buildkitNamespace = "buildkit"

var (
	// layerKey ends with the chain id of a layer. Docker's commit has "extract-UNIQUE-" before it, nerdctl's commit
	// "UNIQUE-", Docker's migration of graph drivers "migration-". containerd's client, where it changes the owners of a
	// layer for a user namespace, has "-remap" after it, and nothing before.
	layerKey = regexp.MustCompile(`(^|[ -])sha256:[0-9a-f]{64}(-remap)?$`)

	// unmappedKey is Docker's copy of a container in a user namespace, for a commit: the id of the container, user and
	// group id of its root, a unique part.
	unmappedKey = regexp.MustCompile(`^[0-9a-f]{64}-[0-9]+-[0-9]+-[0-9]+-[A-Za-z0-9_-]{4}-remap$`)

	// buildkitID is the form of ids of BuildKit's identity.NewID.
	buildkitID = regexp.MustCompile(`^[0-9a-z]{25}$`)
)

// initKey is Docker's layer between an image and a container: the id of the container, and a suffix.
var initKey = regexp.MustCompile(`^[0-9a-f]{64}-init-key$`)

// isInitKey reports whether an active snapshot is to be Docker's layer between an image and a single container. Its root
// style stays when it is committed, so that the container shares the image and not this layer.
func isInitKey(key string) bool {
	_, key = SplitKey(key)
	return initKey.MatchString(key)
}

// SplitKey returns the namespace that containerd has put before a key, with a number and slashes, and the key that its
// client has chosen. namespace is "" if the key is a client's of the snapshotter itself.
func SplitKey(key string) (namespace, own string) {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) < 3 || parts[0] == "" {
		return "", key
	}
	if _, err := strconv.ParseUint(parts[1], 10, 64); err != nil {
		return "", key
	}
	return parts[0], parts[2]
}

// isUnpackKey reports whether a key has the form of snapshots.UnpackKeyFormat, as containerd and BuildKit unpack layers.
func isUnpackKey(key string) bool {
	unique, layer, ok := strings.Cut(key, " ")
	return ok && layer != "" && strings.HasPrefix(unique, snapshots.UnpackKeyPrefix+"-") && !strings.Contains(unique, "/")
}
