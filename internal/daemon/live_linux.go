package daemon

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cowshed/cowshed/live"
)

// liveDir is the directory in the root for the records of moments, one directory for each home.
const liveDir = "live"

// liveCollector tells metrics of snapshots and forks, which the command makes. It reads their records, and opens no home.
type liveCollector struct {
	root string
	log  *slog.Logger

	mu       sync.Mutex // never held while records are read
	at       time.Time
	counts   map[string]live.Counts // by home
	counting bool
}

func newLiveCollector(root string, log *slog.Logger) *liveCollector {
	return &liveCollector{root: root, log: log}
}

var (
	liveSnapshotsDesc = prometheus.NewDesc("cowshed_live_snapshots",
		"Snapshots of layers that are kept.", []string{"home"}, nil)
	liveForksDesc = prometheus.NewDesc("cowshed_live_forks",
		"Forks of layers, by state: kept, and expired, which the next command that lists layers removes unless they are in use.", []string{"home", "state"}, nil)
	liveStepsDesc = prometheus.NewDesc("cowshed_live_steps",
		"Forks, snapshots, rollbacks and merges that are under way or were interrupted. If a step stays, it was interrupted: see cowshed doctor.", []string{"home"}, nil)
	liveUnreadableDesc = prometheus.NewDesc("cowshed_live_records_unreadable",
		"Records of snapshots and forks that cannot be read: see cowshed doctor.", []string{"home"}, nil)
)

// Describe implements prometheus.Collector.
func (c *liveCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{liveSnapshotsDesc, liveForksDesc, liveStepsDesc, liveUnreadableDesc} {
		descs <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *liveCollector) Collect(found chan<- prometheus.Metric) {
	for home, n := range c.fresh() {
		gauge := func(desc *prometheus.Desc, value int, labels ...string) {
			found <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), append([]string{home}, labels...)...)
		}
		gauge(liveSnapshotsDesc, n.Snapshots)
		gauge(liveForksDesc, n.Forks-n.Expired, "kept")
		gauge(liveForksDesc, n.Expired, "expired")
		gauge(liveStepsDesc, n.Pending)
		gauge(liveUnreadableDesc, n.Unreadable)
	}
}

// fresh counts the records, unless somebody does or has just done so.
func (c *liveCollector) fresh() map[string]live.Counts {
	c.mu.Lock()
	if c.counting || time.Since(c.at) < volumesFresh {
		defer c.mu.Unlock()
		return c.counts
	}
	c.counting = true
	c.mu.Unlock()

	counts := c.count()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counting, c.counts, c.at = false, counts, time.Now()
	return counts
}

func (c *liveCollector) count() map[string]live.Counts {
	counts := make(map[string]live.Counts)
	homes, err := os.ReadDir(filepath.Join(c.root, liveDir))
	if errors.Is(err, fs.ErrNotExist) {
		return counts
	}
	for _, home := range homes {
		if !utf8.ValidString(home.Name()) { // it is not Cowshed's, and no label can have it
			continue
		}
		n, countErr := live.Count(filepath.Join(c.root, liveDir, home.Name()), time.Now())
		if countErr != nil {
			err = errors.Join(err, countErr)
			continue
		}
		counts[home.Name()] = n
	}
	if err != nil {
		c.log.Warn("snapshots and forks cannot be counted for the metrics", "error", err)
	}
	return counts
}
