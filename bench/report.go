package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// report writes what was measured as Markdown.
type report struct {
	filesystem string
	quota      string
	image      string // what holds the filesystem
	date       string
	revision   string
	rounds     int
	machine    machine
	results    []*result
	plots      []string // paths relative to the report, one per result
}

// order is the order of columns.
var order = []string{"cowshed", "moby", "podman", "containerd", "floor"}

// bar is a promise of the project about the ratio to a peer.
type bar struct {
	op   operation
	peer string
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
}

func (r *report) write(w io.Writer) {
	fmt.Fprintf(w, "# Benchmarks on %s\n\n", r.filesystem)
	fmt.Fprintf(w, "Written by `make bench` on %s, of revision %s. Do not edit.\n\n", r.date, r.revision)
	r.writeMethod(w)
	for i, result := range r.results {
		fmt.Fprintf(w, "\n## Base of %s files, %d MiB\n\n", thousands(result.layer.files), result.layer.bytes>>20)
		r.writeTimes(w, result)
		fmt.Fprintf(w, "\n![Times of the operations on a base of %s files, logarithmic](%s)\n", thousands(result.layer.files), r.plots[i])
		r.writeRatios(w, result)
	}
	r.writeFlatness(w)
	r.writeBars(w)
}

func (r *report) writeMethod(w io.Writer) {
	m := r.machine
	fmt.Fprintf(w, "Machine: %s, %d CPUs, %d GiB of memory, %s, %s. ", m.cpu, m.cpus, (m.memory+1<<29)>>30, m.kernel, m.goVersion)
	fmt.Fprintf(w, "Filesystem: %s on %s, %s.\n\n", r.filesystem, r.image, r.quota)
	for _, v := range m.versions {
		fmt.Fprintf(w, "- %s\n", v)
	}
	fmt.Fprintf(w, `
All contenders run in one process on the same filesystem, one after the other, in an order that is rotated in each of
%d rounds. Before an operation is timed, everything is written out and destroyed subvolumes are cleaned up; caches are
warm. A cell is the median, with the lowest and the highest time in brackets. The column *floor* is a program that makes
only the system calls which the operation cannot do without, in one thread; it is no implementation of layers.

What is measured: the base is one layer, applied from an uncompressed tar with whole-second times. Each child is a
writable layer on it; in one of them, three files are appended to. *Durable* rows add to peers' time the sync which they
leave out, and which Cowshed has already done when it returns. *Until it returns* includes closing the stream, where
moby's and podman's drivers sleep to the end of the second. containerd is its snapshotter and walking differ called
directly, without gRPC, and its diff lands in its content store; it lists no changes and has no limits.
`, r.rounds)
}

func (r *report) columns(result *result) []string {
	return slices.DeleteFunc(slices.Clone(order), func(name string) bool { return result.samples[name] == nil })
}

func (r *report) writeTimes(w io.Writer, result *result) {
	columns := r.columns(result)
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range operations {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, cell(result.samples[name][op]))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// cell formats the times of an operation.
func cell(times []time.Duration) string {
	if len(times) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s – %s)", short(median(times)), short(slices.Min(times)), short(slices.Max(times)))
}

func (r *report) writeRatios(w io.Writer, result *result) {
	if result.samples["cowshed"] == nil {
		return
	}
	others := slices.DeleteFunc(r.columns(result), func(name string) bool { return name == "cowshed" })
	fmt.Fprintf(w, "\nHow many times as long as Cowshed each takes (the floor: what part of it):\n\n")
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(others, " | "), strings.Repeat("---|", len(others)))
	for _, op := range operations {
		cells := []string{string(op)}
		for _, name := range others {
			cells = append(cells, ratio(median(result.samples[name][op]), median(result.samples["cowshed"][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// writeFlatness says how times grow from the smallest base to the largest.
func (r *report) writeFlatness(w io.Writer) {
	if len(r.results) < 2 {
		return
	}
	small, large := r.results[0], r.results[len(r.results)-1]
	columns := r.columns(small)
	fmt.Fprintf(w, "\n## From %s files to %s\n\n", thousands(small.layer.files), thousands(large.layer.files))
	fmt.Fprintf(w, "How many times as long each operation takes:\n\n")
	fmt.Fprintf(w, "| operation | %s |\n|---|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, op := range operations {
		cells := []string{string(op)}
		for _, name := range columns {
			cells = append(cells, ratio(median(large.samples[name][op]), median(small.samples[name][op])))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
}

// writeBars compares the ratios with what the project promises.
func (r *report) writeBars(w io.Writer) {
	small := r.results[0]
	if small.samples["cowshed"] == nil {
		return
	}
	fmt.Fprintf(w, "\n## Against the bar\n\n| operation, %s files | bar | measured | |\n|---|---|---|---|\n", thousands(small.layer.files))
	for _, b := range bars {
		own, peer := median(small.samples["cowshed"][b.op]), median(small.samples[b.peer][b.op])
		if own == 0 || peer == 0 || small.layer.files < barFiles {
			continue
		}
		fmt.Fprintf(w, "| %s | %s× faster than %s | %s | %s |\n", b.op, significant0(b.want), b.peer, ratio(peer, own),
			verdict(float64(peer) >= b.want*float64(own)))
	}
	if len(r.results) < 2 {
		return
	}
	large := r.results[len(r.results)-1]
	for _, op := range []operation{opChanges, opDiff, opUsage, opRemove} {
		before, after := median(small.samples["cowshed"][op]), median(large.samples["cowshed"][op])
		if before == 0 || after == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s | at most 1.3× slower on %s files | %s | %s |\n", op, thousands(large.layer.files),
			ratio(after, before), verdict(float64(after) <= 1.3*float64(before)))
	}
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "**not met**"
}

func significant0(x float64) string { return fmt.Sprintf("%.0f", x) }

// thousands formats a number with commas.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
