package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// enginesCommand is the first argument of this program when it measures through a containerd.
const enginesCommand = "engines"

// minEngineRounds is how many rounds a report needs that is kept.
const minEngineRounds = 5

// engines is a containerd with snapshotters, and a registry beside it.
type engines struct {
	config
	ctx      context.Context
	daemons  []*harness.Daemon // whose use of processors is measured
	cowshed  *harness.Cowshed
	registry string // its address
	busybox  []harness.File
	all      []*engine
}

func runEngines(args []string, out io.Writer) error {
	flags := flag.NewFlagSet(enginesCommand, flag.ContinueOnError)
	c := config{filesystem: "btrfs", log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flags.StringVar(&c.root, "root", "", "empty `directory` on the btrfs to measure on")
	flags.StringVar(&c.work, "work", os.TempDir(), "`directory` on another filesystem for the images")
	flags.IntVar(&c.rounds, "rounds", minEngineRounds, "how often everything is measured")
	files := flags.String("files", "50000,10000", "numbers of files of the images, comma separated")
	large := flags.Int("large", 64, "MiB of each of the four files of the image of large files; 0: no such image")
	layers := flags.String("layers", "10,60", "numbers of layers of images of as many files as the last of -files, comma separated; 0: no such images")
	output := flags.String("o", "", "write the report to this Markdown `file`, and keep its other parts; default is to print it only")
	add := flags.Bool("add", false, "add the images to those of the report in the file of -o, or replace them")
	image := flags.String("image", "a loopback image", "the device of the filesystem, as the report names it")
	revision := flags.String("revision", "unknown", "the measured revision, as the report names it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := c.check(flags, *output, minEngineRounds); err != nil {
		return err
	}
	images, err := chooseImages(*files, *large, *layers)
	if err != nil {
		return err
	}
	earlier, err := readDocument(*output)
	if err != nil {
		return err
	}
	if *add {
		if err := new(engineReport).addTo(earlier[enginesPart], io.Discard); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	silencePeers()
	r := &engineReport{
		image: *image, revision: *revision, rounds: c.rounds,
		date: time.Now().UTC().Format(time.DateOnly), machine: describeMachine(),
	}
	if r.loadBefore, err = loadAverage(); err != nil {
		return err
	}
	if err := c.withEngines(ctx, func(e *engines) error {
		for _, image := range images {
			result, err := e.measure(image)
			if err != nil {
				return fmt.Errorf("%s: %w", image.title, err)
			}
			if err := e.checkNative(); err != nil {
				return err
			}
			r.results = append(r.results, result)
			r.writeResult(os.Stderr, result) // in a long run it is good to see
			if r.loadAfter, err = loadAverage(); err != nil {
				return err
			}
			if *output != "" { // already now: earlier measurements are kept if the run is ended
				var addErr error
				write := r.write
				if *add {
					write = func(w io.Writer) { addErr = r.addTo(earlier[enginesPart], w) }
				}
				if err := errors.Join(updateDocument(*output, documentTitle(c.filesystem), enginesPart, write), addErr); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		return err
	}
	r.write(out)
	return nil
}

// chooseImages returns the images that the flags ask for.
func chooseImages(files string, large int, layers string) ([]*engineImage, error) {
	var all []*engineImage
	n := 0
	for field := range strings.SplitSeq(files, ",") {
		var err error
		if n, err = strconv.Atoi(field); err != nil || n < changedFiles {
			return nil, fmt.Errorf("%q is not a number of files", field)
		}
		all = append(all, smallFilesImage(n, 1, allFormats))
	}
	if large > 0 {
		all = append(all, largeFilesImage(4, large<<20, allFormats))
	}
	if layers == "0" {
		return all, nil
	}
	for field := range strings.SplitSeq(layers, ",") {
		l, err := strconv.Atoi(field)
		if err != nil || l < 2 || l > n {
			return nil, fmt.Errorf("%q is not a number of layers for %d files", field, n)
		}
		all = append(all, smallFilesImage(n, l, allFormats[:2]))
	}
	return all, nil
}

// withEngines calls f with daemons that run for so long.
func (c config) withEngines(ctx context.Context, f func(e *engines) error) (err error) {
	root := filepath.Join(c.root, enginesCommand)
	if err := os.Mkdir(root, 0o711); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.removeAll(root), harness.RemoveCowshed()) }()
	return harness.Outside(func(t testing.TB) error {
		host := harness.NewHost(t, root)
		host.LogLevel = "info"
		cowshed := host.StartCowshed("containerd")
		containerd := host.StartContainerd("containerd", cowshed.Options())
		e := &engines{
			config: c, ctx: ctx, cowshed: cowshed, registry: host.StartRegistry(),
			daemons: []*harness.Daemon{containerd.Daemon, cowshed.Daemon},
		}
		var err error
		if e.busybox, err = harness.BusyboxFiles(host.Programs); err != nil {
			return err
		}
		add := func(snapshotter string, dirs ...string) {
			own := &engine{name: snapshotter, store: containerd.Store("bench-"+snapshotter, snapshotter)}
			for _, dir := range dirs {
				own.volumes = append(own.volumes, filepath.Join(containerd.Root, "io.containerd.snapshotter.v1."+snapshotter, dir))
			}
			e.all = append(e.all, own)
		}
		add(harness.CowshedSnapshotter)
		e.all[0].volumes = []string{filepath.Join(cowshed.Root, "containerd", "btrfs", "subvolumes")}
		add("btrfs", "active", "view", "snapshots")
		add("overlayfs", "snapshots")
		add("native", "snapshots")
		e.all[3].copies = true
		add("floor")
		e.all[4].bare = true
		return f(e)
	})
}

// measure makes an image and has all engines go through its life. Before each step, it is another engine that begins.
func (e *engines) measure(image *engineImage) (_ *engineResult, err error) {
	if err := image.make(e.work, e.registry, e.busybox); err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	defer func() { err = errors.Join(err, image.remove()) }()
	if err := e.publish(image); err != nil {
		return nil, err
	}
	r := &engineResult{
		result: result{
			title: image.title, key: image.key, samples: make(map[string]samples),
			layer: layerFacts{files: image.files, bytes: image.bytes},
		},
		cpu: make(map[string]samples),
	}
	for _, own := range e.all {
		r.samples[own.name], r.cpu[own.name] = make(samples), make(samples)
	}
	for round := range e.rounds {
		start := time.Now()
		for n, step := range image.steps() {
			for i := range e.all {
				own := e.all[(i+n+round)%len(e.all)]
				if own.copies && step.files > copiedFiles {
					continue
				}
				t := &turn{engines: e, engine: own, image: image, samples: r.samples[own.name], cpu: r.cpu[own.name], check: round == 0}
				if err := step.do(t); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", own.name, step.name, err)
				}
			}
		}
		e.log.Info("measured", "image", image.title, "round", round+1, "took", time.Since(start).Round(time.Second))
	}
	return r, nil
}

// engineStep is a step that each engine does before any does the next.
type engineStep struct {
	name  string
	files int // that an engine which copies an image for each snapshot copies
	do    func(*turn) error
}

// copiedFiles is the most that an engine has to copy in a step, or else it is left out: it would take most of the time.
const copiedFiles = 20_000

func (i *engineImage) steps() []engineStep {
	unpacking := 0 // each layer has copies of those below it
	for n := range i.layers {
		unpacking += i.files * n / i.layers
	}
	var steps []engineStep
	for _, format := range i.formats {
		steps = append(steps,
			engineStep{"load " + format.String(), unpacking, func(t *turn) error { return t.load(format) }},
			engineStep{"pull " + format.String(), unpacking, func(t *turn) error { return t.pull(format) }})
	}
	// Two containers, two views to compare them with, and the commit's layer.
	return append(steps, engineStep{"live", unpacking + 5*i.files, (*turn).live})
}

// publish pushes the image in all formats to the registry.
func (e *engines) publish(image *engineImage) error {
	store := e.all[0].store
	ctx := store.Context(e.ctx)
	for _, format := range image.formats {
		img, err := store.ImportFile(ctx, image.archives[format])
		if err != nil {
			return err
		}
		if err := store.PushImage(ctx, img, img.Name()); err != nil {
			return err
		}
		if err := store.Clear(ctx); err != nil {
			return err
		}
	}
	return nil
}

// checkNative makes sure that the native comparison was measured and not a silent walk.
func (e *engines) checkNative() error {
	native, walked, err := e.cowshed.Comparisons(e.ctx, "snapshots")
	if err == nil && (native == 0 || len(walked) > 0) {
		err = fmt.Errorf("of Cowshed's comparisons %d were native, and walked: %v", native, walked)
	}
	return err
}

// loadAverage is how many processes were running or waiting on the whole machine, on average of a minute.
func loadAverage() (string, error) {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	load, _, _ := strings.Cut(string(data), " ")
	return load, nil
}
