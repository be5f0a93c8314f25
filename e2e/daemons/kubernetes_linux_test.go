package daemons

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
		store := h.containerd.Store("k8s.io", h.store.Snapshotter)
		ctx = store.Context(ctx)
		image := idleImage(t, h.Host)
		for _, name := range []string{pauseImage, "docker.io/cowshed/sample:1"} {
			_, err := store.ImportFile(ctx, h.SaveImage(image, name))
			require.NoError(t, err)
		}
		unpacked, err := h.cowshed.Prepared(ctx, "unpack")
		require.NoError(t, err)

		conn, err := grpc.NewClient("unix://"+h.containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close()) }()
		cri := criapi.NewRuntimeServiceClient(conn)
		const buildKey, unpackKey = "zo2wm3h5dsw5v1yoo4iiplkfu", "extract-1-AbCd"
		annotations := map[string]string{snapshots.LabelSnapshotRef: "none", "containerd.io/snapshot/cowshed": buildKey}
		network := &criapi.NamespaceOption{Network: criapi.NamespaceMode_NODE}
		sandbox := &criapi.PodSandboxConfig{
			Metadata:    &criapi.PodSandboxMetadata{Name: buildKey, Namespace: "buildkit", Uid: unpackKey},
			Annotations: annotations,
			Linux: &criapi.LinuxPodSandboxConfig{
				CgroupParent:    "/" + h.Cgroup,
				SecurityContext: &criapi.LinuxSandboxSecurityContext{NamespaceOptions: network},
			},
		}
		pod, err := cri.RunPodSandbox(ctx, &criapi.RunPodSandboxRequest{Config: sandbox})
		require.NoError(t, err)
		container, err := cri.CreateContainer(ctx, &criapi.CreateContainerRequest{
			PodSandboxId: pod.GetPodSandboxId(), SandboxConfig: sandbox,
			Config: &criapi.ContainerConfig{
				Metadata:    &criapi.ContainerMetadata{Name: buildKey},
				Image:       &criapi.ImageSpec{Image: "docker.io/cowshed/sample:1"},
				Annotations: annotations,
				Linux:       &criapi.LinuxContainerConfig{SecurityContext: &criapi.LinuxContainerSecurityContext{NamespaceOptions: network}},
			},
		})
		require.NoError(t, err)
		_, err = cri.StartContainer(ctx, &criapi.StartContainerRequest{ContainerId: container.GetContainerId()})
		require.NoError(t, err)
		result, err := cri.ExecSync(ctx, &criapi.ExecSyncRequest{
			ContainerId: container.GetContainerId(), Cmd: []string{"/bin/sh", "-c", limitScript}, Timeout: 60,
		})
		require.NoError(t, err)
		assert.Contains(t, string(result.GetStderr()), "Disk quota exceeded")
		assert.Equal(t, "and then: again\n", string(result.GetStdout()))

		for use, want := range map[string]int{"container": 2, "build": 0, "unpack": unpacked} {
			prepared, err := h.cowshed.Prepared(ctx, use)
			require.NoError(t, err)
			assert.Equal(t, want, prepared, use)
		}
		_, err = cri.StopPodSandbox(ctx, &criapi.StopPodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
		require.NoError(t, err)
		_, err = cri.RemovePodSandbox(ctx, &criapi.RemovePodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
		require.NoError(t, err)
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
