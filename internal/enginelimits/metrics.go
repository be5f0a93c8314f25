package enginelimits

import "github.com/prometheus/client_golang/prometheus"

// Metrics count the limits that engines have asked for. It is a prometheus.Collector.
type Metrics struct {
	connected *prometheus.GaugeVec
	limits    *prometheus.CounterVec
	delay     *prometheus.HistogramVec
}

// delays are the bounds of the histogram, in seconds: from a call of the kernel to a daemon that was away for a day.
var delays = []float64{.001, .0025, .005, .01, .02, .05, .1, .25, .5, 1, 5, 30, 60, 300, 3600, 86400}

// NewMetrics makes metrics without series. NewGroup adds those of its sources.
func NewMetrics() *Metrics {
	return &Metrics{
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cowshed_engine_connected",
			Help: "1 while the daemon is connected to an engine whose containers have limits (nri, kubelet, docker or docker-nri), else 0.",
		}, []string{"engine"}),
		limits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cowshed_engine_limits_total",
			Help: "Containers whose engine has named a limit, by outcome: set, kept (a limit had been set before), invalid " +
				"(not a size, or above max_limit), elsewhere (on another snapshotter) or failed.",
		}, []string{"engine", "outcome"}),
		delay: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cowshed_engine_limit_delay_seconds",
			Help: "How long containers were without the limit that their engine knew: from their creation to the limit. " +
				"With nri a container does not start before it has its limit, unless that takes 1.5 seconds. " +
				"With docker-nri the snapshot is made with the limit, and the delay is the time that making the snapshot takes.",
			Buckets: delays,
		}, []string{"engine"}),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	m.connected.Describe(descs)
	m.limits.Describe(descs)
	m.delay.Describe(descs)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(found chan<- prometheus.Metric) {
	m.connected.Collect(found)
	m.limits.Collect(found)
	m.delay.Collect(found)
}

func (m *Metrics) add(engine string) {
	m.connected.WithLabelValues(engine).Set(0)
	for _, outcome := range outcomes {
		m.limits.WithLabelValues(engine, outcome)
	}
	m.delay.WithLabelValues(engine)
}
