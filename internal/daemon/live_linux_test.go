package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

func TestLiveMetrics(t *testing.T) {
	root := t.TempDir()
	c := newLiveCollector(root, slog.New(slog.DiscardHandler))
	require.Empty(t, gathered(t, c), "there is nothing yet")
	for file, record := range map[string]string{
		"moments/moment-4b5e57f6eb2f-aaaaaaaaaaaa": `{"version":1,"volume":"moment-4b5e57f6eb2f-aaaaaaaaaaaa","layer":"web","name":"one","forks":[{"name":"a"},{"name":"b","expires":"2020-01-01T00:00:00Z"}]}`,
		"moments/moment-4b5e57f6eb2f-bbbbbbbbbbbb": `{`,
		"pending/moment-4b5e57f6eb2f-cccccccccccc": `{}`,
	} {
		for _, home := range []string{"live/btrfs", "containerd/live/zfs-0123456789ab"} {
			path := filepath.Join(root, home, file+".json")
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.WriteFile(path, []byte(record), 0o600))
		}
	}
	require.NoError(t, os.Mkdir(filepath.Join(root, "live/\xff"), 0o700)) // is left out: no label can have this value
	require.Empty(t, gathered(t, c), "it has just counted")
	want := make(map[string]float64)
	for _, of := range []string{"btrfs store", "zfs-0123456789ab containers"} {
		for _, metric := range []string{"forks %s expired", "forks %s kept", "snapshots %s", "steps %s", "records_unreadable %s"} {
			want["cowshed_live_"+fmt.Sprintf(metric, of)] = 1
		}
	}
	require.Equal(t, want, gathered(t, newLiveCollector(root, slog.New(slog.DiscardHandler))))
}

// gathered has the gauges of a collector, by name and values of labels.
func gathered(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	values := make(map[string]float64)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			name := family.GetName()
			for _, label := range metric.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = metric.GetGauge().GetValue()
		}
	}
	return values
}
