package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

// engineReport writes the measurements through containerd as Markdown.
type engineReport struct {
	image      string // the place of the filesystem
	date       string
	revision   string
	rounds     int
	machine    machine
	loadBefore string
	loadAfter  string
	results    []*engineResult
}

// engineResult has the measurements with one image.
type engineResult struct {
	result
	cpu map[string]samples // of the daemons, by engine
}

// enginePeers are those whose times are compared with Cowshed's.
var enginePeers = []string{"btrfs", "overlayfs"}

// engineBars are promises about the ratio to a peer.
var engineBars = func() (bars []bar) {
	for _, peer := range enginePeers {
		for _, op := range []operation{opLoad, opPull} {
			for _, format := range []layertar.Format{layertar.Plain, layertar.Gzip} {
				bars = append(bars, bar{of(op, format), peer, 1.3})
			}
		}
		faster := map[string]float64{"btrfs": 5, "overlayfs": 1}[peer]
		bars = append(bars, bar{opContainerDiff, peer, faster}, bar{opCommit, peer, faster},
			bar{opContainerGone, peer, 2}, bar{opPrune, peer, 2})
	}
	return bars
}()

func (r *engineReport) write(w io.Writer) {
	m := r.machine
	fmt.Fprintf(w, "## Through containerd\n\n")
	fmt.Fprintf(w, "Written by `scripts/bench.sh engines`, a part of `make bench`, on %s, of revision %s. Do not edit.\n\n", r.date, r.revision)
	fmt.Fprintf(w, "Machine: %s, %d CPUs, %d GiB of memory, %s, %s. ", m.cpu, m.cpus, (m.memory+1<<29)>>30, m.kernel, m.goVersion)
	fmt.Fprintf(w, "Load average %s before the run and %s at its end, its own included. ", r.loadBefore, r.loadAfter)
	fmt.Fprintf(w, "Filesystem: btrfs on %s, quotas off.\n\n", r.image)
	for _, v := range m.versions {
		if strings.HasPrefix(v, "containerd: ") {
			fmt.Fprintf(w, "- %s\n", v)
		}
	}
	r.writeSummary(w)
	fmt.Fprintf(w, `
What users see: one containerd with all its data on one btrfs, whose snapshotters are Cowshed's and containerd's own *btrfs*,
*overlayfs* and *native*. A Go client asks it for the same as nerdctl does. The differ is the one that containerd has for
each: Cowshed's own, and for the others *walking*, which the diff service asks when Cowshed's has said that the snapshot is
not its own.

Every time ends when all is on disk: a sync of the filesystem is a part of it, for all alike. A cell is the median of %d
rounds (of more where a round has several), with the lowest and the highest time in brackets. In each round, all four do one
operation before any does the next, and each time another begins. Before an operation is timed, everything is written out and
destroyed subvolumes are cleaned up. No caches are dropped: archives and the registry's files, on another filesystem, were
written shortly before, and containers have just run. Between operations containerd has no content and no images, so that
nothing is found to be there already.

- *Load* imports an OCI archive and unpacks it; *pull* fetches the image from a registry on this machine.
- *Run* makes the container, whose shell appends to three files, and waits until its task is deleted.
- *Diff* writes what that changed to the content store as a layer. *Commit* makes an image of it with an added layer, which
  is unpacked too. The two are of different containers. The view of the image that a diff is made with is collected later,
  which is not counted.
- *Remove* deletes the container and its snapshot, *prune* the image; both wait for containerd's collection of garbage, and
  until the last volume's name is gone. Subvolumes, Cowshed's and btrfs', give their space back afterwards. To wait for that
  is a row of its own, in which the kernel, asked to begin at once, says only once a second that it is done.

*native* copies an image for each layer and each container. Where that would be more than %s files it is left out.
`, r.rounds, thousands(copiedFiles))
	for _, result := range r.results {
		fmt.Fprintf(w, "\n### %s\n\n%d MiB in %s files.\n\n", upperFirst(result.title), result.layer.bytes>>20, thousands(result.layer.files))
		r.writeResult(w, result)
	}
	r.writeBars(w)
}

// writeSummary writes the medians of the first image, for readers who read no further.
func (r *engineReport) writeSummary(w io.Writer) {
	if len(r.results) == 0 {
		return
	}
	result := r.results[0]
	columns := result.columns()
	fmt.Fprintf(w, "\n| image of %s | %s |\n|---|%s\n", result.title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range measured(&result.result) {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, short(median(result.samples[name][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// columns are the engines in the order of the report.
func (r *engineResult) columns() []string {
	return slices.DeleteFunc(slices.Clone(order), func(name string) bool { return r.samples[name] == nil })
}

// writeResult writes the times and their ratios, and the daemons' use of processors.
func (r *engineReport) writeResult(w io.Writer, result *engineResult) {
	columns := result.columns()
	head := slices.Clone(columns)
	for _, peer := range enginePeers {
		head = append(head, peer+" / cowshed")
	}
	writeHead(w, head)
	for _, op := range measured(&result.result) {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, cell(result.samples[name][op]))
		}
		for _, peer := range enginePeers {
			cells = append(cells, ratio(median(result.samples[peer][op]), median(result.samples["cowshed"][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintf(w, "\nWhat containerd and `cowshed serve` together used of the processors:\n\n")
	writeHead(w, columns)
	for _, op := range measured(&result.result) {
		if len(result.cpu["cowshed"][op]) == 0 {
			continue
		}
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, shortCPU(result.cpu[name][op]))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

func writeHead(w io.Writer, columns []string) {
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
}

// writeBars compares the ratios with the project's promises.
func (r *engineReport) writeBars(w io.Writer) {
	fmt.Fprintf(w, "\n### Through containerd, against the bar\n\n| image | operation | bar | measured | |\n|---|---|---|---|---|\n")
	for _, result := range r.results {
		for _, b := range engineBars {
			own, other := median(result.samples["cowshed"][b.op]), median(result.samples[b.peer][b.op])
			if own == 0 || other == 0 {
				continue
			}
			promise := factor(b.want) + "× faster than " + b.peer
			if b.want == 1 {
				promise = "no slower than " + b.peer
			}
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", result.title, b.op, promise, ratio(other, own),
				verdict(float64(other) >= b.want*float64(own)))
		}
	}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
