// Bench measures Cowshed beside the layer code of moby, podman and containerd, on the same filesystem in the same
// run. It writes a table and plots. Its command engines does so with the snapshotters of a containerd that runs.
// scripts/bench.sh makes the filesystem for it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	mobyreexec "github.com/moby/sys/reexec"
	"github.com/sirupsen/logrus"
)

func main() {
	// The peers start this program again to unpack in a changed root.
	if mobyreexec.Init() || peerCommand() {
		return
	}
	run := func() error { return runBench(os.Args[1:], os.Stdout) }
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case memoryCommand:
			run = func() error { return runMemory(os.Args[2:]) }
		case enginesCommand:
			run = func() error { return runEngines(os.Args[2:], os.Stdout) }
		case containersCommand:
			run = func() error { return runContainers(os.Args[2:], os.Stdout) }
		case liveCommand:
			run = func() error { return runLive(os.Args[2:], os.Stdout) }
		case holdCommand:
			run = hold
		}
	}
	if isCounter(os.Args[0]) {
		run = func() error { return countAndRun(os.Args) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runBench(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	c := config{log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flags.StringVar(&c.filesystem, "driver", "btrfs", "filesystem and driver to measure: btrfs or zfs")
	flags.StringVar(&c.root, "root", "", "empty `directory` on the filesystem to measure on")
	flags.StringVar(&c.work, "work", os.TempDir(), "`directory` on another filesystem for the tars")
	flags.IntVar(&c.rounds, "rounds", 3, "how often everything is measured")
	flags.DurationVar(&c.repeat, "repeat", time.Second, "repeat cheap operations for so long in each round")
	files := flags.String("files", "50000,200000", "numbers of files of the base, comma separated")
	large := flags.Int("large", 256, "MiB of each of the four files of the base of large files; 0: no such base")
	layers := flags.Int("layers", 5000, "layers that are there when a driver starts and, 2,000 of them at most, beside a snapshot; 0: no such measurements")
	only := flags.String("only", "", "names of contenders, comma separated; default all")
	output := flags.String("o", "", "write the report to this Markdown `file`, and plots beside it; default is to print it only")
	image := flags.String("image", "a loopback image", "the device of the filesystem, as the report names it")
	quota := flags.Bool("quota", true, "turn simple quotas on first (btrfs)")
	revision := flags.String("revision", "unknown", "the measured revision, as the report names it")
	note := flags.String("note", "", "a paragraph about the machine for the report")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := c.check(flags, *output, minRounds); err != nil {
		return err
	}
	if *only != "" {
		c.only = strings.Split(*only, ",")
	}
	silencePeers()
	var quotas string
	switch c.filesystem {
	case "btrfs":
		quotas = "quotas off"
	case "zfs":
		dataset, err := datasetOf(c.root)
		if err != nil {
			return err
		}
		c.pool, _, _ = strings.Cut(dataset, "/")
	}
	if c.filesystem == "btrfs" && *quota {
		if err := c.onRoot(btrfsctl.EnableSimpleQuota); err != nil {
			return fmt.Errorf("turn simple quotas on: %w", err)
		}
		quotas = "simple quotas on"
	}

	r := &report{
		filesystem: c.filesystem, quota: quotas, image: *image, note: *note, revision: *revision, rounds: c.rounds,
		date: time.Now().UTC().Format(time.DateOnly), machine: describeMachine(),
	}
	workloads, err := chooseWorkloads(c.filesystem, *files, *large, *layers)
	if err != nil {
		return err
	}
	for _, w := range workloads {
		if len(c.contendersOf(w)) == 0 {
			continue
		}
		result, err := c.measure(w)
		if err != nil {
			return err
		}
		r.results = append(r.results, result)
		r.writeTimes(os.Stderr, result) // in a long run it is good to see
		r.plots = append(r.plots, fmt.Sprintf("benchmarks-%s-%s.svg", c.filesystem, w.key))
	}
	if c.filesystem == "zfs" {
		if r.processes, err = c.countProcesses(); err != nil {
			return err
		}
	}
	if *output != "" {
		if err := writeFiles(r, *output); err != nil {
			return err
		}
	}
	r.write(out)
	return nil
}

// minRounds is how many rounds a report needs that is kept.
const minRounds = 3

// chooseWorkloads returns the workloads that the flags ask for.
func chooseWorkloads(filesystem, files string, large, layers int) ([]workload, error) {
	var all, snapshots []workload
	for field := range strings.SplitSeq(files, ",") {
		if field == "" {
			continue
		}
		n, err := strconv.Atoi(field)
		if err != nil || n < changedFiles {
			return nil, fmt.Errorf("%q is not a number of files", field)
		}
		if filesystem == "zfs" {
			all = append(all, onZFS(n))
		} else {
			if len(all) == 0 {
				snapshots = append(snapshots, snapshotters(n))
			}
			all = append(all, manyFiles(n, len(all) == 0))
		}
	}
	if large > 0 {
		all = append(all, largeFiles(4, large<<20))
	}
	switch {
	case layers > 0 && filesystem == "zfs":
		all = append(all, manyLayersOnZFS(layers))
		if layers > fewSnapshots {
			all = append(all, manyLayersOnZFS(fewSnapshots))
		}
	case layers > 0:
		all = append(all, manyLayers(layers))
	}
	if layers > fewSnapshots && filesystem != "zfs" {
		snapshots = append(snapshots, besideSnapshots(min(layers, manySnapshots)))
	}
	return append(all, snapshots...), nil
}

// writeFiles writes the report and its plots.
func writeFiles(r *report, name string) error {
	for i, plot := range r.plots {
		err := writeFile(filepath.Join(filepath.Dir(name), plot), func(w io.Writer) {
			result := r.results[i]
			writePlot(w, result.title+", on "+r.filesystem, r.columns(result), result)
		})
		if err != nil {
			return err
		}
	}
	return updateDocument(name, documentTitle(r.filesystem), layersPart, r.write)
}

func writeFile(name string, write func(io.Writer)) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	write(f)
	return f.Close()
}

// silencePeers turns off their logs, which would add to the times.
func silencePeers() {
	logrus.SetOutput(io.Discard)
	log.L = logrus.NewEntry(&logrus.Logger{Out: io.Discard, Formatter: new(logrus.TextFormatter), Level: logrus.PanicLevel})
	log.G = func(context.Context) *log.Entry { return log.L }
	slog.SetDefault(slog.New(slog.DiscardHandler))
}
