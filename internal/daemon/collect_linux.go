package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
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
	// use calls f with the backend that is open, if one is, and keeps it open until f returns.
	use func(f func(b cowcommon.Backend))
}

// collector tells metrics that others keep count of: comparisons and volumes.
type collector struct {
	sources []source
	root    string
	log     *slog.Logger

	mu      sync.Mutex
	counted map[string]volumeCount // by service
}

// volumeCount is what there was at one time.
type volumeCount struct {
	at                        time.Time
	sealed, writable, limited int
	limitBytes                uint64
	full                      int // -1: not known
}

var (
	comparisonsDesc = prometheus.NewDesc("cowshed_comparisons_total",
		"Comparisons of a volume with its parent: native, in which the filesystem said where to look, or walked, with the reason.",
		[]string{"service", "way", "reason"}, nil)
	volumesDesc = prometheus.NewDesc("cowshed_volumes",
		"Volumes: sealed ones, which hold layers, and writable ones.", []string{"service", "state"}, nil)
	limitedDesc = prometheus.NewDesc("cowshed_volumes_limited",
		"Volumes that have a limit.", []string{"service"}, nil)
	limitBytesDesc = prometheus.NewDesc("cowshed_volumes_limit_bytes",
		"Sum of the limits of volumes.", []string{"service"}, nil)
	fullDesc = prometheus.NewDesc("cowshed_volumes_full",
		"Volumes within one percent of their limit. Missing where the filesystem is slow to tell.", []string{"service"}, nil)
	filesystemDesc = prometheus.NewDesc("cowshed_filesystem_bytes",
		"Space of the filesystem that holds the root.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{comparisonsDesc, volumesDesc, limitedDesc, limitBytesDesc, fullDesc, filesystemDesc} {
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
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sources {
		s.use(func(b cowcommon.Backend) { c.collectVolumes(found, s.service, b) })
	}
	for state, bytes := range filesystemSpace(c.root) {
		found <- prometheus.MustNewConstMetric(filesystemDesc, prometheus.GaugeValue, float64(bytes), state)
	}
}

func (c *collector) collectVolumes(found chan<- prometheus.Metric, service string, b cowcommon.Backend) {
	count, ok := c.counted[service]
	if !ok || time.Since(count.at) > volumesFresh {
		var err error
		if count, err = countVolumes(b); err != nil {
			c.log.Warn("volumes cannot be counted for the metrics", "service", service, "error", err)
			return
		}
		c.counted[service] = count
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
}

func countVolumes(b cowcommon.Backend) (volumeCount, error) {
	ctx, cancel := context.WithTimeout(context.Background(), volumesFresh)
	defer cancel()
	count := volumeCount{at: time.Now()}
	var limited []cowcommon.Volume
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
				limited = append(limited, v)
			}
		}
	}
	count.full = countFull(ctx, b, limited)
	return count, nil
}

// countFull counts volumes within one percent of their limit, or returns -1 if that takes too long.
func countFull(ctx context.Context, b cowcommon.Backend, volumes []cowcommon.Volume) int {
	ctx, cancel := context.WithTimeout(ctx, usageBudget)
	defer cancel()
	full := 0
	for _, v := range volumes {
		usage, err := b.Usage(ctx, v.Name)
		if ctx.Err() != nil {
			return -1
		}
		if err != nil {
			continue // removed meanwhile, or not counted
		}
		used := usage.Bytes
		if v.Limit.Scope == quota.ScopeTotal {
			used = usage.Total
		}
		if used >= v.Limit.Bytes-v.Limit.Bytes/100 {
			full++
		}
	}
	return full
}
