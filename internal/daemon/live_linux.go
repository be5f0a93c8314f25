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

// liveHome is a home of the command's store or of the containers, in the labels of metrics.
type liveHome struct{ place, home string }

// liveCollector tells metrics of snapshots and forks, of the command's store and of containers. It reads their records, and opens no
// home.
type liveCollector struct {
	root string
	log  *slog.Logger

	mu       sync.Mutex // never held while records are read
	at       time.Time
	counts   map[liveHome]live.Counts
	counting bool
}

func newLiveCollector(root string, log *slog.Logger) *liveCollector {
	return &liveCollector{root: root, log: log}
}

var (
	liveSnapshotsDesc = prometheus.NewDesc("cowshed_live_snapshots",
		"Snapshots of layers that are kept, by place: containers or store.", []string{"place", "home"}, nil)
	liveForksDesc = prometheus.NewDesc("cowshed_live_forks",
		"Forks of layers, by state: kept, and expired, which the next command that lists layers removes unless they are in use.", []string{"place", "home", "state"}, nil)
	liveStepsDesc = prometheus.NewDesc("cowshed_live_steps",
		"Forks, snapshots, rollbacks and merges that are under way or were interrupted. If a step stays, it was interrupted: see cowshed doctor.", []string{"place", "home"}, nil)
	liveUnreadableDesc = prometheus.NewDesc("cowshed_live_records_unreadable",
		"Records of snapshots and forks that cannot be read: see cowshed doctor.", []string{"place", "home"}, nil)
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
			found <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(value), append([]string{home.place, home.home}, labels...)...)
		}
		gauge(liveSnapshotsDesc, n.Snapshots)
		gauge(liveForksDesc, n.Forks-n.Expired, "kept")
		gauge(liveForksDesc, n.Expired, "expired")
		gauge(liveStepsDesc, n.Pending)
		gauge(liveUnreadableDesc, n.Unreadable)
	}
}

// fresh counts the records, unless somebody does or has just done so.
func (c *liveCollector) fresh() map[liveHome]live.Counts {
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

func (c *liveCollector) count() map[liveHome]live.Counts {
	counts := make(map[liveHome]live.Counts)
	for place, root := range map[string]string{storePlace: c.root, containersPlace: filepath.Join(c.root, containerdDir)} {
		if err := countIn(counts, place, live.DirsIn(root)); err != nil {
			c.log.Warn("snapshots and forks cannot be counted for the metrics", "place", place, "error", err)
		}
	}
	return counts
}

// countIn counts the records in a directory that has one for each home.
func countIn(counts map[liveHome]live.Counts, place, dir string) error {
	homes, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, home := range homes {
		if !utf8.ValidString(home.Name()) { // it is not Cowshed's, and no label can have it
			continue
		}
		n, countErr := live.Count(filepath.Join(dir, home.Name()), time.Now())
		if countErr != nil {
			err = errors.Join(err, countErr)
			continue
		}
		counts[liveHome{place, home.Name()}] = n
	}
	return err
}
