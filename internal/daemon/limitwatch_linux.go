package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/limitalert"
	"github.com/cowshed/cowshed/internal/limited"
	"github.com/cowshed/cowshed/quota"
)

const (
	// watchPause is the shortest pause between two looks. A look that measures long is followed by a longer one, up to
	// maxWatchPause. So measuring seldom takes more than a hundredth of the time.
	watchPause    = time.Minute
	maxWatchPause = 10 * time.Minute
	// watchTimeout is how long one look at a service may take.
	watchTimeout = time.Minute
	// namesTimeout is how long the questions for names may take in one look.
	namesTimeout = 10 * time.Second
	// alertsName is the file in the state directory that remembers which containers have been reported.
	alertsName = "alerts.json"
)

// limitWatch looks at the volumes that have a limit, reports those near it, and has the metrics of single containers. Only
// Collect may be called while run runs.
type limitWatch struct {
	config     Config
	sources    []source
	names      containername.Source
	state      *limitalert.State
	sender     *limitalert.Sender
	alerts     *prometheus.CounterVec
	containers containerMetrics
	log        *slog.Logger
	known      map[containername.ID]containername.Name // of the last look
}

// watched is a volume with a limit, and its container.
type watched struct {
	limited.Volume
	service string
	id      containername.ID
}

// openLimitWatch makes the watch that run is to be called of.
func (d *daemon) openLimitWatch(sources []source, m *metrics) error {
	var docker *dockerapi.Client
	if d.config.DockerAPI != "" {
		var err error
		if docker, err = dockerapi.NewClient(d.config.DockerAPI); err != nil {
			return err
		}
		d.closers.Add(func() error { docker.Close(); return nil })
	}
	d.limits = newLimitWatch(d.config, sources, containername.New(d.containerd, docker), d.log)
	m.registry.MustRegister(d.limits)
	return nil
}

func newLimitWatch(c Config, sources []source, names containername.Source, log *slog.Logger) *limitWatch {
	w := &limitWatch{
		config: c, sources: sources, names: names, log: log,
		sender: limitalert.NewSender(c.AlertCommand, c.AlertWebhook, log),
		alerts: newCounter("cowshed_limit_alerts_total",
			"Containers that have come near their limit, by the level of alert_percents that they have crossed.", "percent"),
	}
	for _, level := range c.AlertPercents {
		w.alerts.WithLabelValues(strconv.Itoa(level))
	}
	return w
}

// run looks until ctx is done, unless the configuration asks for nothing.
func (w *limitWatch) run(ctx context.Context) {
	if len(w.config.AlertPercents) == 0 && w.config.ContainerMetrics == 0 {
		return
	}
	w.open()
	sending, stop := context.WithCancel(context.WithoutCancel(ctx)) // until the last report
	var sender sync.WaitGroup
	defer sender.Wait()
	defer stop()
	sender.Go(func() { w.sender.Run(sending) })
	for {
		measuring := w.look(ctx)
		pause := time.NewTimer(min(max(watchPause, 100*measuring), maxWatchPause))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return
		}
	}
}

func (w *limitWatch) open() {
	var err error
	if w.state, err = limitalert.ReadState(filepath.Join(w.config.State, alertsName), w.config.AlertPercents); err != nil {
		w.log.Warn("containers that were reported near their limit may be reported again", "error", err)
	}
}

// look looks once, and says how long it has measured.
func (w *limitWatch) look(ctx context.Context) (measuring time.Duration) {
	start := time.Now()
	all := w.measureAll(ctx)
	measuring = time.Since(start)
	if ctx.Err() != nil {
		return measuring
	}
	asking, cancel := context.WithTimeout(ctx, namesTimeout) // after measuring, which may take longer
	defer cancel()
	n := containername.NewLook(asking, w.names, w.known)
	var containers []watched
	for _, s := range all {
		containers = append(containers, w.compare(s, n)...)
	}
	w.containers.set(containers, w.config.ContainerMetrics, n)
	w.known = n.Known()
	return measuring
}

// measuredService has the volumes of a service.
type measuredService struct {
	service string
	volumes []limited.Volume
}

// measureAll measures the services whose volumes are open, until ctx is done.
func (w *limitWatch) measureAll(ctx context.Context) (all []measuredService) {
	for _, s := range w.sources {
		volumes, err := measured(ctx, s)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errClosed):
		case err != nil:
			w.log.Warn("containers cannot be compared with their limits", "service", s.service, "error", err)
		default:
			all = append(all, measuredService{s.service, volumes})
		}
	}
	return all
}

// compare reports the containers of a service that have crossed a level, and returns all of them.
func (w *limitWatch) compare(s measuredService, n *containername.Look) (all []watched) {
	ids := make(map[string]containername.ID, len(s.volumes))
	of := s.volumes[:0]
	for _, v := range s.volumes {
		id, ok := containername.ID{}, true
		if s.service == snapshotsService {
			id, ok = containername.Of(v.Name)
		}
		if ok {
			ids[v.Name] = id
			of = append(of, v)
			all = append(all, watched{v, s.service, id})
		}
	}
	crossed, err := w.state.Look(s.service, of)
	if err != nil {
		w.log.Warn("containers that are near their limit may be reported again after a restart", "error", err)
	}
	for _, c := range crossed {
		w.report(watched{c.Volume, s.service, ids[c.Name]}, c.Level, n)
	}
	return all
}

// errClosed says that a service has no volumes open.
var errClosed = errors.New("no volumes are open")

// measured measures the volumes of a service. Returns errClosed if none are open.
func measured(ctx context.Context, s source) (volumes []limited.Volume, err error) {
	err = errClosed
	s.use(func(open context.Context, b cowcommon.Backend) {
		ctx, cancel := context.WithTimeout(ctx, watchTimeout)
		defer cancel()
		defer context.AfterFunc(open, cancel)()
		volumes, err = limited.Volumes(ctx, b)
	})
	return volumes, err
}

// report reports a container that has crossed a level.
func (w *limitWatch) report(v watched, level int, n *containername.Look) {
	name := n.Name(v.id)
	w.alerts.WithLabelValues(strconv.Itoa(level)).Inc()
	a := limitalert.Alert{
		Percent: level, Held: v.Held, Limit: v.Limit.Bytes, Namespace: v.id.Namespace, ID: v.id.ID,
		PodNamespace: name.PodNamespace, Pod: name.Pod, Container: name.Container,
		Service: v.service, Volume: v.Name, Time: time.Now().UTC(),
	}
	w.log.Warn("a container is near its limit", "percent", level, "held", quota.FormatSize(v.Held), "limit", quota.FormatSize(v.Limit.Bytes),
		"namespace", a.Namespace, "id", a.ID, "pod_namespace", a.PodNamespace, "pod", a.Pod, "container", a.Container,
		"service", a.Service, "volume", a.Volume)
	w.sender.Send(a)
}

// Describe implements prometheus.Collector.
func (w *limitWatch) Describe(descs chan<- *prometheus.Desc) {
	w.alerts.Describe(descs)
	w.sender.Describe(descs)
	w.containers.Describe(descs)
}

// Collect implements prometheus.Collector.
func (w *limitWatch) Collect(found chan<- prometheus.Metric) {
	w.alerts.Collect(found)
	w.sender.Collect(found)
	w.containers.Collect(found)
}
