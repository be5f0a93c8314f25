// Package nri has the Sources of Kubernetes and of Docker Engine 29: a plugin of the Node Resource Interface of containerd or of
// the engine. Annotations of pods and labels of Docker's containers say the sizes of containers' roots. A container whose size is
// not valid is rejected.
//
// It speaks to containerd by the API of github.com/containerd/nri. It does without the stub there, whose Start neither ends
// with its context nor when the connection ends before the plugin is configured.
package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet"
)

// Annotations of pods.
const (
	SizeAnnotation          = "cowshed.dev/size"      // of each container
	ContainerSizeAnnotation = "size.cowshed.dev/"     // of the container whose name follows; it comes first
	pluginName              = "cowshed"               // by which containerd knows the plugin
	pluginIndex             = "10"                    // its place among plugins, which does not matter
	answerTimeout           = 10 * time.Second        // for containerd to register and configure the plugin
	kubeletTime             = time.Second / 2         // for the kubelet to name a new pod, of the two seconds that NRI allows
	limitTime               = 1500 * time.Millisecond // for a new container to get its limit, of the same two seconds
	catchUpTime             = time.Second             // in which containers get their limits before containerd starts any
)

// Source is the plugin.
type Source struct {
	Socket string // of NRI
	Max    uint64 // the largest size that is allowed; 0: any
	Docker bool   // the socket is a Docker Engine's, not containerd's
	// Kubelet says the limits of containers without an annotation; nil: they have none.
	Kubelet *kubelet.Source
}

// Engine implements enginelimits.Source.
func (s *Source) Engine() string {
	if s.Docker {
		return "docker-nri"
	}
	return "nri"
}

// NamesAll implements enginelimits.Source.
func (s *Source) NamesAll() bool { return true }

// namespace is the engine's in containerd.
func (s *Source) namespace() string {
	if s.Docker {
		return dockerapi.Namespace
	}
	return "k8s.io"
}

// Run implements enginelimits.Source.
func (s *Source) Run(ctx context.Context, l *enginelimits.Limiter, connected func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var dialer net.Dialer
	trunk, err := dialer.DialContext(ctx, "unix", s.Socket)
	if err != nil {
		return err
	}
	mux := multiplex.Multiplex(trunk)
	p := &plugin{source: s, limiter: l, connected: connected, configured: make(chan struct{}), jobs: make(chan job), ended: make(chan struct{})}
	link, err := connect(ctx, mux, p)
	if err != nil {
		return errors.Join(err, mux.Close())
	}
	registered := make(chan error, 1)
	go func() { registered <- register(ctx, link.client) }()
	err = p.run(ctx, registered, link.ended)
	close(p.ended)
	cancel()
	link.close(mux)
	p.limiting.Wait()
	return err
}

// link is the connection in both directions.
type link struct {
	server *ttrpc.Server // of the plugin
	served chan struct{} // closed when server has ended
	client *ttrpc.Client // of containerd's service
	ended  chan struct{} // closed when the connection has ended
}

func connect(ctx context.Context, mux multiplex.Mux, p *plugin) (link, error) {
	listener, err := mux.Listen(multiplex.PluginServiceConn)
	if err != nil {
		return link{}, err
	}
	conn, err := mux.Open(multiplex.RuntimeServiceConn)
	if err != nil {
		return link{}, err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return link{}, err
	}
	api.RegisterPluginService(server, p)
	k := link{server: server, served: make(chan struct{}), ended: make(chan struct{})}
	k.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(sync.OnceFunc(func() { close(k.ended) })))
	go func() {
		defer close(k.served)
		_ = server.Serve(ctx, listener) // it ends with the connection, which the client notices
	}()
	return k, nil
}

// close ends the connection. Errors of a connection that may have ended already tell nothing.
func (k link) close(mux multiplex.Mux) {
	_ = k.client.Close()
	_ = k.server.Close()
	_ = mux.Close()
	<-k.served
}

func register(ctx context.Context, client *ttrpc.Client) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := api.NewRuntimeClient(client).RegisterPlugin(ctx, &api.RegisterPluginRequest{PluginName: pluginName, PluginIdx: pluginIndex})
	if err != nil {
		return fmt.Errorf("register with NRI: %w", err)
	}
	return nil
}
