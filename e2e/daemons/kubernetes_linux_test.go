package daemons

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// pauseImage is the name of the image that containerd's CRI makes sandboxes of.
const pauseImage = "registry.k8s.io/pause:3.10.2"

// withCRI is a snapshotter of a containerd that serves Kubernetes.
func withCRI(s snapshotter) snapshotter {
	start := s.start
	s.start = func(t *testing.T, h *harness.Host) (harness.ContainerdOptions, *harness.Cowshed) {
		opts, cowshed := start(t, h)
		opts.CRI = noCNI(t)
		return opts, cowshed
	}
	return s
}

// noCNI is for pods that have the network of the host, from images that are there.
func noCNI(t *testing.T) *harness.CRI {
	none := t.TempDir()
	return &harness.CRI{PauseImage: pauseImage, RegistryHosts: none, NetworkPlugins: none, Networks: none}
}

// TestKubernetesLimit: a pod has the limit of containers, whatever its author does. This holds in the container and
// in the sandbox, which has the annotations of the pod as labels.
func TestKubernetesLimit(t *testing.T) {
	inEachSnapshotter(t, []snapshotter{withCRI(cowshed(`default_limit = "32M"`))}, func(t *testing.T, ctx context.Context, h containerdHost) {
		k, store := newKubelet(t, ctx, h)
		ctx = store.Context(ctx)
		unpacked, err := h.cowshed.Prepared(ctx, "unpack")
		require.NoError(t, err)
		const buildKey, unpackKey = "zo2wm3h5dsw5v1yoo4iiplkfu", "extract-1-AbCd"
		annotations := map[string]string{snapshots.LabelSnapshotRef: "none", "containerd.io/snapshot/cowshed": buildKey}
		pod := k.run(ctx, &criapi.PodSandboxMetadata{Name: buildKey, Namespace: "buildkit", Uid: unpackKey}, annotations)
		stdout, stderr := pod.exec(ctx, pod.start(ctx, buildKey), limitScript)
		assert.Contains(t, stderr, "Disk quota exceeded")
		assert.Equal(t, "and then: again\n", stdout)

		for use, want := range map[string]int{"container": 2, "build": 0, "unpack": unpacked} {
			prepared, err := h.cowshed.Prepared(ctx, use)
			require.NoError(t, err)
			assert.Equal(t, want, prepared, use)
		}
		pod.remove(ctx)
		requireCleared(t, ctx, store)
	})
}

// idleImage is the sample image with a command that does nothing until it is killed.
func idleImage(t *testing.T, h *harness.Host) v1.Image {
	t.Helper()
	image := harness.SampleImage(t, h.Programs)
	file, err := image.ConfigFile()
	require.NoError(t, err)
	config := file.Config
	config.Cmd = []string{"/bin/sh", "-c", "exec sleep 3600"}
	image, err = mutate.Config(image, config)
	require.NoError(t, err)
	return image
}
