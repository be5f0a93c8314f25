package kubelet

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/enginelimits"
)

// Engine names the kubelet in metrics, the log and the report.
const Engine = "kubelet"

const (
	// maxLater is how many containers can wait for the kubelet. NRI names all again when it connects.
	maxLater = 10000
	// failurePause is the least time from a request that failed to the next, however many snapshots are prepared.
	failurePause = 2 * time.Second
	// missingTime is how long a pod may be missing in the kubelet's answers, which are not complete right after its start.
	missingTime = 10 * time.Second
)

// Container is a container of a pod.
type Container struct {
	enginelimits.Container        // without a size
	Pod                    string // its unique id
	InPod                  string // the container's name there
}

// waiting is a container that waits for the kubelet.
type waiting struct {
	Container
	missed bool // an answer was without its pod
}

// Source is the kubelet. It is asked for its pods when it connects, and when somebody wants a pod that it had not named. If
// it does not name that, it is asked once more. The limits of a pod's containers do not change.
type Source struct {
	ask    func(ctx context.Context) (pods, error)
	max    uint64
	want   chan struct{}
	failed time.Time // when a request failed the last time; only Run uses it

	mu      sync.Mutex
	pods    pods               // of the last answer
	away    error              // why nobody waits for the kubelet: the last request failed, or has no answer yet
	waiting []chan error       // for the answer to the next request
	later   map[string]waiting // by id
}

// NewSource makes a source that caps sizes at most; 0: it does not.
func NewSource(c *Client, most uint64) *Source {
	return &Source{ask: c.pods, max: most, want: make(chan struct{}, 1), later: make(map[string]waiting)}
}

// Engine implements enginelimits.Source.
func (s *Source) Engine() string { return Engine }

// NamesAll implements enginelimits.Source. Run names the containers that wait for the kubelet.
func (s *Source) NamesAll() bool { return false }

// Run implements enginelimits.Source. A request that fails ends it.
func (s *Source) Run(ctx context.Context, l *enginelimits.Limiter, connected func()) error {
	pause := time.NewTimer(failurePause - time.Since(s.failed))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for first := true; ; first = false {
		if err := s.refresh(ctx); err != nil {
			s.failed = time.Now()
			return err
		}
		if first {
			connected()
		}
		s.catchUp(ctx, l)
		select {
		case <-s.want:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// refresh asks for the pods, and tells all who have waited since before.
func (s *Source) refresh(ctx context.Context) error {
	s.mu.Lock()
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	list, err := s.ask(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
	if err == nil {
		s.pods = list
	} else {
		waiting, s.waiting = append(waiting, s.waiting...), nil
	}
	for _, w := range waiting {
		w <- err
	}
	return err
}

// catchUp limits containers that had to wait.
func (s *Source) catchUp(ctx context.Context, l *enginelimits.Limiter) {
	s.mu.Lock()
	later := s.later
	s.later = make(map[string]waiting)
	s.mu.Unlock()
	for _, c := range later {
		if ctx.Err() != nil {
			return
		}
		limited, ok, err := s.known(c.Container)
		switch {
		case err != nil:
			l.Unknown(ctx, limited, err)
		case !ok:
			if err := s.missing(c); err != nil {
				l.Unknown(ctx, limited, err)
			}
		case limited.Size == "":
			l.Forget(c.Namespace, c.ID)
		default:
			l.Catch(ctx, limited)
		}
	}
}

// Wanted asks for a pod, so that its limits are known when its containers are created.
func (s *Source) Wanted(pod string) {
	s.mu.Lock()
	_, ok := s.pods[pod]
	s.mu.Unlock()
	if !ok {
		s.wake()
	}
}

// Limit returns a container with the size of its limit, or without one if its pod names none. It waits for the kubelet if the pod
// is new, until ctx is done. A kubelet that is away is not waited for, and nobody waits again for an answer that has not come in
// time. Returns the reason then.
func (s *Source) Limit(ctx context.Context, c Container) (enginelimits.Container, error) {
	s.mu.Lock()
	_, ok := s.pods[c.Pod]
	away := s.away
	if ok || away != nil {
		s.mu.Unlock()
		if ok {
			away = nil
		}
		return s.orAway(c, away)
	}
	answer := make(chan error, 1)
	s.waiting = append(s.waiting, answer)
	s.mu.Unlock()
	s.wake()
	select {
	case err := <-answer:
		return s.orAway(c, err)
	case <-ctx.Done():
		return s.orAway(c, s.slow(answer))
	}
}

// slow notes that the request is slow to which answer belongs, unless that has come meanwhile.
func (s *Source) slow(answer <-chan error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case err := <-answer:
		return err
	default:
		s.away = fault.New(errdefs.ErrUnavailable, "no answer yet")
		return s.away
	}
}

func (s *Source) orAway(c Container, away error) (enginelimits.Container, error) {
	if away != nil {
		return c.Container, fmt.Errorf("the kubelet does not say the limits of pods: %w", away)
	}
	limited, ok, err := s.known(c)
	if !ok {
		err = s.missing(waiting{Container: c})
	}
	return limited, err
}

// known is a container with its limit from the last answer, and whether its pod is in that.
func (s *Source) known(c Container) (limited enginelimits.Container, ok bool, err error) {
	limited = c.Container
	limited.Engine, limited.Setting = Engine, "resources.limits.ephemeral-storage"
	s.mu.Lock()
	sizes, ok := s.pods[c.Pod]
	s.mu.Unlock()
	size := sizes[c.InPod]
	if size == "" {
		return limited, ok, nil
	}
	bytes, err := parseQuantity(size)
	if err != nil {
		return limited, true, fmt.Errorf("%s: %w", limited.Setting, err)
	}
	if s.max != 0 {
		bytes = min(bytes, s.max)
	}
	if bytes > 0 {
		limited.Size = strconv.FormatUint(bytes, 10)
	}
	return limited, true, nil
}

// Later limits a container when the kubelet has answered the next time. Returns errdefs.ErrResourceExhausted if too many wait.
func (s *Source) Later(c Container) error {
	if err := s.keep(waiting{Container: c}); err != nil {
		return err
	}
	s.wake()
	return nil
}

// missing keeps a container whose pod an answer does not have, and asks again once, after missingTime. The container then waits for
// an answer that others ask for: the kubelet may not know its pod yet, or did not make it.
func (s *Source) missing(c waiting) error {
	again := !c.missed
	c.missed = true
	if err := s.keep(c); err != nil {
		return err
	}
	if again {
		time.AfterFunc(missingTime, s.wake)
	}
	return nil
}

func (s *Source) keep(c waiting) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.later[c.ID]; !ok && len(s.later) == maxLater {
		return fault.New(errdefs.ErrResourceExhausted, "%d other containers wait for the kubelet", maxLater)
	}
	s.later[c.ID] = c
	return nil
}

// Gone notes that a container is gone.
func (s *Source) Gone(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.later, id)
}

// wake makes Run ask.
func (s *Source) wake() {
	select {
	case s.want <- struct{}{}:
	default:
	}
}
