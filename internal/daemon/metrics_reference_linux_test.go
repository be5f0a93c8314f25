package daemon

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/apiserver"
	"github.com/cowshed/cowshed/internal/golden"
	"github.com/cowshed/cowshed/internal/schedule"
)

// descForm is the form in which a description prints itself, which has no other access to its parts.
var descForm = regexp.MustCompile(`^Desc\{fqName: "(\w+)", help: "(.*?)"(?:, unit: "[^"]*")?, constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// metricDesc is the description of a metric.
type metricDesc struct{ name, help, constant, labels string }

// described lists all metrics of the daemon.
func described(t *testing.T) (list []metricDesc) {
	t.Helper()
	m := newMetrics("VERSION")
	m.limits(Config{})
	log := slog.New(slog.DiscardHandler)
	m.registry.MustRegister(newCollector(nil, "", log), newLiveCollector("", log))
	m.registry.MustRegister(schedule.New(nil, log))
	m.registry.MustRegister(apiserver.New(apiserver.Options{}))
	m.registry.MustRegister(newLimitWatch(Config{ContainerMetrics: 1}, nil, nil, log))
	descs := make(chan *prometheus.Desc)
	go func() {
		m.registry.Describe(descs)
		close(descs)
	}()
	for desc := range descs {
		parts := descForm.FindStringSubmatch(desc.String())
		if parts == nil && !strings.Contains(desc.String(), `"cowshed_`) {
			continue // of a Go process
		}
		require.NotNil(t, parts, desc.String())
		if strings.HasPrefix(parts[1], "cowshed_") {
			list = append(list, metricDesc{parts[1], parts[2], parts[3], parts[4]})
		}
	}
	return list
}

// TestMetricsReference: docs/reference/metrics.md has each metric.
func TestMetricsReference(t *testing.T) {
	var rows []string
	for _, d := range described(t) {
		labels := d.labels
		if constant, _, found := strings.Cut(d.constant, "="); found {
			labels = constant
		}
		help := strings.TrimSuffix(strings.ReplaceAll(d.help, "|", `\|`), ".")
		rows = append(rows, fmt.Sprintf("| `%s` | %s | %s | %s |\n", d.name, metricType(d.name), strings.ReplaceAll(labels, ",", ", "), help))
	}
	slices.Sort(rows)
	golden.Check(t, "../../docs/reference/metrics.md", `# Metrics

<!-- Generated: go test ./internal/daemon -run Reference -update -->

The key [metrics](configuration.md#metrics) turns these on. [monitoring.md](../howto/monitoring.md) has expressions for alerts.

| metric | type | labels | meaning |
|---|---|---|---|
`+strings.Join(rows, "")+`
The label `+"`service`"+` is `+"`snapshots`"+` or `+"`diff`"+` for containerd, and `+"`docker`"+` for the plugin. The label `+"`outcome`"+` has the
values of [errors.md](errors.md#kinds-of-errors), and `+"`ok`"+`. The endpoint serves the usual metrics of a Go process too
(`+"`go_`, `process_`"+`). Volumes, snapshots and forks are counted at most every ten seconds. The label `+"`home`"+` is
the name of a directory of records, see [on-disk-format.md](on-disk-format.md#moments).
`)
}

// metricType is the type of a metric, which its name tells.
func metricType(name string) string {
	switch {
	case strings.HasSuffix(name, "_total"):
		return "counter"
	case strings.HasSuffix(name, "_seconds"):
		return "histogram"
	}
	return "gauge"
}
