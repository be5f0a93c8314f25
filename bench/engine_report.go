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
One containerd has all its data on one btrfs. Its snapshotters are Cowshed's and containerd's own *btrfs*, *overlayfs*
and *native*. A Go client sends it the same requests as nerdctl, so these are the times that users see. For its own
snapshots, Cowshed has a differ of its own. The others have the differ *walking*. The diff service asks it after
Cowshed's differ has answered that the snapshot is not its own.

Every time ends when all is on disk: a sync of the filesystem is a part of it, for all alike. A cell is the median of %d
rounds, with the lowest and the highest time in brackets. If a round has several times of an operation, all of them
count. In each round, all four snapshotters do one operation before any does the next. For each operation another
snapshotter begins. Before an operation is timed, everything is written out and destroyed subvolumes are cleaned up. No
caches are dropped: the archives and the registry's files, on another filesystem, were written shortly before, and
containers have just run. Between operations containerd has no content and no images, so that it never finds an image
already there.

- *Load* imports an OCI archive and unpacks it. *Pull* fetches the image from a registry on this machine.
- *Run* makes the container, whose shell appends to three files, and waits until its task is deleted.
- *Diff* writes the changes of a container to the content store as a layer. It makes a view of the image, which is
  collected as garbage later. That time is not counted.
- *Commit* makes an image from the changes of another container: it has one more layer, and is unpacked too.
- *Remove* deletes the container and its snapshot, *prune* the image. Both wait for containerd's garbage collection,
  until the last volume's name is gone. The subvolumes of Cowshed and *btrfs* give their space back afterwards. Another
  row includes the wait for that. In it, the kernel is asked to begin at once, but reports only once a second whether it
  is done.

The column *floor* is the part of an operation that is the same whatever makes the snapshots. An image is imported or fetched, and its
layers are decompressed and digested, but not extracted. A layer of the changed files is compressed into the content store, and for a
commit read back. Records and content are removed. Of two processors, an engine can use one for the floor and the other for the
rest.

*native* copies an image for each layer and each container. Where that would be more than %s files it is left out.
`, r.rounds, thousands(copiedFiles))
	for _, result := range r.results {
		r.writeSection(w, result, "")
	}
	r.writeBars(w)
}

// writeSection writes a section about an image. note comes first in its text.
func (r *engineReport) writeSection(w io.Writer, result *engineResult, note string) {
	fmt.Fprintf(w, "\n### %s\n\n%s%s in %s files.\n\n", upperFirst(result.title), note, mebibytes(result.layer.bytes), thousands(result.layer.files))
	r.writeResult(w, result)
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
			cells = append(cells, op.cell(result.samples[name][op]))
		}
		for _, peer := range enginePeers {
			cells = append(cells, ratio(median(result.samples[peer][op]), median(result.samples["cowshed"][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintf(w, "\nProcessor time that containerd and `cowshed serve` used together:\n\n")
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
	fmt.Fprintf(w, "%s\nAn engine that takes as long as the floor would reach the ratio *of the floor*.\n\n%s", barsTitle, barsHead)
	for _, result := range r.results {
		r.writeBarRows(w, result)
	}
}

func (r *engineReport) writeBarRows(w io.Writer, result *engineResult) {
	for _, b := range engineBars {
		own, other := median(result.samples["cowshed"][b.op]), median(result.samples[b.peer][b.op])
		if own == 0 || other == 0 {
			continue
		}
		promise := factor(b.want) + "× faster than " + b.peer
		if b.want == 1 {
			promise = "no slower than " + b.peer
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", result.title, b.op, promise, ratio(other, own),
			ratio(other, median(result.samples["floor"][b.op])),
			verdict(float64(other) >= b.want*float64(own)))
	}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
