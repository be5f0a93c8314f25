package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/defaults"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/moby/sys/user"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/closers"
	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/schedule"
	"github.com/cowshed/cowshed/internal/unixsocket"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
	"github.com/cowshed/cowshed/snapshotter"
)

// Run serves until ctx is done, and then ends running requests: they may go on for StopTimeout, then they are
// cancelled and undone. It returns nil when that went well.
//
// Returns errdefs.ErrInvalidArgument if the configuration is invalid, and errdefs.ErrFailedPrecondition if another
// daemon uses the root. Returns errdefs.ErrAlreadyExists if another process listens at a socket. Errors of the
// storage driver are those of graphdriver.New.
func Run(ctx context.Context, c Config, opts Options) error {
	if err := c.Validate(); err != nil {
		return err
	}
	d, err := open(ctx, c, opts)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil // it was stopped before it served
	}
	if err != nil {
		return err
	}
	err = d.serve(ctx)
	return errors.Join(err, d.closers.Close())
}

// daemon is all that is open.
type daemon struct {
	config      Config
	opts        Options
	log         *slog.Logger
	listeners   listeners
	server      *grpc.Server
	health      *health.Server
	docker      *dockerPlugin // nil: none
	api         *apiService   // nil: none
	metrics     *http.Server  // nil: none
	closers     closers.Closers
	snapshotter *snapshotter.Snapshotter
	measured    measuredSnapshotter // the same, for clients
	engines     *enginelimits.Group
	containerd  *grpc.ClientConn
	limits      *limitWatch
	containers  schedule.Home // of containerd's snapshots
	schedules   *schedule.Runner
	// retryCleanup destroys volumes that could not be destroyed with their snapshots, until ctx is done.
	retryCleanup func(ctx context.Context)
}

func open(ctx context.Context, c Config, opts Options) (_ *daemon, err error) {
	d := &daemon{config: c, opts: opts, log: opts.Logger}
	if d.log == nil {
		d.log = slog.Default()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.closers.Close())
		}
	}()
	if d.listeners, err = activated(); err != nil {
		return nil, err
	}
	d.closers.Add(d.listeners.close)
	if err := d.lock(); err != nil {
		return nil, err
	}
	m := newMetrics(opts.Version)
	sources, err := d.openServices(ctx, m)
	if err != nil {
		return nil, err
	}
	m.registry.MustRegister(newCollector(sources, c.Root, d.log), newLiveCollector(c.Root, d.log))
	if err := d.openLimitWatch(sources, m); err != nil {
		return nil, err
	}
	d.openSchedules(m)
	if d.api != nil {
		m.registry.MustRegister(d.api.server)
	}
	m.limits(c)
	if err := d.listen(ctx); err != nil {
		return nil, err
	}
	if d.listeners.metrics != nil {
		mux := http.NewServeMux()
		mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
		d.metrics = &http.Server{
			Handler: mux, ReadHeaderTimeout: 10 * time.Second,
			ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
		}
	}
	return d, nil
}

// lock makes the directories and keeps other daemons out.
func (d *daemon) lock() error {
	if err := os.MkdirAll(d.config.Root, 0o711); err != nil {
		return err
	}
	if err := os.MkdirAll(d.config.State, 0o711); err != nil {
		return err
	}
	lock, err := lockRoot(d.config.Root)
	if err != nil {
		return err
	}
	d.closers.Add(func() error { return flock.Release(lock) })
	return nil
}

// openServices opens the services that answer requests.
func (d *daemon) openServices(ctx context.Context, m *metrics) ([]source, error) {
	s, differ, err := d.openContainerd(ctx)
	if err != nil {
		return nil, fmt.Errorf("containerd's volumes: %w", err)
	}
	if err := d.openEngines(m); err != nil {
		return nil, err
	}
	d.health = health.NewServer()
	d.server = grpc.NewServer(append(interceptors{m, d.log}.options(),
		grpc.WaitForHandlers(true),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize))...)
	d.closers.Add(func() error { d.server.Stop(); return nil })
	d.measured = measuredSnapshotter{d.snapshotter, m, d.engines, d.log}
	snapshotter.Register(d.server, d.measured, measuredDiffer{differ, m})
	healthapi.RegisterHealthServer(d.server, d.health)
	sources := []source{s}

	if d.config.DockerPlugin != "" {
		d.docker = newDockerPlugin(ctx, d.config, m, d.log)
		d.closers.Add(d.docker.adapter.Close)
		d.docker.resume()
		sources = append(sources, d.docker.source())
	}
	return sources, nil
}

// openContainerdDriver opens the driver for containerd's snapshots.
func openContainerdDriver(ctx context.Context, c Config, log *slog.Logger) (dir string, driver *cowdriver.Driver, err error) {
	root, err := filepath.EvalSymlinks(c.Root)
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(root, containerdDir)
	driver, err = openDriver(ctx, dir, c.Driver, c.driverOptions, user.IdentityMapping{}, log)
	return dir, driver, err // and nothing is in the root that was not there
}

// holdContainerdDriver is openContainerdDriver, and says which process has the root. The caller has locked the root.
func holdContainerdDriver(ctx context.Context, c Config, log *slog.Logger) (dir string, driver *cowdriver.Driver, err error) {
	dir, driver, err = openContainerdDriver(ctx, c, log)
	if err == nil {
		_ = noteHolder(c.Root) // it needs space, which there may be none of
	}
	return dir, driver, err
}

// layersOf are the volumes of a driver, with their forks and snapshots.
func layersOf(dir string, driver *cowdriver.Driver, log *slog.Logger) *live.Layers {
	return live.New(driver.Backend(), live.Dir(dir, driver.String(), driver.Backend()), log)
}

// newSnapshotter makes the snapshotter of a driver, which it closes if that fails.
func newSnapshotter(ctx context.Context, c Config, dir string, driver *cowdriver.Driver, log *slog.Logger) (*snapshotter.Snapshotter, error) {
	options, err := cowdriver.ParseOptions(driver.String(), c.driverOptions(driver.String()))
	if err != nil {
		return nil, errors.Join(err, driver.Cleanup())
	}
	buildLimit, err := parseLimit(c.BuildLimit)
	if err != nil {
		return nil, errors.Join(err, driver.Cleanup())
	}
	s, err := snapshotter.New(ctx, dir, driver.Backend(), snapshotter.Options{
		DefaultLimit: quota.Limit{Bytes: options.Size, Scope: options.Scope},
		BuildLimit:   quota.Limit{Bytes: buildLimit, Scope: options.Scope},
		Scope:        options.Scope,
		RootStyle:    options.RootStyle,
		CountInodes:  c.CountInodes,
		Layers:       layersOf(dir, driver, log),
		Logger:       log,
	})
	if err != nil {
		return nil, errors.Join(err, driver.Cleanup())
	}
	return s, nil
}

// openContainerd opens snapshotter and differ.
func (d *daemon) openContainerd(ctx context.Context) (source, *snapshotter.Differ, error) {
	dir, driver, err := holdContainerdDriver(ctx, d.config, d.log)
	if err != nil {
		return source{}, nil, err
	}
	if d.snapshotter, err = newSnapshotter(ctx, d.config, dir, driver, d.log); err != nil {
		return source{}, nil, err
	}
	scrapes := newScrapes(ctx, driver.Backend(), d.config.StopTimeout.Duration)
	d.closers.Add(func() error { return scrapes.close(d.snapshotter.Close) })
	d.containers = containersHome(d.config, dir, driver, scrapes, d.log)
	d.reportLost()
	d.reportDoomed()
	d.retryCleanup = func(ctx context.Context) {
		scrapes.doLong(func(context.Context, cowcommon.Backend) { d.snapshotter.RetryCleanup(ctx, d.reportDoomed) })
	}
	if err := d.openAPI(layerstore.New(dir, driver, layersOf(dir, driver, d.log), d.log)); err != nil {
		return source{}, nil, err
	}
	conn, err := connectContainerd(d.config.ContainerdAddress)
	if err != nil {
		return source{}, nil, err
	}
	d.containerd = conn
	d.closers.Add(conn.Close)
	differ := snapshotter.NewDiffer(d.snapshotter, contentproxy.NewContentStore(conn),
		snapshotter.WithLeases(leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))),
		snapshotter.WithBlobFiles(contentRoot(conn)))
	d.log.Info("opened the volumes for containerd", "driver", driver.String(), "dir", dir)
	return source{
		service:  snapshotsService,
		compared: differ.CompareStats,
		use:      scrapes.do,
		lost:     func() int { return len(d.snapshotter.Lost()) },
		doomed:   func() int { return len(d.snapshotter.Doomed()) },
	}, differ, nil
}

// listen makes the sockets that systemd has not passed on.
func (d *daemon) listen(ctx context.Context) (err error) {
	if len(d.listeners.containerd) == 0 {
		l, err := unixsocket.Listen(ctx, d.config.Address)
		if err != nil {
			return err
		}
		d.listeners.containerd = []net.Listener{l}
	}
	if d.api != nil && d.listeners.api == nil {
		if d.listeners.api, err = d.api.listen(ctx, d.config.API); err != nil {
			return err
		}
	}
	if d.docker != nil && d.listeners.docker == nil {
		if d.listeners.docker, err = d.docker.listen(ctx); err != nil {
			return err
		}
	}
	network, address, err := metricsAddress(d.config.Metrics)
	if err != nil || network == "" || d.listeners.metrics != nil {
		return err
	}
	if network == "unix" {
		d.listeners.metrics, err = unixsocket.Listen(ctx, address)
		return err
	}
	d.listeners.metrics, err = net.Listen(network, address)
	return err
}

func (l *listeners) close() error {
	var errs []error
	for _, listener := range append(l.containerd, l.docker, l.metrics, l.api) {
		if listener == nil {
			continue
		}
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// serve answers requests until ctx is done, and then until they have ended.
func (d *daemon) serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range d.listeners.containerd {
		d.log.Info("serving containerd", "address", l.Addr().String())
		group.Go(func() error { return d.server.Serve(l) })
	}
	group.Go(func() error {
		<-ctx.Done()
		d.stopRequests()
		return nil
	})
	if d.api != nil {
		d.log.Info("serving the API", "address", d.listeners.api.Addr().String())
		group.Go(func() error { return d.api.server.Serve(ctx, d.listeners.api) })
	}
	if d.docker != nil {
		d.log.Info("serving Docker", "plugin", d.config.DockerPlugin, "address", d.listeners.docker.Addr().String())
		group.Go(func() error { return d.docker.serve(ctx, d.listeners.docker) })
	}
	group.Go(func() error {
		d.engines.Run(ctx)
		return nil
	})
	group.Go(func() error {
		d.runAndLeave(ctx, d.limits.run, "containers are still being compared with their limits, which nobody waits for")
		return nil
	})
	group.Go(func() error {
		d.runAndLeave(ctx, d.schedules.Run, "a snapshot by schedule has not ended, since its post command still runs or the filesystem does not answer; the next start runs the command again")
		return nil
	})
	group.Go(func() error {
		d.runAndLeave(ctx, d.retryCleanup, "a volume of a removed snapshot is still being destroyed, and nobody waits for it; the next start destroys it")
		return nil
	})
	if d.metrics != nil {
		d.log.Info("serving metrics", "address", d.listeners.metrics.Addr().String())
		group.Go(func() error { return d.serveMetrics(ctx) })
	}
	d.notify(sd.SdNotifyReady)
	if d.opts.Ready != nil {
		d.opts.Ready()
	}
	return group.Wait()
}

// runAndLeave calls run, and waits until that has ended. It waits no longer than StopTimeout after ctx is done, as on a filesystem
// that does not answer, and then logs a message.
func (d *daemon) runAndLeave(ctx context.Context, run func(ctx context.Context), message string) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(ctx)
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(d.config.StopTimeout.Duration):
		d.log.Warn(message, "after", d.config.StopTimeout.Duration.String())
	}
}

// stopRequests lets the requests of containerd that are under way end, and after StopTimeout cancels them.
func (d *daemon) stopRequests() {
	d.notify(sd.SdNotifyStopping)
	d.log.Info("stopping")
	d.health.Shutdown()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.server.GracefulStop()
	}()
	select {
	case <-ended:
	case <-time.After(d.config.StopTimeout.Duration):
		d.log.Warn("cancelling requests that have not ended", "after", d.config.StopTimeout.Duration.String())
		d.server.Stop()
		<-ended
	}
}

func (d *daemon) serveMetrics(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- d.metrics.Serve(d.listeners.metrics) }()
	select {
	case err := <-ended:
		return fmt.Errorf("metrics: %w", err)
	case <-ctx.Done():
		err := d.metrics.Close()
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}
}

// notify tells systemd the state of this process, if systemd has started it (sd_notify(3)).
func (d *daemon) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.Warn("systemd cannot be notified", "state", state, "error", err)
	}
}
