package daemon

import (
	"cmp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/limited"
)

var (
	containerLabels   = []string{"namespace", "pod", "container"}
	containerHeldDesc = prometheus.NewDesc("cowshed_container_held_bytes",
		"Bytes that a container holds against its limit: the fullest containers, as many as container_metrics, once a minute.", containerLabels, nil)
	containerLimitDesc = prometheus.NewDesc("cowshed_container_limit_bytes",
		"Limits of these containers.", containerLabels, nil)
)

// containerMetrics are the metrics of single containers, as they were at the last look.
type containerMetrics struct {
	last atomic.Pointer[[]containerSeries]
}

// containerSeries is a container with its labels.
type containerSeries struct {
	labels [3]string
	limited.Volume
}

// set makes series of the fullest containers, no more than most.
func (m *containerMetrics) set(all []watched, most int, n *containername.Look) {
	counted := slices.DeleteFunc(slices.Clone(all), func(w watched) bool { return !w.Counted })
	slices.SortFunc(counted, func(a, b watched) int {
		return cmp.Or(cmp.Compare(limited.Percent(b.Held, b.Limit.Bytes), limited.Percent(a.Held, a.Limit.Bytes)), cmp.Compare(a.Name, b.Name))
	})
	// Containers that were restarted have the same names. The newest has the series.
	var series []containerSeries
	places := make(map[[3]string]int)
	for _, w := range counted[:min(most, len(counted))] {
		s := containerSeries{labelsOf(w, n.Name(w.id)), w.Volume}
		if i, ok := places[s.labels]; !ok {
			places[s.labels] = len(series)
			series = append(series, s)
		} else if s.Created.After(series[i].Created) {
			series[i] = s
		}
	}
	m.last.Store(&series)
}

// labelsOf are the labels of a container. Without a name it has its id.
func labelsOf(w watched, name containername.Name) [3]string {
	valid := func(label string) string { return strings.ToValidUTF8(label, "�") }
	return [3]string{
		valid(cmp.Or(name.PodNamespace, w.id.Namespace)),
		name.Pod,
		valid(cmp.Or(name.Container, w.id.ID, w.Name)),
	}
}

// Describe implements prometheus.Collector.
func (m *containerMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- containerHeldDesc
	descs <- containerLimitDesc
}

// Collect implements prometheus.Collector.
func (m *containerMetrics) Collect(found chan<- prometheus.Metric) {
	last := m.last.Load()
	if last == nil {
		return
	}
	for _, s := range *last {
		found <- prometheus.MustNewConstMetric(containerHeldDesc, prometheus.GaugeValue, float64(s.Held), s.labels[:]...)
		found <- prometheus.MustNewConstMetric(containerLimitDesc, prometheus.GaugeValue, float64(s.Limit.Bytes), s.labels[:]...)
	}
}
