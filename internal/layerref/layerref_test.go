package layerref

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	for name, want := range map[string]Reference{
		"docker:web":                {Kind: Docker, Name: "web"},
		"docker:web@before":         {Kind: Docker, Name: "web", Snapshot: "before"},
		"containerd:k8s.io/a/b":     {Kind: Containerd, Namespace: "k8s.io", Name: "a/b"},
		"containerd:x/sha256:1@one": {Kind: Containerd, Namespace: "x", Name: "sha256:1", Snapshot: "one"},
		"containerd:x/a@b@c":        {Kind: Containerd, Namespace: "x", Name: "a@b", Snapshot: "c"},
		"nerdctl:web":               {Kind: Nerdctl, Namespace: "default", Name: "web"},
		"nerdctl:team/web@1":        {Kind: Nerdctl, Namespace: "team", Name: "web", Snapshot: "1"},
		"cri:0123abc":               {Kind: CRI, Namespace: "k8s.io", Name: "0123abc"},
		"fork:try-1":                {Kind: Fork, Name: "try-1"},
	} {
		got, err := Parse(name)
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
		assert.True(t, Is(name), name)
	}
	for _, name := range []string{
		"docker:", "docker:@x", "docker:web@", "containerd:test", "containerd:/web", "containerd:test/", "nerdctl:/web", "nerdctl:a/", "cri:", "fork:",
	} {
		_, err := Parse(name)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	for _, name := range []string{"web", "docker", "web:1", "podman:web", "docker.io/web:1"} {
		assert.False(t, Is(name), name)
		_, err := Parse(name)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	assert.Equal(t, "docker:web", Layer("docker:web@before"))
	assert.Equal(t, "docker:web", Layer("docker:web"))
}
