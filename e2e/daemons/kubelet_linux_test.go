package daemons

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// kubelet makes pods in the network of the host, as a kubelet would.
type kubelet struct {
	t   *testing.T
	h   containerdHost
	cri criapi.RuntimeServiceClient
}

// newKubelet connects to containerd, which gets the images of sandboxes and containers: idleImage.
func newKubelet(t *testing.T, ctx context.Context, h containerdHost) (*kubelet, *harness.Store) {
	t.Helper()
	store := h.containerd.Store("k8s.io", h.store.Snapshotter)
	image := idleImage(t, h.Host)
	for _, name := range []string{pauseImage, idleName} {
		_, err := store.ImportFile(store.Context(ctx), h.SaveImage(image, name))
		require.NoError(t, err)
	}
	conn, err := grpc.NewClient("unix://"+h.containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return &kubelet{t, h, criapi.NewRuntimeServiceClient(conn)}, store
}

// idleName is the name of idleImage.
const idleName = "docker.io/cowshed/sample:1"

func hostNetwork() *criapi.NamespaceOption {
	return &criapi.NamespaceOption{Network: criapi.NamespaceMode_NODE}
}

// pod is a sandbox that runs.
type pod struct {
	k      *kubelet
	id     string
	config *criapi.PodSandboxConfig
}

func (k *kubelet) run(ctx context.Context, metadata *criapi.PodSandboxMetadata, annotations map[string]string) *pod {
	k.t.Helper()
	config := &criapi.PodSandboxConfig{
		Metadata: metadata, Annotations: annotations,
		Linux: &criapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + k.h.Cgroup,
			SecurityContext: &criapi.LinuxSandboxSecurityContext{NamespaceOptions: hostNetwork()},
		},
	}
	made, err := k.cri.RunPodSandbox(ctx, &criapi.RunPodSandboxRequest{Config: config})
	require.NoError(k.t, err)
	return &pod{k, made.GetPodSandboxId(), config}
}

// create makes a container with the annotations of its pod.
func (p *pod) create(ctx context.Context, name string) (id string, err error) {
	made, err := p.k.cri.CreateContainer(ctx, &criapi.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &criapi.ContainerConfig{
			Metadata:    &criapi.ContainerMetadata{Name: name},
			Image:       &criapi.ImageSpec{Image: idleName},
			Annotations: p.config.GetAnnotations(),
			Linux:       &criapi.LinuxContainerConfig{SecurityContext: &criapi.LinuxContainerSecurityContext{NamespaceOptions: hostNetwork()}},
		},
	})
	return made.GetContainerId(), err
}

// start makes a container and starts it.
func (p *pod) start(ctx context.Context, name string) (id string) {
	p.k.t.Helper()
	id, err := p.create(ctx, name)
	require.NoError(p.k.t, err)
	_, err = p.k.cri.StartContainer(ctx, &criapi.StartContainerRequest{ContainerId: id})
	require.NoError(p.k.t, err)
	return id
}

// exec runs a script in a container.
func (p *pod) exec(ctx context.Context, id, script string) (stdout, stderr string) {
	p.k.t.Helper()
	result, err := p.k.cri.ExecSync(ctx, &criapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}})
	require.NoError(p.k.t, err)
	return string(result.GetStdout()), string(result.GetStderr())
}

// remove stops and removes a pod with its containers.
func (p *pod) remove(ctx context.Context) {
	p.k.t.Helper()
	_, err := p.k.cri.StopPodSandbox(ctx, &criapi.StopPodSandboxRequest{PodSandboxId: p.id})
	require.NoError(p.k.t, err)
	_, err = p.k.cri.RemovePodSandbox(ctx, &criapi.RemovePodSandboxRequest{PodSandboxId: p.id})
	require.NoError(p.k.t, err)
}
