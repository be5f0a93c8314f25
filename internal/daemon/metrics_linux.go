package daemon

import (
	"errors"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/snapshotter"
)

// Services, as metrics and the log name them.
const (
	snapshotsService = "snapshots"
	diffService      = "diff"
	dockerService    = "docker"
)

// Directions of layers.
const (
	layerApplied = "applied" // extracted into a volume
	layerMade    = "made"    // written from the changes of a volume
)

// metrics counts the operations of the services.
type metrics struct {
	registry   *prometheus.Registry
	operations *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	running    *prometheus.GaugeVec
	layers     *prometheus.CounterVec
	layerBytes *prometheus.CounterVec
	limitHits  *prometheus.CounterVec
	prepared   *prometheus.CounterVec
	engines    *enginelimits.Metrics
}

// durations are the bounds of the histogram, in seconds: from the cost of one system call to that of a large layer.
var durations = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}

func newCounter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func newMetrics(version string) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		operations: newCounter("cowshed_operations_total",
			"Operations that have ended, by outcome: ok or the kind of error, such as not_found.",
			"service", "operation", "outcome"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cowshed_operation_duration_seconds",
			Help:    "How long operations took.",
			Buckets: durations,
		}, []string{"service", "operation"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cowshed_operations_running",
			Help: "Operations that are under way.",
		}, []string{"service"}),
		layers: newCounter("cowshed_layers_total",
			"Layers by direction: applied to a volume, or made from a volume's changes.",
			"service", "direction"),
		layerBytes: newCounter("cowshed_layer_bytes_total",
			"Bytes of these layers: of the tar where applied, as stored or sent where made.",
			"service", "direction"),
		limitHits: newCounter("cowshed_limit_hits_total",
			"Operations of the daemon that failed at a volume's limit (quota) or on a full filesystem (space).",
			"service", "limit"),
		prepared: newCounter("cowshed_snapshots_prepared_total",
			"Active snapshots of containerd's clients, by use: container, build or unpack.",
			"use"),
		engines: enginelimits.NewMetrics(),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "cowshed_build_info",
		Help:        "1, with the version of the daemon.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.operations, m.duration, m.running, m.layers, m.layerBytes, m.limitHits, m.prepared, m.engines, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, service := range []string{snapshotsService, diffService} {
		m.running.WithLabelValues(service)
	}
	for _, use := range snapshotter.Uses() {
		m.prepared.WithLabelValues(string(use))
	}
	return m
}

// limits shows the limits of the configuration, which is valid. Limits that are not set are missing.
func (m *metrics) limits(c Config) {
	limits := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "cowshed_configured_limit_bytes",
		Help: "Limits of the configuration, by key: default_limit, build_limit and max_limit. Limits that are not set are missing.",
	}, []string{"key"})
	for key, limit := range map[string]string{"default_limit": c.DefaultLimit, "build_limit": c.BuildLimit, "max_limit": c.MaxLimit} {
		if bytes, err := parseLimit(limit); err == nil && bytes != 0 {
			limits.WithLabelValues(key).Set(float64(bytes))
		}
	}
	m.registry.MustRegister(limits)
}

// begin notes that an operation begins. The function that it returns is to be called with the operation's error, of
// which a limit that it ran into is counted too. Errors of gRPC do not tell: see limitHit.
func (m *metrics) begin(service, operation string) (end func(error)) {
	start := time.Now()
	m.running.WithLabelValues(service).Inc()
	return func(err error) {
		m.running.WithLabelValues(service).Dec()
		m.duration.WithLabelValues(service, operation).Observe(time.Since(start).Seconds())
		m.operations.WithLabelValues(service, operation, outcome(err)).Inc()
		m.limitHit(service, err)
	}
}

// layer notes a layer that was applied or made, unless that has failed.
func (m *metrics) layer(service, direction string, bytes int64, err error) {
	if err == nil {
		m.layers.WithLabelValues(service, direction).Inc()
		m.layerBytes.WithLabelValues(service, direction).Add(float64(bytes))
	}
}

// limitHit counts the error of an operation that has failed at a limit.
func (m *metrics) limitHit(service string, err error) {
	switch {
	case errors.Is(err, syscall.EDQUOT):
		m.limitHits.WithLabelValues(service, "quota").Inc()
	case errors.Is(err, syscall.ENOSPC):
		m.limitHits.WithLabelValues(service, "space").Inc()
	}
}

// outcome names the kind of an error, of errdefs or gRPC, in the words of gRPC: not_found.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	code := status.Code(err)
	if code == codes.Unknown {
		code = status.Code(errgrpc.ToGRPC(err))
	}
	return snakeCase(code.String())
}

// snakeCase makes ListStatuses list_statuses.
func snakeCase(name string) string {
	var b strings.Builder
	for i, c := range name {
		if unicode.IsUpper(c) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
