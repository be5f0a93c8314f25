package apiserver

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/api"
)

// metrics count requests. Their labels have few values, whatever clients send.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	running  prometheus.Gauge
	refusals *prometheus.CounterVec
}

// durations are the bounds of the histogram, in seconds: from an answer out of memory to the stream of a large layer.
var durations = []float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 300}

// Values of labels for requests that have no value of their own.
const (
	noRoute     = "none"  // the path is none of the API, or the request was refused before its path counted
	otherMethod = "other" // no path has the method
	noAnswer    = "cut"   // the answer was not completed
)

func newMetrics() *metrics {
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cowshed_api_requests_total",
			Help: "Requests of the API that have ended, by method, route (the path without names, or none) and class of the status: " +
				"2xx, 4xx, 5xx, or cut where the answer was not completed.",
		}, []string{"method", "route", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cowshed_api_request_duration_seconds",
			Help:    "How long requests of the API took, with the time in which clients read the answer.",
			Buckets: durations,
		}, []string{"method", "route"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cowshed_api_requests_running",
			Help: "Requests of the API that are under way.",
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cowshed_api_refusals_total",
			Help: "Connections and requests of the API that were refused because too many were under way. " +
				"The gate is connections, requests, exports, or walks for requests that read whole trees. " +
				"The kind is too_many_requests of one user, or unavailable for all but root.",
		}, []string{"gate", "kind"}),
	}
}

// gate makes a gate that counts refusals.
func (m *metrics) gate(name string, b bounds) *gate {
	g := newGate(b)
	refused := make(map[api.Kind]prometheus.Counter)
	for _, kind := range []api.Kind{api.KindTooManyRequests, api.KindUnavailable} {
		refused[kind] = m.refusals.WithLabelValues(name, string(kind))
	}
	g.refused = func(kind api.Kind) { refused[kind].Inc() }
	return g
}

// begin notes that a request begins, and returns a function for its end.
func (m *metrics) begin(r *request) (end func()) {
	start := time.Now()
	m.running.Inc()
	return func() {
		m.running.Dec()
		method, route := methodLabel(r.Method), routeLabel(r.Pattern)
		m.duration.WithLabelValues(method, route).Observe(time.Since(start).Seconds())
		m.requests.WithLabelValues(method, route, statusLabel(r.out)).Inc()
	}
}

func methodLabel(method string) string {
	if slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete}, method) {
		return method
	}
	return otherMethod
}

// routeLabel is the path of a pattern of the multiplexer.
func routeLabel(pattern string) string {
	_, path, hasMethod := strings.Cut(pattern, " ")
	if !hasMethod {
		path = pattern
	}
	if path == "" || path == "/" {
		return noRoute
	}
	return path
}

func statusLabel(a *answer) string {
	if !a.begun || a.cut {
		return noAnswer
	}
	return fmt.Sprintf("%dxx", a.status/100)
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range s.metrics.all() {
		c.Describe(descs)
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(found chan<- prometheus.Metric) {
	for _, c := range s.metrics.all() {
		c.Collect(found)
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.duration, m.running, m.refusals}
}
