package containername

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
)

const random = "s-ABCDEFGHIJKLMNOPQRSTUVWXYZ."

func TestOf(t *testing.T) {
	id := strings.Repeat("ab", 32)
	for volume, want := range map[string]ID{
		random + "k8s.io_2f12_2f" + id:         {"k8s.io", id},
		random + "web":                         {"", "web"},
		random + strings.Repeat("a", 88) + "_": {},
	} {
		got, ok := Of(volume)
		assert.True(t, ok, volume)
		assert.Equal(t, want, got)
	}
	for _, volume := range []string{
		random + "moby_2f12_2fextract-1-Ab_5f-_20sha256_3a" + id[:20] + "_",
		random + "buildkit_2f3_2f" + id,
		random + "default_2f3_2fextract-1_20sha256_3aab",
	} {
		_, ok := Of(volume)
		assert.False(t, ok, volume)
	}
}

// labelled serves containers with labels, by namespace and id.
type labelled struct {
	containersapi.UnimplementedContainersServer
	labels map[string]map[string]string
}

func (l labelled) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	namespace, _ := namespaces.Namespace(ctx)
	labels, ok := l.labels[namespace+"/"+r.GetID()]
	if !ok {
		return nil, status.Error(codes.NotFound, "none")
	}
	return &containersapi.GetContainerResponse{Container: &containersapi.Container{Labels: labels}}, nil
}

// TestName: names come from labels of containerd's containers, and for Docker from its API. They are on one line and short.
func TestName(t *testing.T) {
	dir := t.TempDir()
	listen := func(name string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		require.NoError(t, err)
		return l
	}
	server := grpc.NewServer()
	containersapi.RegisterContainersServer(server, labelled{labels: map[string]map[string]string{
		"k8s.io/app":     {podNamespaceLabel: "shop", podLabel: "web-0", containerLabel: "app"},
		"k8s.io/pause":   {podNamespaceLabel: "shop", podLabel: "web-0", sandboxLabel: "sandbox"},
		"default/web":    {nerdctlLabel: "a\n\x1b[31m" + strings.Repeat("x", 1000)},
		"default/plain":  {},
		"moby/unasked":   {nerdctlLabel: "wrong"},
		"another/docker": {},
	}})
	containerd := listen("containerd")
	go func() { _ = server.Serve(containerd) }()
	defer server.Stop()
	engine := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/containers/1234/json" {
			http.Error(w, `{"message":"none"}`, http.StatusNotFound)
			return
		}
		_, _ = w.Write([]byte(`{"Id":"1234","Name":"/web"}`))
	})}
	api := listen("docker")
	go func() { _ = engine.Serve(api) }()
	defer engine.Close()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "containerd"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	docker, err := dockerapi.NewClient("unix://" + filepath.Join(dir, "docker"))
	require.NoError(t, err)
	defer docker.Close()

	for id, want := range map[ID]Name{
		{"k8s.io", "app"}:    {"shop", "web-0", "app"},
		{"k8s.io", "pause"}:  {"shop", "web-0", "sandbox"},
		{"default", "web"}:   {"", "", "a��[31m" + strings.Repeat("x", maxName-7)},
		{"default", "plain"}: {},
		{"moby", "1234"}:     {"", "", "web"},
	} {
		got, err := New(conn, docker).Name(t.Context(), id)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	for _, id := range []ID{{"default", "none"}, {"moby", "unasked"}} {
		_, err := New(conn, docker).Name(t.Context(), id)
		require.ErrorIs(t, err, errdefs.ErrNotFound)
	}
	_, err = New(conn, nil).Name(t.Context(), ID{"moby", "unasked"})
	require.NoError(t, err, "without the engine's API, containerd is asked")
}
