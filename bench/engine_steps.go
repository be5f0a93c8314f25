package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/e2e/daemons/harness"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The operations that clients ask containerd for. Each ends when all of it is on disk.
const (
	opLoad          operation = "load" // and the format
	opPull          operation = "pull" // and the format
	opRun           operation = "run a container that changes 3 files"
	opContainerDiff operation = "diff of the container"
	opCommit        operation = "commit of the container"
	opContainerGone operation = "remove the container"
	opPrune         operation = "prune the image"
	opPruneFreed    operation = "prune the image, until its space is free"
)

func of(op operation, format layertar.Format) operation {
	return op + ", " + operation(format.String())
}

// engine is a snapshotter of the containerd under test, with the differ that containerd has for it. It is a namespace of
// its own.
type engine struct {
	name   string
	store  *harness.Store
	copies bool // each snapshot is a copy of its parent
	bare   bool // it has no snapshots: see engine_floor.go
	// volumes are the directories that hold an entry for each of its snapshots.
	volumes []string
}

// turn is one engine with one image in one round.
type turn struct {
	*engines
	*engine
	image   *engineImage
	samples samples
	cpu     samples // of the daemons
	check   bool    // look at the results of the operations
}

// load imports the archive, and prunes the image.
func (t *turn) load(format layertar.Format) error {
	if t.bare {
		return t.floorLoad(format)
	}
	return t.unpack(of(opLoad, format), func(ctx context.Context) (client.Image, error) {
		return t.store.ImportFile(ctx, t.image.archives[format])
	})
}

// pull pulls the image from the registry, and prunes it.
func (t *turn) pull(format layertar.Format) error {
	if t.bare {
		return t.floorPull(format)
	}
	return t.unpack(of(opPull, format), func(ctx context.Context) (client.Image, error) {
		return t.store.PullImage(ctx, t.image.name(t.registry, format))
	})
}

func (t *turn) unpack(op operation, get func(ctx context.Context) (client.Image, error)) error {
	ctx := t.store.Context(t.ctx)
	var img client.Image
	if err := t.timed(ctx, op, func(ctx context.Context) (err error) {
		img, err = get(ctx)
		return err
	}); err != nil {
		return err
	}
	if t.check && !t.bare {
		if err := t.checkImage(ctx, img); err != nil {
			return err
		}
	}
	return t.prune(ctx, img)
}

// live has containers of the image change files. It diffs one, commits another, and removes both.
func (t *turn) live() error {
	if t.bare {
		return t.floorLive()
	}
	ctx := t.store.Context(t.ctx)
	img, err := t.store.ImportFile(ctx, t.image.archives[t.image.formats[0]])
	if err != nil {
		return err
	}
	for _, id := range []string{"diffed", "committed"} {
		if err := t.timed(ctx, opRun, func(ctx context.Context) error { return t.run(ctx, id, img) }); err != nil {
			return err
		}
	}
	if err := t.diff("diffed"); err != nil {
		return err
	}
	var committed client.Image
	if err := t.timed(ctx, opCommit, func(ctx context.Context) (err error) {
		committed, err = t.store.Commit(ctx, "committed", img, "committed")
		return err
	}); err != nil {
		return err
	}
	keep := t.image.layers + 1 // of both images
	if err := t.collect(ctx, keep+2); err != nil {
		return err
	}
	for _, c := range []struct {
		id     string
		others int
	}{{"diffed", 1}, {"committed", 0}} {
		if err := t.timed(ctx, opContainerGone, func(ctx context.Context) error {
			if err := t.store.RemoveContainer(ctx, c.id); err != nil {
				return err
			}
			return t.collect(ctx, keep+c.others)
		}); err != nil {
			return err
		}
	}
	if err := t.store.RemoveLeases(ctx); err != nil {
		return err
	}
	return errors.Join(t.delete(ctx, committed, t.image.layers), t.delete(ctx, img, 0))
}

// run runs a container that appends its id to files.
func (t *turn) run(ctx context.Context, id string, img client.Image) error {
	script := fmt.Sprintf("for f in %s; do echo %s >>/$f || exit; done; echo changed", strings.Join(t.image.changed, " "), id)
	result, err := t.store.Run(ctx, id, img, script)
	if err == nil && result != (harness.Result{Output: "changed\n"}) {
		err = fmt.Errorf("the container ended with %d: %s", result.Code, result.Output)
	}
	return err
}

// diff writes the changes of a container to the content store, where they are kept until this returns.
func (t *turn) diff(id string) (err error) {
	ctx, done, err := t.store.WithLease(t.store.Context(t.ctx))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()
	var layer ocispec.Descriptor
	if err := t.timed(ctx, opContainerDiff, func(ctx context.Context) error {
		layer, err = rootfs.CreateDiff(ctx, id, t.store.Snapshots(), t.store.DiffService())
		return err
	}); err != nil || !t.check {
		return err
	}
	data, err := content.ReadBlob(ctx, t.store.ContentStore(), layer)
	if err != nil {
		return err
	}
	r, _, err := layertar.Decompress(bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer r.Close()
	diff, err := countDiff(r)
	if err == nil && diff.files != changedFiles {
		err = fmt.Errorf("the diff holds %d files, want %d", diff.files, changedFiles)
	}
	return err
}

// delete deletes an image and has containerd collect the image's own volumes. keep volumes stay.
func (t *turn) delete(ctx context.Context, img client.Image, keep int) error {
	if err := t.store.ImageService().Delete(ctx, img.Name(), images.SynchronousDelete()); err != nil {
		return err
	}
	return t.waitGone(ctx, keep)
}

// prune deletes an image that is the only one.
func (t *turn) prune(ctx context.Context, img client.Image) error {
	var start time.Time
	if err := t.timed(ctx, opPrune, func(ctx context.Context) error {
		start = time.Now()
		return t.delete(ctx, img, 0)
	}); err != nil {
		return err
	}
	if err := t.onRoot(waitCleaned); err != nil {
		return err
	}
	t.samples.add(opPruneFreed, time.Since(start))
	return nil
}

// collect has containerd collect garbage, such as the views that snapshots were compared with. So many volumes stay.
func (t *turn) collect(ctx context.Context, keep int) error {
	if err := t.store.CollectGarbage(ctx); err != nil {
		return err
	}
	return t.waitGone(ctx, keep)
}

// checkImage compares the image, which is the only one, with its source: the numbers of its files and layers.
func (t *turn) checkImage(ctx context.Context, img client.Image) error {
	err := t.store.ImageTree(ctx, img, func(dir string) error {
		files := 0
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(dir, path)
			if err == nil && d.Type().IsRegular() && counts(name) {
				files++
			}
			return err
		}); err != nil {
			return err
		}
		if files != t.image.files {
			return fmt.Errorf("the image has %d files, want %d", files, t.image.files)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := t.collect(ctx, t.image.layers); err != nil {
		return err
	}
	// Where there are none, they are looked for in the wrong place.
	if n, err := t.countVolumes(); err != nil || n != t.image.layers {
		return errors.Join(err, fmt.Errorf("the image of %d layers has %d volumes", t.image.layers, n))
	}
	return nil
}

// goneTimeout is how long collected volumes may take to go.
const goneTimeout = time.Minute

// waitGone waits until no volumes are there but so many.
func (t *turn) waitGone(ctx context.Context, keep int) error {
	ctx, cancel := context.WithTimeout(ctx, goneTimeout)
	defer cancel()
	for {
		n, err := t.countVolumes()
		if err != nil || n <= keep {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d volumes, want %d: %w", n, keep, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

func (t *turn) countVolumes() (n int, err error) {
	for _, dir := range t.volumes {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		n += len(entries)
	}
	return n, nil
}

// timed measures an operation until all that it did is on disk.
func (t *turn) timed(ctx context.Context, op operation, do func(ctx context.Context) error) error {
	if err := t.settle(); err != nil {
		return err
	}
	before, err := t.cpuTime()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := errors.Join(do(ctx), t.sync()); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	t.samples.add(op, time.Since(start))
	after, err := t.cpuTime()
	if err != nil {
		return err
	}
	t.cpu.add(op, after-before)
	return nil
}

// cpuTime is the daemons' use of processors so far.
func (e *engines) cpuTime() (sum time.Duration, err error) {
	for _, d := range e.daemons {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Pid()))
		if err != nil {
			return 0, err
		}
		used, err := cpuOf(string(stat))
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// tick is the unit of times in /proc.
const tick = time.Second / 100

// cpuOf reads the time of a process and its threads, of the user and in the kernel, from its stat file.
func cpuOf(stat string) (time.Duration, error) {
	const user, system = 11, 12 // fields, counted from behind the name, which may hold anything
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= system {
		return 0, fmt.Errorf("no times of the process in %q", stat)
	}
	var ticks int64
	for _, f := range []string{fields[user], fields[system]} {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("time of a process: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}
