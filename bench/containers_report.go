package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// containerBar is a promise about the ratio of a container with a shared root to a peer, or to another measurement of its
// own.
type containerBar struct {
	op, other operation
	peer      string
	want      float64
}

var containerBars = []containerBar{
	{opPageCache, opPageCache, "containerd-overlayfs", 1.1},
	{opPSS, opPSS, "containerd-overlayfs", 1.1},
	{opPSS, opOnePSS, "cowshed-shared", 1.2},
	{opFilePSS, opOneFilePSS, "cowshed-shared", 1.2},
	{opThirdStart, opThirdStart, "containerd-overlayfs", 1.1},
	{opChanges, opChanges, "podman-overlay", 1.5},
	{opDiff, opDiff, "podman-overlay", 1.5},
	{opMount, opMount, "containerd-overlayfs", 1.3},
	{opRemove, opRemove, "overlay2", 0.1},
	{opRemove, opRemove, "podman-overlay", 0.1},
	{opRemove, opRemove, "containerd-overlayfs", 0.1},
	{opCommitMany, opBareRenames, "cowshed", 1.5},
}

// mostCommitMore is how much longer than of a layer with the root style snapshot a commit of few changes may take.
const mostCommitMore = 3 * time.Millisecond

// mostUsage is how long Usage of a container may take without quotas.
const mostUsage = 300 * time.Microsecond

// writeContainers writes the report of containersCommand.
func (r *report) writeContainers(w io.Writer) {
	m := r.machine
	fmt.Fprintf(w, "## Containers, beside overlayfs\n\n")
	fmt.Fprintf(w, "Written by `scripts/bench.sh containers` on %s, of revision %s. Do not edit.\n\n", r.date, r.revision)
	fmt.Fprintf(w, "Machine: %s, %d CPUs, %d GiB of memory, %s, %s. ", m.cpu, m.cpus, (m.memory+1<<29)>>30, m.kernel, m.goVersion)
	fmt.Fprintf(w, "Filesystem: %s on %s, %s. Load average %s before the run and %s at its end, its own included.\n",
		r.filesystem, r.image, r.quota, r.loadBefore, r.loadAfter)
	fmt.Fprintf(w, `
*cowshed* and *cowshed-shared* are Cowshed's driver with the root styles snapshot and shared
([shared-roots.md](howto/shared-roots.md)). *overlay2* is moby's driver, *podman-overlay* that of containers/storage, and
*containerd-overlayfs* containerd's snapshotter with its walking differ. All are on the same btrfs, except for
*overlay2-ext4*, which is on an ext4 beside it. They are called directly, in one process, in %d rounds whose order rotates.
A cell is the median, with the lowest and the highest value in brackets.

- *Page cache* is that of the file itself. A page that several containers share counts once.
- The *program* reads all of its own file, as programs do with their libraries. Each has 3 MiB of memory of its own, which no
  root style can share: *memory of files* leaves that out. The third start is that of all containers but the first two.
- *Commit* is that of a layer whose changes are on disk. Cowshed's is durable, and those of others are not. The 10,000 files are new in
  directories of the image. *Bare renames* move as many to there, as a commit of a shared root does.
- *cowshed-snapshotter* is Cowshed's snapshotter for containerd with shared roots and its native differ.
- *Rename of a directory* is that of mv, which copies the directory where rename(2) is refused.
- containerd lists no changes, and its diff lands in a content store.
`, r.rounds)
	for _, result := range r.results {
		fmt.Fprintf(w, "\n### %s\n\n", result.title)
		r.writeTimes(w, result)
		r.writeRatios(w, result)
		r.writeContainerBars(w, result)
	}
}

// writeContainerBars compares the ratios with the project's promises.
func (r *report) writeContainerBars(w io.Writer, result *result) {
	own := result.samples["cowshed-shared"]
	if own == nil {
		return
	}
	fmt.Fprintf(w, "\n| container with a shared root | bar | measured | |\n|---|---|---|---|\n")
	for _, b := range containerBars {
		took, other := median(own[b.op]), median(result.samples[b.peer][b.other])
		if took == 0 || other == 0 {
			continue
		}
		of := b.peer
		if b.other != b.op {
			of = string(b.other)
			if _, one, ok := strings.Cut(of, "(PSS) of "); ok {
				of = one
			}
		}
		fmt.Fprintf(w, "| %s | at most %s× %s | %s | %s |\n", b.op, factor(b.want), of, ratio(took, other),
			verdict(float64(took) <= b.want*float64(other)))
	}
	if took, other := median(own[opCommitFew]), median(result.samples["cowshed"][opCommitFew]); took > 0 && other > 0 {
		more := max(took-other, 0)
		fmt.Fprintf(w, "| %s | at most %s more than cowshed | %s | %s |\n", opCommitFew, short(mostCommitMore), short(more), verdict(more <= mostCommitMore))
	}
	if took := median(own[opUsage]); took > 0 {
		fmt.Fprintf(w, "| %s | at most %s | %s | %s |\n", opUsage, short(mostUsage), short(took), verdict(took <= mostUsage))
	}
}
