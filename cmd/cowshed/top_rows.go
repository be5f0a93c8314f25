package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/closers"
	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/limited"
	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/quota"
	"github.com/cowshed/cowshed/snapshotter"
)

// Services, as the daemon's metrics name them, and the store.
const (
	storeService     = "store"
	snapshotsService = "snapshots"
)

// growthWindow is the time over which growth is measured: btrfs counts in steps, up to a minute apart.
const growthWindow = time.Minute

// top has the volumes that cowshed top watches.
type top struct {
	homes   []topHome
	names   containername.Source
	known   map[containername.ID]containername.Name
	samples map[volumeID][]sample
	closers closers.Closers
}

// topHome has volumes of a service.
type topHome struct {
	service string
	backend cowcommon.Backend
}

type volumeID struct{ service, name string }

// topVolume is a volume that was measured.
type topVolume struct {
	id volumeID
	limited.Volume
}

// sample is how much a volume held at a time.
type sample struct {
	at   time.Time
	held uint64
}

// topRow is a volume as top --json prints it.
type topRow struct {
	Service      string   `json:"service"` // store or snapshots
	Volume       string   `json:"volume"`
	Namespace    string   `json:"namespace,omitempty"` // of containerd
	ID           string   `json:"id,omitempty"`        // of the container
	PodNamespace string   `json:"podNamespace,omitempty"`
	Pod          string   `json:"pod,omitempty"`
	Container    string   `json:"container,omitempty"`
	Held         uint64   `json:"held"` // bytes
	Limit        uint64   `json:"limit"`
	Percent      float64  `json:"percent"`
	Growth       *float64 `json:"growth"` // bytes per second; null if it is not known
}

var topHeader = []string{"HELD", "LIMIT", "FULL", "GROWTH", "NAME"}

func newRow(id volumeID, v limited.Volume, growth *float64, names *containername.Look) topRow {
	row := topRow{
		Service: id.service, Volume: id.name, Held: v.Held, Limit: v.Limit.Bytes,
		Percent: limited.Percent(v.Held, v.Limit.Bytes), Growth: growth,
	}
	if id.service == snapshotsService {
		of, ok := containername.Of(id.name)
		row.Namespace, row.ID = of.Namespace, of.ID
		if ok {
			name := names.Name(of)
			row.PodNamespace, row.Pod, row.Container = name.PodNamespace, name.Pod, name.Container
		}
	}
	return row
}

// name is the name of a row for people: that of a layer, NAMESPACE/POD/CONTAINER, docker:NAME,
// NAMESPACE/NAME or containerd:NAMESPACE/ID.
func (r topRow) name() string {
	switch {
	case r.Service == storeService:
		return layerstore.ShortName(r.Volume)
	case r.Pod != "":
		return printable.Path(r.PodNamespace + "/" + r.Pod + "/" + r.Container)
	case r.Container != "" && r.Namespace == dockerapi.Namespace:
		return printable.Path(string(layerref.Docker) + ":" + r.Container)
	case r.Container != "":
		return printable.Path(r.Namespace + "/" + r.Container)
	case r.Namespace != "":
		return printable.Path(string(layerref.Containerd) + ":" + r.Namespace + "/" + r.ID)
	}
	key, _ := snapshotter.KeyOfVolume(r.Volume)
	return printable.Path(cmp.Or(key, r.Volume))
}

// sortRows puts the fullest first, and of equals those that grow faster.
func sortRows(rows []topRow) {
	growth := func(r topRow) float64 {
		if r.Growth == nil {
			return 0
		}
		return *r.Growth
	}
	slices.SortFunc(rows, func(a, b topRow) int {
		return cmp.Or(cmp.Compare(b.Percent, a.Percent), cmp.Compare(growth(b), growth(a)), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Volume, b.Volume))
	})
}

func cells(rows []topRow) [][]string {
	out := make([][]string, 0, len(rows))
	for _, r := range rows {
		out = append(out, []string{quota.FormatSize(r.Held), quota.FormatSize(r.Limit), fmt.Sprintf("%.0f%%", r.Percent), growthText(r.Growth), r.name()})
	}
	return out
}

// growthText is growth for people, or a dash if it is not known.
func growthText(perSecond *float64) string {
	switch {
	case perSecond == nil:
		return "-"
	case *perSecond < 0:
		return "-" + quota.FormatSize(uint64(-*perSecond)) + "/s"
	}
	return quota.FormatSize(uint64(*perSecond)) + "/s"
}

// recent are the samples that growth is measured by: those of the window, and the last before it.
func recent(samples []sample, now time.Time) []sample {
	for len(samples) > 1 && now.Sub(samples[1].at) >= growthWindow {
		samples = samples[1:]
	}
	return samples
}

// growthOf is the growth in bytes per second from the first to the last sample, or nil if it is the same.
func growthOf(samples []sample) *float64 {
	first, last := samples[0], samples[len(samples)-1]
	seconds := last.at.Sub(first.at).Seconds()
	if seconds <= 0 {
		return nil
	}
	growth := (float64(last.held) - float64(first.held)) / seconds
	return &growth
}
