package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/plugin"
	"github.com/cowshed/cowshed/quota"
)

// dockerPlugin serves a graph driver to an engine.
type dockerPlugin struct {
	config  Config
	log     *slog.Logger
	adapter *plugin.Adapter
	handler *plugin.Handler
	ctx     context.Context // of drivers being opened: a request under way is answered although serving ends

	mu       sync.RWMutex
	drivers  map[*dockerDriver]struct{} // open ones
	compared cowcommon.CompareStats     // of those that were closed
}

func newDockerPlugin(ctx context.Context, c Config, m *metrics, log *slog.Logger) *dockerPlugin {
	p := &dockerPlugin{config: c, log: log, ctx: context.WithoutCancel(ctx), drivers: make(map[*dockerDriver]struct{})}
	p.adapter = plugin.NewAdapter(p.open, plugin.AdapterOptions{
		StateFile: c.pluginState(),
		Patience:  c.StopTimeout.Duration,
		Logger:    log,
	})
	p.handler = plugin.NewHandler(measuredDocker{p.adapter, m})
	p.handler.Logger = log
	p.handler.Grace = c.StopTimeout.Duration
	return p
}

// resume opens the driver again that was open when the daemon before this one ended.
func (p *dockerPlugin) resume() {
	if err := p.adapter.Resume(); err != nil && !errdefs.IsFailedPrecondition(err) {
		p.log.Warn("the driver that the engine uses cannot be opened yet, and its next request tries again", "error", err)
	}
}

// listen makes the socket where the engine looks for it, or the file that tells where the socket is.
func (p *dockerPlugin) listen(ctx context.Context) (net.Listener, error) {
	path, err := p.config.dockerSocket()
	if err != nil {
		return nil, err
	}
	l, err := plugin.Listen(ctx, path)
	if err != nil || p.config.DockerSocket == "" {
		return l, err
	}
	if _, err := plugin.WriteSpec(p.config.DockerSpecDir, p.config.DockerPlugin, path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (p *dockerPlugin) serve(ctx context.Context, l net.Listener) error {
	if err := p.handler.ServeContext(ctx, l); err != nil {
		return fmt.Errorf("docker plugin: %w", err)
	}
	return nil
}

// open opens a driver where the engine says, or where the configuration does.
func (p *dockerPlugin) open(request plugin.InitRequest) (graphdriver.Driver, error) {
	home := p.config.pluginHome(request)
	driver, err := openDriver(p.ctx, home, p.config.Driver, p.config.pluginOptions(request), request.IDMap(), p.log)
	if err != nil {
		return nil, err
	}
	p.log.Info("opened a graph driver for the engine", "driver", driver.String(), "home", home)
	opened := &dockerDriver{Driver: driver, plugin: p, scrapes: newScrapes(p.ctx, driver.Backend(), p.config.StopTimeout.Duration)}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drivers[opened] = struct{}{}
	return opened, nil
}

// source is the plugin as the metrics see it.
func (p *dockerPlugin) source() source {
	return source{
		service: dockerService,
		compared: func() cowcommon.CompareStats {
			p.mu.RLock()
			defer p.mu.RUnlock()
			stats := cowcommon.CompareStats{Native: p.compared.Native, Walked: maps.Clone(p.compared.Walked)}
			for d := range p.drivers {
				stats = sum(stats, d.CompareStats())
			}
			return stats
		},
		use: func(f func(context.Context, cowcommon.Backend)) {
			if d := p.anyDriver(); d != nil {
				d.scrapes.do(f)
			}
		},
	}
}

// anyDriver is the driver that is open, nil if none is.
func (p *dockerPlugin) anyDriver() *dockerDriver {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for d := range p.drivers {
		return d
	}
	return nil
}

// dockerDriver is a driver that the engine has open.
type dockerDriver struct {
	*cowdriver.Driver
	plugin  *dockerPlugin
	scrapes *scrapes
}

// Create implements graphdriver.Driver. The engine makes layers of images and of BuildKit's builds in this way.
func (d *dockerDriver) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	limited := graphdriver.CreateOpts{}
	if opts != nil {
		limited = *opts
	}
	if limit := d.plugin.config.BuildLimit; limit != "" && !namesSize(limited.StorageOpt) {
		limited.StorageOpt = maps.Clone(limited.StorageOpt)
		if limited.StorageOpt == nil {
			limited.StorageOpt = make(map[string]string, 1)
		}
		limited.StorageOpt["size"] = limit
	}
	return d.Driver.Create(id, parent, &limited)
}

// namesSize reports whether the options of a layer name its size. Case does not matter in their keys.
func namesSize(storageOpt map[string]string) bool {
	for key := range storageOpt {
		if strings.EqualFold(key, "size") {
			return true
		}
	}
	return false
}

// ApplyDiff implements graphdriver.Driver.
func (d *dockerDriver) ApplyDiff(id, parent string, diff io.Reader) (int64, error) {
	size, err := d.Driver.ApplyDiff(id, parent, diff)
	if limit := d.plugin.config.BuildLimit; limit != "" && errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("build_limit is %s: %w", limit, err)
	}
	return size, err
}

// Status implements graphdriver.Driver.
func (d *dockerDriver) Status() [][2]string {
	status := d.Driver.Status()
	if limit, err := parseLimit(d.plugin.config.BuildLimit); err == nil && limit != 0 {
		status = append(status, [2]string{"Build Size", quota.FormatSize(limit)})
	}
	return status
}

// Cleanup implements graphdriver.Driver.
func (d *dockerDriver) Cleanup() error {
	d.plugin.mu.Lock()
	if _, ok := d.plugin.drivers[d]; ok {
		delete(d.plugin.drivers, d)
		d.plugin.compared = sum(d.plugin.compared, d.CompareStats())
	}
	d.plugin.mu.Unlock()
	return d.scrapes.close(d.Driver.Cleanup)
}

func sum(a, b cowcommon.CompareStats) cowcommon.CompareStats {
	a.Native += b.Native
	if a.Walked == nil {
		a.Walked = make(map[string]uint64, len(b.Walked))
	}
	for reason, n := range b.Walked {
		a.Walked[reason] += n
	}
	return a
}
