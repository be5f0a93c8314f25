package nri

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet"
)

// events are the requests and events that containerd sends.
func (s *Source) events() int32 {
	var mask api.EventMask
	mask.Set(api.Event_CREATE_CONTAINER, api.Event_REMOVE_CONTAINER)
	if s.Kubelet != nil {
		mask.Set(api.Event_RUN_POD_SANDBOX)
	}
	return int32(mask)
}

// plugin answers containerd on one connection. Goroutines that run starts set limits. They have ended when Source.Run returns.
type plugin struct {
	source     *Source
	limiter    *enginelimits.Limiter
	connected  func()
	configured chan struct{} // closed when containerd has configured the plugin
	configure  sync.Once
	jobs       chan job
	ended      chan struct{}  // closed when run has returned
	limiting   sync.WaitGroup // is added to in the goroutine of run alone

	mu      sync.Mutex
	partial []*api.SynchronizeRequest // the first parts of one
}

// job is work for the goroutine of run.
type job struct {
	do   func(ctx context.Context) // ctx is that of run
	done chan struct{}
}

// run does the work of requests until the connection ends.
func (p *plugin) run(ctx context.Context, registered <-chan error, ended <-chan struct{}) error {
	timeout := time.NewTimer(answerTimeout)
	defer timeout.Stop()
	configured := p.configured
	var jobs chan job // nil until the plugin is configured
	for {
		select {
		case j := <-jobs:
			j.do(ctx)
			close(j.done)
		case err := <-registered:
			if err != nil {
				return err
			}
			registered = nil
		case <-configured:
			configured, jobs = nil, p.jobs
			timeout.Stop()
		case <-timeout.C:
			return errors.New("NRI has not configured the plugin")
		case <-ended:
			return errors.New("NRI has ended the connection")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// inRun calls f in the goroutine of run, once the plugin is configured.
func (p *plugin) inRun(ctx context.Context, f func(ctx context.Context)) error {
	j := job{f, make(chan struct{})}
	select {
	case p.jobs <- j:
		<-j.done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.ended:
		return errStops
	}
}

var errStops = status.Error(codes.Unavailable, "cowshed: the daemon stops")

// Configure implements api.PluginService.
func (p *plugin) Configure(context.Context, *api.ConfigureRequest) (*api.ConfigureResponse, error) {
	p.configure.Do(func() { close(p.configured) })
	return &api.ConfigureResponse{Events: p.source.events()}, nil
}

// Synchronize implements api.PluginService. It names all containers, in parts if they are many. containerd neither creates nor
// starts a container before it has the answer, and asks about each container afterwards. So the plugin is connected now, and
// containers that were created before get their limits first, as far as containerd's patience goes.
func (p *plugin) Synchronize(ctx context.Context, req *api.SynchronizeRequest) (*api.SynchronizeResponse, error) {
	p.mu.Lock()
	p.partial = append(p.partial, req)
	parts := p.partial
	if !req.GetMore() {
		p.partial = nil
	}
	p.mu.Unlock()
	if req.GetMore() {
		return &api.SynchronizeResponse{More: true}, nil
	}
	containers, later := p.asked(parts)
	caught := make(chan struct{})
	if err := p.inRun(ctx, func(ctx context.Context) {
		p.connected()
		p.limiting.Go(func() {
			defer close(caught)
			p.catchUp(ctx, containers, later)
		})
	}); err != nil {
		return nil, err
	}
	patience := time.NewTimer(catchUpTime)
	defer patience.Stop()
	select {
	case <-caught:
	case <-patience.C:
	}
	return &api.SynchronizeResponse{}, nil
}

// asked lists the containers for which an annotation asks for a limit. The others are to wait for the kubelet.
func (p *plugin) asked(parts []*api.SynchronizeRequest) (containers []enginelimits.Container, later []kubelet.Container) {
	pods := make(map[string]*api.PodSandbox)
	for _, part := range parts {
		for _, pod := range part.GetPods() {
			pods[pod.GetId()] = pod
		}
	}
	for _, part := range parts {
		for _, c := range part.GetContainers() {
			pod := pods[c.GetPodSandboxId()]
			limited, ok := p.source.container(pod, c)
			if c.GetCreatedAt() != 0 {
				limited.Created = time.Unix(0, c.GetCreatedAt())
			}
			switch {
			case ok:
				containers = append(containers, limited)
			case p.source.Kubelet != nil:
				later = append(later, inPod(limited, pod, c))
			}
		}
	}
	return containers, later
}

// catchUp limits containers until the connection ends; the next one names them again.
func (p *plugin) catchUp(ctx context.Context, containers []enginelimits.Container, later []kubelet.Container) {
	for _, c := range later {
		p.later(ctx, c)
	}
	for _, c := range containers {
		if ctx.Err() != nil {
			return
		}
		p.limiter.Catch(ctx, c)
	}
}

// later makes a container wait for the kubelet.
func (p *plugin) later(ctx context.Context, c kubelet.Container) {
	if err := p.source.Kubelet.Later(c); err != nil {
		c.Engine = kubelet.Engine
		p.limiter.Unknown(ctx, c.Container, err)
	}
}

// CreateContainer implements api.PluginService. Its error rejects the container. containerd has prepared the container's snapshot
// before, and Docker Engine does it afterwards.
func (p *plugin) CreateContainer(ctx context.Context, req *api.CreateContainerRequest) (*api.CreateContainerResponse, error) {
	start := time.Now()
	c, ok := p.source.container(req.GetPod(), req.GetContainer())
	if !ok {
		return &api.CreateContainerResponse{}, p.askKubelet(ctx, start.Add(limitTime), inPod(c, req.GetPod(), req.GetContainer()))
	}
	var err error
	if p.source.Docker {
		if runErr := p.inRun(ctx, func(ctx context.Context) { err = p.limiter.Expect(ctx, c) }); runErr != nil {
			return nil, runErr
		}
	} else {
		c.Created = start
		_, err = p.limit(ctx, start.Add(limitTime), c)
	}
	switch {
	case errors.Is(err, errStops):
	case errdefs.IsInvalidArgument(err):
		err = status.Errorf(codes.InvalidArgument, "cowshed: %v", err)
	case err != nil:
		err = status.Errorf(codes.Internal, "cowshed: the limit of the container's root cannot be set: %v", err)
	}
	return &api.CreateContainerResponse{}, err
}

// limit gives a new container its limit. containerd ends the connection if it has no answer in time. So where the limit is not set
// until then, late is true, and setting it goes on. The container exists before its limit then, and the report has it until the end.
func (p *plugin) limit(ctx context.Context, until time.Time, c enginelimits.Container) (late bool, err error) {
	result, answered := make(chan error), make(chan bool, 1) // answered says whether the container comes to exist
	if err := p.inRun(ctx, func(ctx context.Context) {
		p.limiting.Go(func() {
			err := p.limiter.Limit(ctx, c)
			select {
			case result <- err:
			case exists := <-answered:
				if exists {
					p.limiter.Ended(ctx, c, err)
				}
			}
		})
	}); err != nil {
		return false, err
	}
	patience := time.NewTimer(time.Until(until))
	defer patience.Stop()
	select {
	case err = <-result:
		return false, err
	case <-patience.C:
		err = p.limiter.Late(c)
	case <-ctx.Done():
		err = ctx.Err()
	}
	answered <- err == nil
	return err == nil, err
}

// askKubelet gives a container the limit that the kubelet knows. It never rejects the container: the pod was perhaps made for
// nodes without Cowshed.
func (p *plugin) askKubelet(ctx context.Context, until time.Time, c kubelet.Container) error {
	if p.source.Kubelet == nil {
		return nil
	}
	c.Created = time.Now()
	waiting, cancel := context.WithTimeout(ctx, kubeletTime)
	limited, err := p.source.Kubelet.Limit(waiting, c)
	cancel()
	if err == nil && limited.Size == "" {
		return nil
	}
	if err == nil {
		late, err := p.limit(ctx, until, limited)
		if errors.Is(err, errStops) {
			return err
		}
		if !late {
			p.limiter.Ended(ctx, limited, err)
		}
		return nil
	}
	return p.inRun(ctx, func(ctx context.Context) {
		c.Engine = kubelet.Engine
		p.limiter.Unknown(ctx, c.Container, err)
		p.later(ctx, c)
	})
}

// inPod is a container as the kubelet knows it.
func inPod(limited enginelimits.Container, pod *api.PodSandbox, c *api.Container) kubelet.Container {
	return kubelet.Container{Container: limited, Pod: pod.GetUid(), InPod: c.GetName()}
}

// RunPodSandbox implements api.PluginService. The kubelet is asked while it still gets the images.
func (p *plugin) RunPodSandbox(_ context.Context, req *api.RunPodSandboxRequest) (*api.RunPodSandboxResponse, error) {
	if p.source.Kubelet != nil {
		p.source.Kubelet.Wanted(req.GetPod().GetUid())
	}
	return &api.RunPodSandboxResponse{}, nil
}

// container returns a container with the size that its label or the annotations of its pod say, if they say any.
func (s *Source) container(pod *api.PodSandbox, c *api.Container) (enginelimits.Container, bool) {
	limited := enginelimits.Container{Engine: s.Engine(), Namespace: s.namespace(), ID: c.GetId(), Max: s.Max}
	if s.Docker {
		size, ok := c.GetLabels()[dockerapi.SizeLabel]
		limited.Name, limited.Setting, limited.Size = strings.TrimPrefix(c.GetName(), "/"), "label "+dockerapi.SizeLabel, size
		return limited, ok
	}
	limited.Name = fmt.Sprintf("%s/%s/%s", pod.GetNamespace(), pod.GetName(), c.GetName())
	for _, annotation := range []string{ContainerSizeAnnotation + c.GetName(), SizeAnnotation} {
		if size, ok := pod.GetAnnotations()[annotation]; ok {
			limited.Setting, limited.Size = "annotation "+annotation, size
			return limited, true
		}
	}
	return limited, false
}

// RemoveContainer implements api.PluginService.
func (p *plugin) RemoveContainer(_ context.Context, req *api.RemoveContainerRequest) (*api.RemoveContainerResponse, error) {
	p.forget(req.GetContainer())
	return &api.RemoveContainerResponse{}, nil
}

// StateChange implements api.PluginService. Some versions of containerd send RemoveContainer as one.
func (p *plugin) StateChange(_ context.Context, event *api.StateChangeEvent) (*api.Empty, error) {
	if event.GetEvent() == api.Event_REMOVE_CONTAINER {
		p.forget(event.GetContainer())
	}
	return &api.Empty{}, nil
}

func (p *plugin) forget(c *api.Container) {
	p.limiter.Forget(p.source.namespace(), c.GetId())
	if p.source.Kubelet != nil {
		p.source.Kubelet.Gone(c.GetId())
	}
}
