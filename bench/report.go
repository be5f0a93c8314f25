package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// report writes the measurements as Markdown.
type report struct {
	filesystem string
	quota      string
	image      string // the place of the filesystem
	note       string // about the machine
	date       string
	revision   string
	rounds     int
	machine    machine
	loadBefore string
	loadAfter  string
	results    []*result
	processes  processes
	plots      []string // paths relative to the report, one per result
}

// order is the order of columns.
var order = []string{"cowshed", "cowshed-shared", "cowshed-snapshotter", "overlay2", onExt4, "podman-overlay", "containerd-overlayfs", "moby", "podman", "containerd", "btrfs", "overlayfs", "native", "floor"}

// bar is a promise of the project about the ratio to a peer.
type bar struct {
	op   operation
	peer string // "": the fastest
	want float64
}

// barFiles is the size of the base that the bars are for: peers' times grow with it.
const barFiles = 50_000

var bars = []bar{
	{opChanges, "moby", 50},
	{opDiff, "moby", 50},
	{opDiff, "containerd", 250},
	{opUsage, "moby", 1000},
	{opRemove, "moby", 50},
	{opRemove, "containerd", 200},
	{opWalk, "", 1},
	{opApplyDurable, "", 1.3},
	{opApplyDurable, "moby", 2},
	{opApplyDurable, "containerd", 2},
	{opApplyGzip, "", 1.3},
	{opApplyGzip, "containerd", 1.3},
	{opApplyZstd, "", 1.3},
	{opExport, "", 2},
	{opExportGzip, "", 2},
	{opExportZstd, "", 2},
	{opCompare, "containerd", 100},
	{opSnapshotUsage, "containerd", 1000},
	{opSnapshotRemove, "containerd", 200},
	{opSnapshotCommit, "containerd", 20},
}

// largeBars are promises for the base of large files.
var largeBars = []bar{{opApplyGzip, "containerd", 1.3}}

// floorBars are promises about the ratio to the floor.
var floorBars = []bar{{opApplyDurable, "floor", 1.15}}

// barFilesZFS is the size of the base that the bars on ZFS are for.
const barFilesZFS = 2000

// zfsBars are promises on ZFS, and zfsLayerBars those beside many layers.
var (
	zfsBars = []bar{
		{opCreate, "moby", 8},
		{opCreateLimit, "moby", 10},
		{opRemove, "moby", 4},
		{opUsage, "moby", 500},
		{opChanges, "moby", 6},
		{opApply, "moby", 1.6},
		{opExport, "moby", 8.3},
	}
	zfsLayerBars = []bar{{opStartCreate, "moby", 8}, {opStart, "moby", 3}}
)

// mostGrowthZFS is how many times as long as beside few layers creating one beside many may take.
const mostGrowthZFS = 1.2

func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "## Called directly\n\n")
	fmt.Fprintf(w, "Written by `make bench` on %s, of revision %s. Do not edit.\n\n", r.date, r.revision)
	r.writeMethod(w)
	for i, result := range r.results {
		fmt.Fprintf(w, "\n## %s\n\n", result.title)
		if slices.Contains(measured(result), opApply) {
			fmt.Fprintf(w, "%s in %s files.\n\n", mebibytes(result.layer.bytes), thousands(result.layer.files))
		}
		r.writeTimes(w, result)
		fmt.Fprintf(w, "\n![%s: times of the operations, logarithmic](%s)\n", result.title, r.plots[i])
		r.writeRatios(w, result)
	}
	r.writeProcesses(w)
	r.writeFlatness(w)
	r.writeSnapshotFlatness(w)
	if r.filesystem == "zfs" {
		r.writeZFSBars(w)
	} else {
		r.writeBars(w)
	}
}

func (r *report) writeMethod(w io.Writer) {
	m := r.machine
	fmt.Fprintf(w, "Machine: %s, %d CPUs, %d GiB of memory, %s, %s. ", m.cpu, m.cpus, (m.memory+1<<29)>>30, m.kernel, m.goVersion)
	fmt.Fprintf(w, "Filesystem: %s on %s", r.filesystem, r.image)
	if r.quota != "" {
		fmt.Fprintf(w, ", %s", r.quota)
	}
	fmt.Fprint(w, ".\n\n")
	if r.note != "" {
		fmt.Fprintf(w, "%s\n\n", r.note)
	}
	for _, v := range m.versions {
		fmt.Fprintf(w, "- %s\n", v)
	}
	if r.filesystem == "zfs" {
		r.writeZFSMethod(w)
		return
	}
	fmt.Fprintf(w, `
All contenders run in one process on the same filesystem, one after the other. Their order rotates in each of %d rounds.
Before an operation is timed, everything is written out and destroyed subvolumes are cleaned up. Caches are warm. A cell
is the median, with the lowest and the highest time in brackets. The column *floor* is a program that makes only the
indispensable system calls of the operation, in one thread. It does not implement layers.

The base is one layer, applied from an uncompressed tar with whole-second times. Each child is a writable layer on it.
In one child, three files are appended to.

- *Durable* rows add to a peer's time the sync that the peer leaves out. Cowshed has already done it when it returns.
- *Until it returns* includes closing the stream, where moby's and podman's drivers sleep to the end of the second.
- The column *containerd* is containerd's snapshotter and walking differ, called directly, without gRPC. Its diff lands
  in its content store. It lists no changes and has no limits. It hashes all that it applies and exports. It
  decompresses gzip with igzip, which it uses where that program is installed.
- By *walking both trees* moby's and podman's drivers list changes. Cowshed falls back to it. For containerd, the row is
  the walk of its differ, which compares contents.
- *Compressed exports* use each contender's own compressor with its default level. Moby's driver has no zstd.
- *Memory* is a high-water mark, measured once. It is that of a process that does nothing else, or of the process to
  which the contender gives the work.

The sections on snapshotters compare containerd's btrfs snapshotter and its walking differ with Cowshed's snapshotter
and its native differ. Both are called directly, and rows are named after the methods. Three files of each snapshot are
appended to, except for *Prepare*.

- *Compare* is the time of the differ alone. The mounts of the snapshot and of a view of its parent exist before. An
  uncompressed layer lands in the content store.
- *Commit* comes right after the changes, before they are written out.
- *Remove* of Cowshed leaves the subvolume to *Cleanup*, which containerd calls in its garbage collection. containerd's
  own snapshotter destroys it before *Remove* returns. So Cowshed's time is that of both calls, one after the other.
`, r.rounds)
}

func (r *report) writeZFSMethod(w io.Writer) {
	fmt.Fprintf(w, `
Both contenders run in one process on the same pool, one after the other, each on a dataset of its own. Their order
rotates in each of %d rounds. Before an operation is timed, the pool is synced. Caches are warm. A cell is the median,
with the lowest and the highest time in brackets. On both sides, all that an operation has done is durable when it
returns: zfs waits for that, and unmounting a dataset writes it out.

The base is one layer, applied from an uncompressed tar with whole-second times. Each child is a writable layer on it.
In one child, three files are appended to.

- *Until it returns* includes closing the stream, where moby's driver sleeps to the end of the second.
- *Start* opens the driver on a dataset with that many layers, the same for both. *A child after it* is made beside them.
  These are children of one base with the properties that Cowshed sets. To be quick, the benchmark clones them by the
  kernel's interface. A pool that moby's driver has filled has one more snapshot for each of them.
`, r.rounds)
}

// writeProcesses writes how many processes operations start.
func (r *report) writeProcesses(w io.Writer) {
	if len(r.processes) == 0 {
		return
	}
	columns := slices.DeleteFunc(slices.Clone(order), func(name string) bool { return r.processes[name] == nil })
	fmt.Fprintf(w, "\n## Processes\n\n")
	fmt.Fprintf(w, "How many processes of zfs and zpool each operation starts, counted in a run of its own:\n\n")
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range counted {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, strconv.Itoa(r.processes[name][op]))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

func (r *report) columns(result *result) []string {
	return slices.DeleteFunc(slices.Clone(order), func(name string) bool { return result.samples[name] == nil })
}

func (r *report) writeTimes(w io.Writer, result *result) {
	columns := r.columns(result)
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range measured(result) {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, op.cell(result.samples[name][op]))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	for _, m := range []struct {
		title string
		of    func(memory) int64
	}{
		{"memory to apply", func(m memory) int64 { return m.apply }},
		{"memory to export", func(m memory) int64 { return m.export }},
	} {
		if len(result.memory) == 0 {
			continue
		}
		cells := []string{m.title}
		for _, name := range columns {
			cells = append(cells, mebibytes(m.of(result.memory[name])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// measured returns the operations of which there are times.
func measured(result *result) []operation {
	return slices.DeleteFunc(slices.Clone(operations), func(op operation) bool {
		for _, s := range result.samples {
			if len(s[op]) > 0 {
				return false
			}
		}
		return true
	})
}

// mebibytes formats an amount of memory.
func mebibytes(n int64) string {
	if n == 0 {
		return "–"
	}
	return fmt.Sprintf("%d MiB", (n+1<<19)>>20)
}

// cell formats the samples of an operation.
func (op operation) cell(samples []time.Duration) string {
	if len(samples) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s – %s)", op.format(median(samples)), op.format(slices.Min(samples)), op.format(slices.Max(samples)))
}

func (r *report) writeRatios(w io.Writer, result *result) {
	if result.samples["cowshed"] == nil {
		return
	}
	others := slices.DeleteFunc(r.columns(result), func(name string) bool { return name == "cowshed" })
	what := "\nHow many times as long as Cowshed each takes"
	if result.samples["floor"] != nil {
		what += " (the floor: which part of that time)"
	}
	fmt.Fprintf(w, "%s:\n\n", what)
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(others, " | "), strings.Repeat("---|", len(others)))
	for _, op := range measured(result) {
		cells := []string{string(op)}
		for _, name := range others {
			cells = append(cells, ratio(median(result.samples[name][op]), median(result.samples["cowshed"][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// writeFlatness says how times grow from the smallest base to the largest.
func (r *report) writeFlatness(w io.Writer) {
	small, large := r.sizes()
	if large == nil {
		return
	}
	columns := r.columns(small)
	fmt.Fprintf(w, "\n## From %s files to %s\n\n", thousands(small.layer.files), thousands(large.layer.files))
	fmt.Fprintf(w, "How many times as long each operation takes:\n\n")
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range measured(large) {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, ratio(median(large.samples[name][op]), median(small.samples[name][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// writeSnapshotFlatness says how times grow from few other snapshots to many.
func (r *report) writeSnapshotFlatness(w io.Writer) {
	result := r.first(opPrepare + besideMany)
	if result == nil {
		return
	}
	columns := r.columns(result)
	fmt.Fprintf(w, "\n## From %d other snapshots to %s\n\n", fewSnapshots, thousands(result.others))
	fmt.Fprintf(w, "How many times as long each operation takes:\n\n")
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range life {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, ratio(median(result.samples[name][op+besideMany]), median(result.samples[name][op+besideFew])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// first returns the first result with times of Cowshed for an operation; nil if there is none.
func (r *report) first(op operation) *result {
	for _, result := range r.results {
		if len(result.samples["cowshed"][op]) > 0 {
			return result
		}
	}
	return nil
}

// sizes returns the results with the fewest and the most small files; nil if there are none, or only one.
func (r *report) sizes() (small, large *result) {
	for _, result := range r.results {
		if result.samples["cowshed"] != nil && len(result.samples["cowshed"][opDiff]) > 0 {
			if small == nil {
				small = result
			} else {
				large = result
			}
		}
	}
	return small, large
}

// best is the peer that the bar is about, the fastest of them if it names none.
func (b bar) best(result *result) (name string, took time.Duration) {
	if b.peer != "" {
		return b.peer, median(result.samples[b.peer][b.op])
	}
	for _, peer := range []string{"moby", "podman", "containerd"} {
		m := median(result.samples[peer][b.op])
		if m > 0 && (took == 0 || m < took) {
			name, took = peer, m
		}
	}
	return name, took
}

// write writes the row of a bar that is about a peer, if there are times for it.
func (b bar) write(w io.Writer, result *result, title string) {
	own := median(result.samples["cowshed"][b.op])
	peer, other := b.best(result)
	if own == 0 || other == 0 {
		return
	}
	fmt.Fprintf(w, "| %s | %s× faster than %s | %s | %s |\n", title, factor(b.want), peer, ratio(other, own),
		verdict(float64(other) >= b.want*float64(own)))
}

// writeBars compares the ratios with the project's promises.
func (r *report) writeBars(w io.Writer) {
	small, large := r.sizes()
	if small == nil {
		return
	}
	fmt.Fprintf(w, "\n## Against the bar\n\n| operation, %s files | bar | measured | |\n|---|---|---|---|\n", thousands(small.layer.files))
	for _, b := range bars {
		result := r.first(b.op)
		if result == nil || result.layer.files < barFiles {
			continue
		}
		b.write(w, result, string(b.op))
	}
	for _, result := range r.results {
		if result.key != largeKey {
			continue
		}
		for _, b := range largeBars {
			b.write(w, result, fmt.Sprintf("%s, %d large files", b.op, result.layer.files))
		}
	}
	for _, b := range floorBars {
		own, floor := median(small.samples["cowshed"][b.op]), median(small.samples["floor"][b.op])
		if own == 0 || floor == 0 || small.layer.files < barFiles {
			continue
		}
		fmt.Fprintf(w, "| %s | at most %s× the floor | %s | %s |\n", b.op, factor(b.want), ratio(own, floor),
			verdict(float64(own) <= b.want*float64(floor)))
	}
	for _, result := range r.results {
		if took := median(result.samples["cowshed"][opStart]); took > 0 {
			fmt.Fprintf(w, "| %s, %s | less than 1 s | %s | %s |\n", opStart, strings.ToLower(result.title), short(took), verdict(took < time.Second))
		}
	}
	if result := r.first(opPrepare + besideMany); result != nil {
		for _, op := range life {
			before, after := median(result.samples["cowshed"][op+besideFew]), median(result.samples["cowshed"][op+besideMany])
			fmt.Fprintf(w, "| %s | at most 1.3× slower beside %s snapshots than beside %d | %s | %s |\n", op, thousands(result.others),
				fewSnapshots, ratio(after, before), verdict(float64(after) <= 1.3*float64(before)))
		}
	}
	if large == nil {
		return
	}
	for _, op := range []operation{opChanges, opDiff, opUsage, opRemove} {
		before, after := median(small.samples["cowshed"][op]), median(large.samples["cowshed"][op])
		if before == 0 || after == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s | at most 1.3× slower on %s files | %s | %s |\n", op, thousands(large.layer.files),
			ratio(after, before), verdict(float64(after) <= 1.3*float64(before)))
	}
}

// writeZFSBars is writeBars for ZFS, of which only ratios are known.
func (r *report) writeZFSBars(w io.Writer) {
	fmt.Fprintf(w, "\n## Against the bar\n\n| operation | bar | measured | |\n|---|---|---|---|\n")
	for _, b := range zfsBars {
		if result := r.first(b.op); result != nil && result.layer.files >= barFilesZFS {
			b.write(w, result, fmt.Sprintf("%s, %s files", b.op, thousands(result.layer.files)))
		}
	}
	many, few := r.beside(manySnapshots), r.beside(fewSnapshots)
	if many == nil {
		return
	}
	for _, b := range zfsLayerBars {
		b.write(w, many, fmt.Sprintf("%s, %s", b.op, strings.ToLower(many.title)))
	}
	if few == nil {
		return
	}
	before, after := median(few.samples["cowshed"][opStartCreate]), median(many.samples["cowshed"][opStartCreate])
	if before > 0 && after > 0 {
		fmt.Fprintf(w, "| %s, %s | at most %s× its own time beside %d | %s | %s |\n", opStartCreate, strings.ToLower(many.title), factor(mostGrowthZFS),
			fewSnapshots, ratio(after, before), verdict(float64(after) <= mostGrowthZFS*float64(before)))
	}
}

// beside returns the result with so many layers; nil if there is none.
func (r *report) beside(layers int) *result {
	for _, result := range r.results {
		if result.others == layers {
			return result
		}
	}
	return nil
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**not met**"
}

// factor formats the number in a bar.
func factor(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }

// thousands formats a number with commas.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
