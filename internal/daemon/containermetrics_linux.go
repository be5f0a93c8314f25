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
	var series []containerSeries
	if most > 0 {
		series = seriesOf(all, n)
	}
	series = series[:min(most, len(series))]
	m.last.Store(&series)
}

// seriesOf makes series of all containers, the fullest first. Containers that were restarted have the same names: the newest
// has the series.
func seriesOf(all []watched, n *containername.Look) []containerSeries {
	counted := slices.DeleteFunc(slices.Clone(all), func(w watched) bool { return !w.Counted })
	slices.SortFunc(counted, func(a, b watched) int { return fuller(a.Volume, b.Volume) }) // if time is short, these have names
	newest := make(map[[3]string]limited.Volume)
	for _, w := range counted {
		labels := labelsOf(w, n.Name(w.id))
		if other, ok := newest[labels]; !ok || w.Created.After(other.Created) {
			newest[labels] = w.Volume
		}
	}
	series := make([]containerSeries, 0, len(newest))
	for labels, v := range newest {
		series = append(series, containerSeries{labels, v})
	}
	slices.SortFunc(series, func(a, b containerSeries) int { return fuller(a.Volume, b.Volume) })
	return series
}

// fuller orders volumes, the fullest first.
func fuller(a, b limited.Volume) int {
	return cmp.Or(cmp.Compare(limited.Percent(b.Held, b.Limit.Bytes), limited.Percent(a.Held, a.Limit.Bytes)), cmp.Compare(a.Name, b.Name))
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
