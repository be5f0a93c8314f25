package daemon

import (
	"context"
	"fmt"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/containerdapi"
)

// connectContainerd returns a connection to containerd that is made at its first use, and again after containerd has
// been restarted: containerd may start after this daemon, and stop before it.
func connectContainerd(address string) (*grpc.ClientConn, error) {
	retry := backoff.DefaultConfig
	retry.BaseDelay, retry.MaxDelay = 100*time.Millisecond, time.Second
	return containerdapi.Dial(address,
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: 5 * time.Second}))
}

// contentRoot returns a function that asks containerd for the directory of its content store. The function returns
// errdefs.ErrNotFound if containerd has no such directory on this machine.
func contentRoot(conn grpc.ClientConnInterface) func(ctx context.Context) (string, error) {
	client := introspectionapi.NewIntrospectionClient(conn)
	return func(ctx context.Context) (string, error) {
		answer, err := client.Plugins(ctx, &introspectionapi.PluginsRequest{Filters: []string{"type==io.containerd.content.v1,id==content"}})
		if err != nil {
			return "", fmt.Errorf("ask containerd for its content store: %w", err)
		}
		for _, plugin := range answer.GetPlugins() {
			if root := plugin.GetExports()["root"]; root != "" {
				return root, nil
			}
		}
		return "", fault.New(errdefs.ErrNotFound, "directory of containerd's content store")
	}
}
