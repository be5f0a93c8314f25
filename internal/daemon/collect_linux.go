package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/limited"
)

const (
	// volumesFresh is for how long volumes that were counted are not counted again.
	volumesFresh = 10 * time.Second
	// usageBudget is how long asking for the usage of volumes may take in all. Where every answer costs a process
	// there is no answer.
	usageBudget = time.Second
)

// source is a service that has volumes.
type source struct {
	service string
	// compared are the comparisons so far.
	compared func() cowcommon.CompareStats
	// use calls f with the open backend, if there is one, and keeps it open until f returns. No lock is held
	// meanwhile: a caller that closes the backend ends ctx, and waits for f.
	use func(f func(ctx context.Context, b cowcommon.Backend))
	// lost is how many volumes are lost; nil where none can be.
	lost func() int
	// doomed is how many volumes could not be destroyed yet; nil where none can be.
	doomed func() int
}

// collector tells metrics that others keep count of: comparisons and volumes.
type collector struct {
	sources []source
	root    string
	log     *slog.Logger

	mu       sync.Mutex             // never held while volumes are counted
	counted  map[string]volumeCount // by service
	counting map[string]bool        // services whose volumes are being counted
}

func newCollector(sources []source, root string, log *slog.Logger) *collector {
	return &collector{sources: sources, root: root, log: log, counted: make(map[string]volumeCount), counting: make(map[string]bool)}
}

// volumeCount counts volumes at one time.
type volumeCount struct {
	at                        time.Time
	sealed, writable, limited int
	limitBytes                uint64
	full                      int                 // -1: not known
	retained                  *cowcommon.Retained // nil: the filesystem retains nothing
}

var (
	comparisonsDesc = prometheus.NewDesc("cowshed_comparisons_total",
		"Comparisons of a volume with its parent, by way: native, or walked with the reason why the filesystem could not say where to look.",
		[]string{"service", "way", "reason"}, nil)
	volumesDesc = prometheus.NewDesc("cowshed_volumes",
		"Volumes by state: sealed and writable.", []string{"service", "state"}, nil)
	limitedDesc = prometheus.NewDesc("cowshed_volumes_limited",
		"Volumes with a limit.", []string{"service"}, nil)
	limitBytesDesc = prometheus.NewDesc("cowshed_volumes_limit_bytes",
		"Sum of the limits of volumes.", []string{"service"}, nil)
	fullDesc = prometheus.NewDesc("cowshed_volumes_full",
		"Volumes within one percent of their limit. Missing where counting takes longer than a second, as on ZFS with many limits.", []string{"service"}, nil)
	removedDesc = prometheus.NewDesc("cowshed_volumes_removed",
		"Removed volumes whose data is kept for the volumes made from them, on ZFS.", []string{"service"}, nil)
	removedBytesDesc = prometheus.NewDesc("cowshed_volumes_removed_bytes",
		"Space of removed volumes that is kept for the volumes made from them, on ZFS.", []string{"service"}, nil)
	leftDesc = prometheus.NewDesc("cowshed_kernel_calls_left",
		"Calls of the kernel that have not ended although nobody waits for them, as on a suspended pool, on ZFS. With 64 of them no other call begins.", []string{"service"}, nil)
	lostDesc = prometheus.NewDesc("cowshed_volumes_lost",
		"Volumes that the metadata does not know: see cowshed lost.", []string{"service"}, nil)
	doomedDesc = prometheus.NewDesc("cowshed_volumes_doomed",
		"Volumes of removed snapshots that could not be destroyed yet, such as volumes in use. The daemon tries again at least once a minute: see cowshed doctor.", []string{"service"}, nil)
	filesystemDesc = prometheus.NewDesc("cowshed_filesystem_bytes",
		"Space of the root's filesystem, by state: total, free and available.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{comparisonsDesc, volumesDesc, limitedDesc, limitBytesDesc, fullDesc, removedDesc, removedBytesDesc, leftDesc, lostDesc, doomedDesc, filesystemDesc} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(found chan<- prometheus.Metric) {
	for _, s := range c.sources {
		stats := s.compared()
		count := func(n uint64, way, reason string) {
			found <- prometheus.MustNewConstMetric(comparisonsDesc, prometheus.CounterValue, float64(n), s.service, way, reason)
		}
		count(stats.Native, "native", "")
		for reason, n := range stats.Walked {
			count(n, "walked", reason)
		}
	}
	for _, s := range c.sources {
		s.use(func(ctx context.Context, b cowcommon.Backend) {
			if l, ok := cowcommon.As[cowcommon.Leaver](b); ok {
				found <- prometheus.MustNewConstMetric(leftDesc, prometheus.GaugeValue, float64(l.Left()), s.service)
			}
			c.collectVolumes(ctx, found, s.service, b)
		})
		if s.lost != nil {
			found <- prometheus.MustNewConstMetric(lostDesc, prometheus.GaugeValue, float64(s.lost()), s.service)
		}
		if s.doomed != nil {
			found <- prometheus.MustNewConstMetric(doomedDesc, prometheus.GaugeValue, float64(s.doomed()), s.service)
		}
	}
	for state, bytes := range filesystemSpace(c.root) {
		found <- prometheus.MustNewConstMetric(filesystemDesc, prometheus.GaugeValue, float64(bytes), state)
	}
}

func (c *collector) collectVolumes(ctx context.Context, found chan<- prometheus.Metric, service string, b cowcommon.Backend) {
	if c.begin(service) {
		count, err := countVolumes(ctx, b)
		c.end(service, count, err)
		if err != nil {
			c.log.Warn("volumes cannot be counted for the metrics", "service", service, "error", err)
			return
		}
	}
	c.mu.Lock()
	count, ok := c.counted[service]
	c.mu.Unlock()
	if !ok {
		return // another scrape is the first to count
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		found <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{service}, labels...)...)
	}
	gauge(volumesDesc, float64(count.sealed), "sealed")
	gauge(volumesDesc, float64(count.writable), "writable")
	gauge(limitedDesc, float64(count.limited))
	gauge(limitBytesDesc, float64(count.limitBytes))
	if count.full >= 0 {
		gauge(fullDesc, float64(count.full))
	}
	if count.retained != nil {
		gauge(removedDesc, float64(count.retained.Volumes))
		gauge(removedBytesDesc, float64(count.retained.Bytes))
	}
}

// begin reports whether the caller has to count volumes, and to call end then: nobody else does, or has just done so.
func (c *collector) begin(service string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counting[service] || time.Since(c.counted[service].at) < volumesFresh {
		return false
	}
	c.counting[service] = true
	return true
}

func (c *collector) end(service string, count volumeCount, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.counting, service)
	if err == nil {
		c.counted[service] = count
	}
}

func countVolumes(ctx context.Context, b cowcommon.Backend) (volumeCount, error) {
	ctx, cancel := context.WithTimeout(ctx, volumesFresh)
	defer cancel()
	count := volumeCount{at: time.Now()}
	var withLimit []cowcommon.Volume
	for v, err := range b.Volumes(ctx) {
		switch {
		case err != nil:
			return volumeCount{}, err
		case v.Sealed:
			count.sealed++
		default:
			count.writable++
		}
		if v.Limit.Bytes != 0 {
			count.limited++
			count.limitBytes += v.Limit.Bytes
			if !v.Sealed {
				withLimit = append(withLimit, v)
			}
		}
	}
	count.full = countFull(ctx, b, withLimit)
	if r, ok := cowcommon.As[cowcommon.Retainer](b); ok {
		retained, err := r.Retained(ctx)
		if err != nil {
			return volumeCount{}, err
		}
		count.retained = &retained
	}
	return count, nil
}

// countFull counts volumes within one percent of their limit, or returns -1 if that takes too long.
func countFull(ctx context.Context, b cowcommon.Backend, volumes []cowcommon.Volume) int {
	ctx, cancel := context.WithTimeout(ctx, usageBudget)
	defer cancel()
	full := 0
	for _, v := range volumes {
		held, err := limited.Held(ctx, b, v.Name, v.Limit)
		if ctx.Err() != nil {
			return -1
		}
		if err != nil {
			continue // removed meanwhile, or not counted
		}
		if held >= v.Limit.Bytes-v.Limit.Bytes/100 {
			full++
		}
	}
	return full
}
