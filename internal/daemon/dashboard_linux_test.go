package daemon

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// dashboard is the part of a Grafana dashboard that the test reads.
type dashboard struct {
	Panels []struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		GridPos struct{ X, Y, W, H int }
		Targets []struct {
			RefID string `json:"refId"`
			Expr  string `json:"expr"`
		} `json:"targets"`
	} `json:"panels"`
}

var (
	metricName  = regexp.MustCompile(`\bcowshed_[a-z_]+\b`)
	ofHistogram = regexp.MustCompile(`_(bucket|sum|count)$`)
	selector    = regexp.MustCompile(`\b(cowshed_[a-z_]+)\{([^}]*)\}`)
	matcher     = regexp.MustCompile(`(\w+) *(?:=~|!~|!=|=)`)
	grouping    = regexp.MustCompile(`\bby \(([^)]*)\)`)
)

// labelsByMetric are the labels of each metric that the daemon serves. Prometheus adds instance, and le to histograms.
func labelsByMetric(t *testing.T) map[string][]string {
	t.Helper()
	found := make(map[string][]string)
	for _, d := range described(t) {
		labels := append(strings.Split(d.labels, ","), "instance")
		if metricType(d.name) == "histogram" {
			labels = append(labels, "le")
		}
		found[d.name] = labels
	}
	return found
}

// TestDashboard: the dashboard names metrics and labels that the daemon has, and each metric of a container. Its panels do
// not overlap.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../packaging/grafana/cowshed.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.NewDecoder(bytes.NewReader(text)).Decode(&d))
	require.NotEmpty(t, d.Panels)
	labels := labelsByMetric(t)
	used := make(map[string]bool)
	taken := make(map[[2]int]string)
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		assert.False(t, ids[p.ID], p.Title)
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				assert.Empty(t, taken[[2]int{x, y}], "%s is over another panel", p.Title)
				taken[[2]int{x, y}] = p.Title
			}
		}
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			assert.Equal(t, strings.Count(target.Expr, "("), strings.Count(target.Expr, ")"), target.Expr)
			for _, name := range metricName.FindAllString(target.Expr, -1) {
				base := ofHistogram.ReplaceAllString(name, "")
				assert.Contains(t, labels, base, p.Title)
				used[base] = true
				for _, group := range grouping.FindAllStringSubmatch(target.Expr, -1) {
					for label := range strings.SplitSeq(group[1], ",") {
						assert.Contains(t, labels[base], strings.TrimSpace(label), target.Expr)
					}
				}
			}
			for _, of := range selector.FindAllStringSubmatch(target.Expr, -1) {
				for _, label := range matcher.FindAllStringSubmatch(of[2], -1) {
					assert.Contains(t, labels[ofHistogram.ReplaceAllString(of[1], "")], label[1], target.Expr)
				}
			}
		}
	}
	for _, name := range []string{"cowshed_container_held_bytes", "cowshed_container_limit_bytes", "cowshed_limit_alerts_total"} {
		assert.True(t, used[name], name)
	}
	for _, name := range metricName.FindAllString(string(text), -1) {
		assert.Contains(t, labels, ofHistogram.ReplaceAllString(name, ""))
	}
}

// TestMetricsOfGuide: docs/howto/monitoring.md names metrics that the daemon has.
func TestMetricsOfGuide(t *testing.T) {
	text, err := os.ReadFile("../../docs/howto/monitoring.md")
	require.NoError(t, err)
	names := metricName.FindAllString(string(text), -1)
	require.NotEmpty(t, names)
	labels := labelsByMetric(t)
	for _, name := range slices.Compact(names) {
		assert.Contains(t, labels, ofHistogram.ReplaceAllString(name, ""))
	}
}
