package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// liveOperations is the order of the report.
var liveOperations = []operation{
	opFork, opForkHundred, opForkFew, opForkMany, opMoment, opRollback, opRollbackLive, opMerge, opMergeLive, opPromote, opAdoptCopy,
	opAdopt, opSend, opOpenFew, opOpenMany,
}

// livePeers are the columns of the commands that people use instead.
var livePeers = []string{ofReflink, ofWorktree, ofUpper, ofDocker}

// liveBar is a promise: times at most, and a ratio to the bare calls or to another operation. 0 is none.
type liveBar struct {
	op       operation
	p50, p99 time.Duration
	bare     float64
	other    operation
	times    float64
}

var liveBars = []liveBar{
	{op: opFork, p50: 5 * time.Millisecond, p99: 15 * time.Millisecond, bare: 1.3},
	{op: opForkHundred, p50: 300 * time.Millisecond, bare: 1.2},
	{op: opForkMany, other: opForkFew, times: 1.5},
	{op: opMoment, p50: 5 * time.Millisecond},
	{op: opRollback, p50: 5 * time.Millisecond},
	{op: opRollbackLive, p50: 10 * time.Millisecond},
	{op: opMerge, p50: 10 * time.Millisecond},
	{op: opMergeLive, p50: 10 * time.Millisecond},
	{op: opPromote, p50: 50 * time.Millisecond},
	{op: opAdoptCopy, p50: 500 * time.Millisecond},
	{op: opAdopt, p50: 10 * time.Millisecond},
	{op: opSend, p50: 20 * time.Millisecond},
	{op: opOpenMany, other: opOpenFew, times: 1.2},
}

const (
	mostSent = 1.1     // times the bytes of the bare stream
	mostHeap = 2 << 10 // bytes of each fork that is not used
)

// percentile returns the time that so many of a hundred do not exceed, 0 if there are none.
func percentile(times []time.Duration, hundredths int) time.Duration {
	if len(times) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(times))
	return sorted[(len(sorted)-1)*hundredths/100]
}

// writeLive writes the report of liveCommand.
func (r *report) writeLive(w io.Writer, runs []*liveRun) {
	m := r.machine
	fmt.Fprintf(w, "## Live layers\n\n")
	fmt.Fprintf(w, "Written by `scripts/bench.sh live` on %s, of revision %s. Do not edit.\n\n", r.date, r.revision)
	fmt.Fprintf(w, "Machine: %s, %d CPUs, %d GiB of memory, %s, %s. ", m.cpu, m.cpus, (m.memory+1<<29)>>30, m.kernel, m.goVersion)
	fmt.Fprintf(w, "Filesystem: %s on %s, %s. Load average %s before the run and %s at its end, its own included.\n",
		r.filesystem, r.image, r.quota, r.loadBefore, r.loadAfter)
	fmt.Fprint(w, `
A program writes to the layer while forks and snapshots of it are taken. Before each sample the filesystem has nothing left to do.
A cell is the median and, in brackets, the 99th percentile; of few samples the latter is the largest.

- The *bare calls* are one snapshot for each fork, the snapshot, exchange and commit of a rollback, and the filesystem's own stream.
  None of them keeps the moment that a merge needs, or a record.
- All of Cowshed's operations are durable when they return. Of the others, the bare calls and `+"`git`"+` are.
`)
	for _, l := range runs {
		fmt.Fprintf(w, "\n### A layer of %s files\n\n", thousands(l.files))
		l.writeTimes(w)
		l.writePeers(w)
		l.writeBars(w)
	}
}

func liveCell(times []time.Duration) string {
	if len(times) == 0 {
		return "–"
	}
	return fmt.Sprintf("%s (%s)", short(median(times)), short(percentile(times, 99)))
}

func (l *liveRun) writeTimes(w io.Writer) {
	fmt.Fprintf(w, "| operation | Cowshed | bare calls | ratio |\n|---|---|---|---|\n")
	for _, op := range liveOperations {
		own, bare := l.samples[ofCowshed][op], l.samples[ofKernel][op]
		if len(own) > 0 {
			fmt.Fprintf(w, "| %s | %s | %s | %s |\n", op, liveCell(own), liveCell(bare), ratio(median(own), median(bare)))
		}
	}
}

// writePeers compares with the commands that people use instead.
func (l *liveRun) writePeers(w io.Writer) {
	var rows []string
	for _, op := range liveOperations {
		cells, any := []string{string(op), liveCell(l.samples[ofCowshed][op])}, false
		for _, peer := range livePeers {
			cells = append(cells, liveCell(l.samples[peer][op]))
			any = any || len(l.samples[peer][op]) > 0
		}
		if any {
			rows = append(rows, "| "+strings.Join(cells, " | ")+" |\n")
		}
	}
	if len(rows) > 0 {
		fmt.Fprintf(w, "\n| operation | Cowshed | %s |\n|---|---|%s\n%s", strings.Join(livePeers, " | "), strings.Repeat("---|", len(livePeers)), strings.Join(rows, ""))
	}
}

// writeBars compares with the project's promises.
func (l *liveRun) writeBars(w io.Writer) {
	fmt.Fprintf(w, "\n| operation | bar | measured | |\n|---|---|---|---|\n")
	line := func(op operation, bar, measured string, met bool) {
		fmt.Fprintf(w, "| %s | %s | %s | %s |\n", op, bar, measured, verdict(met))
	}
	for _, b := range liveBars {
		own := l.samples[ofCowshed][b.op]
		if len(own) == 0 {
			continue
		}
		took := median(own)
		if b.p50 > 0 {
			line(b.op, "median at most "+short(b.p50), short(took), took <= b.p50)
		}
		if last := percentile(own, 99); b.p99 > 0 {
			line(b.op, "99th percentile at most "+short(b.p99), short(last), last <= b.p99)
		}
		if bare := median(l.samples[ofKernel][b.op]); b.bare > 0 && bare > 0 {
			line(b.op, "at most "+factor(b.bare)+"× the bare calls", ratio(took, bare), float64(took) <= b.bare*float64(bare))
		}
		if other := median(l.samples[ofCowshed][b.other]); b.times > 0 && other > 0 {
			line(b.op, "at most "+factor(b.times)+"× "+string(b.other), ratio(took, other), float64(took) <= b.times*float64(other))
		}
	}
	if l.bare > 0 {
		share := float64(l.sent) / float64(l.bare)
		line(opSend, "at most "+factor(mostSent)+"× the bytes of the bare stream", significant(share)+"×", share <= mostSent)
	}
	if l.all {
		line("each of 1,000 forks that are not used", fmt.Sprintf("at most %d bytes of memory", mostHeap), fmt.Sprintf("%d bytes", l.heap), l.heap <= mostHeap)
	}
}
