package migrate

import (
	"context"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// podImage is the image of the pods, and of their sandboxes.
const podImage = "docker.io/cowtest/pod:1"

// TestKubernetes takes a data root to the namespace of Kubernetes, whose plugin in containerd gives each image one more name.
// A pod runs one of the images. Undo leaves nothing.
func TestKubernetes(t *testing.T) {
	h := harness.NewHost(t, testfs.Btrfs(t))
	ctx := testContext(t)
	e := h.StartDebianDocker(harness.EngineOptions{Driver: "overlay2"})
	base := harness.BusyboxImage(t, h.Programs)
	idle := withConfig(t, base, func(c *v1.Config) { c.Cmd = []string{"/bin/sh", "-c", "exec sleep 3600"} })
	loadImages(t, ctx, e, h.Dir, []image{{tags("pod:1", "pod:latest"), idle}, {nil, withEmptyLayer(t, base, "LABEL untagged")}})
	e.Stop()

	cowshed := h.StartCowshed("containerd")
	opts := cowshed.Options()
	none := t.TempDir()
	opts.CRI = &harness.CRI{PauseImage: podImage, RegistryHosts: none, NetworkPlugins: none, Networks: none}
	containerd := h.StartContainerd("containerd", opts)
	store := containerd.Store("k8s.io", harness.CowshedSnapshotter)
	conn, err := grpc.NewClient("unix://"+containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	m := migration{h.CowshedProgram(), []string{
		"--root", cowshed.Root, "--from", e.Root, "--to", "containerd", "--containerd-address", containerd.Address, "--namespace", "k8s.io",
	}}

	m.run(t, ctx, "run")
	requireListed(t, ctx, conn, 2)
	runPod(t, ctx, h, criapi.NewRuntimeServiceClient(conn))
	m.run(t, ctx, "verify")
	m.run(t, ctx, "undo")
	requireListed(t, ctx, conn, 0)
	requireNothing(t, ctx, store)
	requireNoBlobs(t, ctx, store)
}

// requireListed waits until the plugin lists so many images, each by its ID. It learns of them by events.
func requireListed(t *testing.T, ctx context.Context, conn grpc.ClientConnInterface, n int) {
	t.Helper()
	var names []string
	require.Eventually(t, func() bool {
		list, err := criapi.NewImageServiceClient(conn).ListImages(ctx, &criapi.ListImagesRequest{})
		if !assert.NoError(t, err) || len(list.GetImages()) != n {
			return false
		}
		names = nil
		for _, img := range list.GetImages() {
			names = append(names, img.GetRepoTags()...)
		}
		return n == 0 || len(names) == 2
	}, testfs.Patience, 10*time.Millisecond)
	if slices.Sort(names); n > 0 {
		assert.Equal(t, []string{podImage, "docker.io/cowtest/pod:latest"}, names)
	}
}

// runPod runs a pod with a container in the network of the host, and removes both.
func runPod(t *testing.T, ctx context.Context, h *harness.Host, cri criapi.RuntimeServiceClient) {
	t.Helper()
	network := &criapi.NamespaceOption{Network: criapi.NamespaceMode_NODE}
	config := &criapi.PodSandboxConfig{
		Metadata: &criapi.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "pod"},
		Linux: &criapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + h.Cgroup, SecurityContext: &criapi.LinuxSandboxSecurityContext{NamespaceOptions: network},
		},
	}
	pod, err := cri.RunPodSandbox(ctx, &criapi.RunPodSandboxRequest{Config: config})
	require.NoError(t, err)
	made, err := cri.CreateContainer(ctx, &criapi.CreateContainerRequest{
		PodSandboxId: pod.GetPodSandboxId(), SandboxConfig: config,
		Config: &criapi.ContainerConfig{
			Metadata: &criapi.ContainerMetadata{Name: "c"}, Image: &criapi.ImageSpec{Image: podImage},
			Linux: &criapi.LinuxContainerConfig{SecurityContext: &criapi.LinuxContainerSecurityContext{NamespaceOptions: network}},
		},
	})
	require.NoError(t, err)
	_, err = cri.StartContainer(ctx, &criapi.StartContainerRequest{ContainerId: made.GetContainerId()})
	require.NoError(t, err)
	result, err := cri.ExecSync(ctx, &criapi.ExecSyncRequest{ContainerId: made.GetContainerId(), Cmd: []string{"/bin/sh", "-c", "echo runs"}})
	require.NoError(t, err)
	assert.Equal(t, "runs\n", string(result.GetStdout()))
	_, err = cri.StopPodSandbox(ctx, &criapi.StopPodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
	require.NoError(t, err)
	_, err = cri.RemovePodSandbox(ctx, &criapi.RemovePodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
	require.NoError(t, err)
}
