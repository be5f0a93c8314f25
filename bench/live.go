package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

// liveCommand is the first argument of this program when it measures live layers: forks, snapshots, rollbacks, merges, promotions
// and streams, beside the bare calls of the kernel and the commands that people use instead.
const liveCommand = "live"

// The operations on live layers.
const (
	opFork         operation = "fork of a running layer"
	opForkHundred  operation = "100 forks by one call"
	opForkFew      operation = "fork beside 10 forks"
	opForkMany     operation = "fork beside many forks"
	opMoment       operation = "snapshot"
	opRollback     operation = "rollback of a stopped layer, 3 changes"
	opRollbackLive operation = "rollback --live, 3 changes"
	opMerge        operation = "merge, 3 changes"
	opMergeLive    operation = "merge --live, 3 changes"
	opPromote      operation = "promote 3 changes to an OCI layout"
	opAdoptCopy    operation = "adopt a git work tree of 20,000 files, by reflink"
	opAdopt        operation = "adopt it, as a subvolume"
	opSend         operation = "incremental send of 3 changes"
	opOpenFew      operation = "open a store with 10 forks"
	opOpenMany     operation = "open a store with 1,000 forks"
)

// Columns of the report.
const (
	ofCowshed  = "cowshed"
	ofKernel   = "bare calls"
	ofReflink  = "cp -a --reflink"
	ofWorktree = "git worktree add"
	ofUpper    = "copy of overlayfs's upper"
	ofDocker   = "docker commit, overlay2"
)

const (
	liveForks     = 10_000 // that exist in the end
	fewForks      = 10
	idleForks     = 1_000
	liveRepeats   = 20 // in each round
	slowRepeats   = 3  // of operations that take seconds
	workTreeFiles = 20_000
	kept          = "kept" // the snapshot to which layers are rolled back
)

// liveRun measures layers made from an image of so many files.
type liveRun struct {
	config
	files   int
	all     bool // all operations, not forks alone
	forks   int  // that exist in the end
	samples map[string]samples
	base    *layer
	image   string // the image's volume
	sent    int64  // bytes of an increment
	bare    int64  // bytes of the filesystem's own
	heap    int64  // bytes of each fork that is not used
	store   *layerstore.Store
}

// took adds the time of do to a column.
func (l *liveRun) took(column string, op operation, do func() error) error {
	if err := l.settle(); err != nil {
		return err
	}
	start := time.Now()
	err := do()
	if err != nil {
		return fmt.Errorf("%s, %s: %w", column, op, err)
	}
	if l.samples[column] == nil {
		l.samples[column] = make(samples)
	}
	l.samples[column].add(op, time.Since(start))
	return nil
}

func (l *liveRun) open(ctx context.Context) (err error) {
	l.store, err = layerstore.Open(ctx, layerstore.Options{Root: filepath.Join(l.root, "store"), Driver: l.filesystem, Log: l.log})
	return err
}

// prepare imports the image and makes the layer web from it.
func (l *liveRun) prepare(ctx context.Context) (err error) {
	if l.base, err = makeLayer(filepath.Join(l.work, "base.tar"), allFormats[:1], func(w io.Writer) error { return writeLayer(w, l.files) }); err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(l.root, "store"), 0o700), os.MkdirAll(l.path("bare"), 0o700), l.open(ctx)); err != nil {
		return err
	}
	source, err := image.Open(ctx, image.Reference{Transport: image.RootFS, Path: l.base.file(layertar.Plain)}, image.OpenOptions{})
	if err != nil {
		return err
	}
	imported, err := l.store.Images.Import(ctx, source, image.ImportOptions{Name: "base"})
	if err := errors.Join(err, source.Close()); err != nil {
		return err
	}
	l.image = imported.Image.Top()
	return l.store.Driver.CreateReadWrite("web", l.image, nil)
}

func (l *liveRun) path(name string) string { return filepath.Join(l.root, name) }

// measureAll takes the samples of one size.
func (l *liveRun) measureAll(ctx context.Context) (err error) {
	if err := l.prepare(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.store.Driver.Cleanup(), l.base.remove()) }()
	steps := []func(ctx context.Context) error{l.whileWritten}
	if l.all {
		steps = append(steps, l.changed, l.promote, l.send, l.directories, l.commit, l.beside)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// whileWritten measures forks and snapshots of the layer while a program writes to it.
func (l *liveRun) whileWritten(ctx context.Context) (err error) {
	dir, err := l.store.Driver.Get("web", "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.store.Driver.Put("web")) }()
	ctx, cancel := context.WithCancel(ctx)
	written := make(chan error, 1)
	go func() { written <- keepWriting(ctx, filepath.Join(dir, "written")) }()
	defer func() { err = errors.Join(err, <-written) }()
	defer cancel()
	for range liveRepeats * l.rounds {
		if err := errors.Join(l.fork(ctx, opFork), l.moment(ctx)); err != nil {
			return err
		}
	}
	for range slowRepeats * l.rounds {
		if err := l.hundredForks(ctx); err != nil {
			return err
		}
	}
	return nil
}

// keepWriting changes a file a thousand times a second at most, until ctx ends.
func keepWriting(ctx context.Context, file string) error {
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Millisecond):
		}
		if err := os.WriteFile(file, []byte(fmt.Sprint(i)), 0o644); err != nil {
			return err
		}
	}
}

// fork measures one fork, and the bare snapshot of the same layer.
func (l *liveRun) fork(ctx context.Context, op operation) error {
	err := l.snapshots(op, 1, false)
	if err == nil {
		err = l.took(ofCowshed, op, func() error { return l.forkAs(ctx, "fork") })
	}
	return errors.Join(err, l.forget(ctx, "fork"))
}

func (l *liveRun) forkAs(ctx context.Context, names ...string) error {
	_, err := l.store.Live.Fork(ctx, "web", names, live.ForkOptions{})
	return err
}

// forget removes forks, and their moments.
func (l *liveRun) forget(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := l.store.Driver.Remove(name); err != nil {
			return err
		}
	}
	return l.store.Live.Sweep(ctx)
}

func (l *liveRun) hundredForks(ctx context.Context) error {
	names := make([]string, hundred)
	for i := range names {
		names[i] = fmt.Sprintf("fork-%d", i)
	}
	err := l.snapshots(opForkHundred, hundred, false)
	if err == nil {
		err = l.took(ofCowshed, opForkHundred, func() error { return l.forkAs(ctx, names...) })
	}
	return errors.Join(err, l.forget(ctx, names...))
}

// snapshots measures n bare snapshots of the layer.
func (l *liveRun) snapshots(op operation, n int, readOnly bool) error {
	err := onDir(l.volume("web"), func(source int) error {
		return onDir(l.path("bare"), func(dir int) error {
			return l.took(ofKernel, op, func() error {
				for i := range n {
					if err := btrfsctl.Snapshot(dir, fmt.Sprint(i), source, readOnly, nil); err != nil {
						return err
					}
				}
				return nil
			})
		})
	})
	for i := range n {
		err = errors.Join(err, destroy(filepath.Join(l.path("bare"), fmt.Sprint(i))))
	}
	return err
}

func (l *liveRun) volume(name string) string {
	return filepath.Join(l.store.Home(), "subvolumes", name)
}

func (l *liveRun) moment(ctx context.Context) error {
	if err := l.snapshots(opMoment, 1, true); err != nil {
		return err
	}
	err := l.took(ofCowshed, opMoment, func() error {
		_, err := l.store.Live.Snapshot(ctx, "web", "new", live.SnapshotOptions{})
		return err
	})
	return errors.Join(err, l.store.Live.RemoveSnapshot(ctx, "web", "new"))
}

// change writes three files of a layer.
func (l *liveRun) change(name string) error {
	dir, err := l.store.Driver.Get(name, "")
	if err != nil {
		return err
	}
	return errors.Join(l.overwrite(dir), l.store.Driver.Put(name))
}

func (l *liveRun) overwrite(dir string) error {
	for _, file := range l.base.someFiles(changedFiles) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(time.Now().String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// changed measures rollbacks and merges.
func (l *liveRun) changed(ctx context.Context) error {
	if _, err := l.store.Live.Snapshot(ctx, "web", kept, live.SnapshotOptions{}); err != nil {
		return err
	}
	for range liveRepeats * l.rounds {
		err := errors.Join(
			l.exchange(),
			l.rollback(ctx, opRollback, live.RollbackOptions{}), l.rollback(ctx, opRollbackLive, live.RollbackOptions{Live: true}),
			l.merge(ctx, opMerge, live.MergeOptions{}), l.merge(ctx, opMergeLive, live.MergeOptions{Live: true}))
		if err != nil {
			return err
		}
	}
	return l.forgetSnapshots(ctx)
}

// exchange measures the calls of which a rollback consists: a snapshot that takes the name of another, durably.
func (l *liveRun) exchange() error {
	err := onDir(l.volume("web"), func(source int) error {
		return onDir(l.path("bare"), func(dir int) error {
			if err := btrfsctl.Snapshot(dir, "old", source, false, nil); err != nil {
				return err
			}
			return l.took(ofKernel, opRollback, func() error {
				if err := btrfsctl.Snapshot(dir, "new", source, false, nil); err != nil {
					return err
				}
				if err := unix.Renameat2(dir, "old", dir, "new", unix.RENAME_EXCHANGE); err != nil {
					return err
				}
				return btrfsctl.Commit(dir)
			})
		})
	})
	return errors.Join(err, destroy(filepath.Join(l.path("bare"), "old")), destroy(filepath.Join(l.path("bare"), "new")))
}

func (l *liveRun) rollback(ctx context.Context, op operation, opts live.RollbackOptions) error {
	if err := l.change("web"); err != nil {
		return err
	}
	return l.took(ofCowshed, op, func() error {
		_, err := l.store.Live.Rollback(ctx, "web", kept, opts)
		return err
	})
}

func (l *liveRun) merge(ctx context.Context, op operation, opts live.MergeOptions) error {
	if err := errors.Join(l.forkAs(ctx, "fork"), l.change("fork")); err != nil {
		return err
	}
	err := l.took(ofCowshed, op, func() error {
		_, err := l.store.Live.Merge(ctx, "fork", opts)
		return err
	})
	return errors.Join(err, l.forget(ctx, "fork"))
}

func (l *liveRun) forgetSnapshots(ctx context.Context) error {
	moments, err := l.store.Live.Snapshots(ctx, "web")
	for _, m := range moments {
		err = errors.Join(err, l.store.Live.RemoveSnapshot(ctx, "web", m.Name))
	}
	return errors.Join(err, l.store.Live.Sweep(ctx))
}

// promote measures how the changes of the layer become a layer of an image in a layout that has the rest.
func (l *liveRun) promote(ctx context.Context) error {
	layout, err := image.ParseDestination("oci:" + filepath.Join(l.work, "layout") + ":base")
	if err != nil {
		return err
	}
	opts := image.ExportOptions{Format: layertar.Gzip}
	if _, err := l.store.Images.Export(ctx, "base", layout, opts); err != nil {
		return err
	}
	for i := range liveRepeats * l.rounds {
		layout.Image = fmt.Sprint("web", i)
		if err := l.change("web"); err != nil {
			return err
		}
		err := l.took(ofCowshed, opPromote, func() error {
			still, err := l.store.Live.Still(ctx, "web")
			if err != nil {
				return err
			}
			_, err = l.store.Images.ExportPromotion(ctx, image.Promotion{Volume: still.Volume, Name: "web", Created: still.Time}, layout, opts)
			return errors.Join(err, still.Close())
		})
		if err != nil {
			return err
		}
	}
	return os.RemoveAll(filepath.Join(l.work, "layout"))
}

// counter counts the bytes of a stream.
type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// send measures a stream from one snapshot to the next, and the filesystem's own.
func (l *liveRun) send(ctx context.Context) error {
	var volumes []string
	for _, name := range []string{"one", "two"} {
		if err := l.change("web"); err != nil {
			return err
		}
		m, err := l.store.Live.Snapshot(ctx, "web", name, live.SnapshotOptions{})
		if err != nil {
			return err
		}
		volumes = append(volumes, m.Volume)
	}
	for range liveRepeats * l.rounds {
		var own, bare counter
		err := errors.Join(
			l.took(ofCowshed, opSend, func() error {
				_, err := l.store.Live.Send(ctx, &own, volumes[1], live.SendOptions{From: volumes[0]})
				return err
			}),
			l.took(ofKernel, opSend, func() error { return l.sendBare(&bare, volumes[1], volumes[0]) }))
		if err != nil {
			return err
		}
		l.sent, l.bare = int64(own), int64(bare)
	}
	return l.forgetSnapshots(ctx)
}

// sendBare writes the filesystem's own stream.
func (l *liveRun) sendBare(w io.Writer, volume, from string) error {
	r, out, err := os.Pipe()
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, r)
		copied <- errors.Join(err, r.Close())
	}()
	err = onDir(l.volume(from), func(from int) error {
		info, err := btrfsctl.Info(from)
		if err != nil {
			return err
		}
		return onDir(l.volume(volume), func(fd int) error { return btrfsctl.Send(fd, int(out.Fd()), info.ID, 0, 0) })
	})
	return errors.Join(err, out.Close(), <-copied)
}

// directories measures the adoption of a git work tree, beside the commands that copy one.
func (l *liveRun) directories(ctx context.Context) error {
	tree, copied := l.path("tree"), l.path("copied")
	if err := l.makeWorkTree(tree); err != nil {
		return err
	}
	for i := range slowRepeats * l.rounds {
		adopted := fmt.Sprintf("adopted-%d", i)
		subvolume := l.path("subvolume")
		err := errors.Join(
			l.took(ofCowshed, opAdoptCopy, func() error {
				_, err := l.store.Live.Adopt(ctx, adopted, tree, cowcommon.VolumeOptions{})
				return err
			}),
			l.forget(ctx, adopted),
			l.command(ofReflink, opAdoptCopy, "", "cp", "-a", "--reflink=always", tree, copied), os.RemoveAll(copied),
			l.command(ofWorktree, opAdoptCopy, tree, "git", "worktree", "add", "-q", "--detach", copied),
			runProgram(tree, "git", "worktree", "remove", "--force", copied),
			onDir(l.root, func(dir int) error { return btrfsctl.CreateSubvolume(dir, "subvolume", nil) }),
			runProgram("", "cp", "-a", "--reflink=always", tree+"/.", subvolume),
			l.took(ofCowshed, opAdopt, func() error {
				_, err := l.store.Live.Adopt(ctx, adopted, subvolume, cowcommon.VolumeOptions{})
				return err
			}),
			l.forget(ctx, adopted), destroy(subvolume), l.copyUpper())
		if err != nil {
			return err
		}
	}
	return l.copyAll()
}

// makeWorkTree makes a git work tree of the first files of a layer.
func (l *liveRun) makeWorkTree(tree string) error {
	tar := filepath.Join(l.work, "tree.tar")
	f, err := os.Create(tar)
	if err != nil {
		return err
	}
	err = errors.Join(writeLayer(f, min(workTreeFiles, l.files)), f.Close(), os.Mkdir(tree, 0o755),
		runProgram("", "tar", "-xf", tar, "-C", tree), os.Remove(tar))
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=bench", "-c", "user.email=bench@example.org", "commit", "-q", "-m", "all"}} {
		if err == nil {
			err = runProgram(tree, "git", args...)
		}
	}
	return err
}

// copyAll measures a copy of the layer by reflinks, which is a fork for whom has no snapshots.
func (l *liveRun) copyAll() error {
	copied := l.path("copied")
	for range slowRepeats {
		if err := errors.Join(l.command(ofReflink, opFork, "", "cp", "-a", "--reflink=always", l.volume("web"), copied), os.RemoveAll(copied)); err != nil {
			return err
		}
	}
	return nil
}

// copyUpper measures a fork on overlayfs: a copy of the upper directory, and a mount.
func (l *liveRun) copyUpper() (err error) {
	dir := l.path("overlay")
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	for _, file := range l.base.someFiles(changedFiles) {
		file = filepath.Join(dir, "upper", file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("changed"), 0o644)); err != nil {
			return err
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/copied,workdir=%s/work", l.volume(l.image), dir, dir)
	return errors.Join(l.took(ofUpper, opFork, func() error {
		return errors.Join(runProgram("", "cp", "-a", "--reflink=always", dir+"/upper", dir+"/copied"), unix.Mount("overlay", merged, "overlay", 0, options))
	}), unix.Unmount(merged, 0))
}

// command measures a command.
func (l *liveRun) command(column string, op operation, dir, name string, args ...string) error {
	return l.took(column, op, func() error { return runProgram(dir, name, args...) })
}

func runProgram(dir, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, text)
	}
	return nil
}

// commit measures the steps of docker commit with overlay2: the tar of the changes, and a layer made of it.
func (l *liveRun) commit(context.Context) error {
	root := l.path("overlay2")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	opened, err := newMoby("overlay2", root)
	if err != nil {
		return err
	}
	docker, ok := opened.(*moby)
	if !ok {
		return errNotOffered
	}
	err = docker.apply("base", l.base, layertar.Plain)
	for i := range slowRepeats * l.rounds {
		if err != nil {
			break
		}
		container, committed := fmt.Sprintf("container-%d", i), fmt.Sprintf("committed-%d", i)
		err = errors.Join(docker.create(container, "base", 0), docker.edit(container, l.overwrite))
		if err == nil {
			err = l.took(ofDocker, opPromote, func() error { return docker.commit(container, "base", committed) })
		}
	}
	return errors.Join(err, docker.close())
}

// commit makes a layer of the changes of another.
func (m *moby) commit(id, parent, committed string) error {
	tar, err := m.driver.Diff(id, parent)
	if err != nil {
		return err
	}
	err = m.driver.Create(committed, parent, nil)
	if err == nil {
		_, err = m.driver.ApplyDiff(committed, parent, tar)
	}
	return errors.Join(err, tar.Close())
}

// beside measures forks, and the opening of the store, beside few and many forks that nobody uses.
func (l *liveRun) beside(ctx context.Context) error {
	before, made := int64(0), 0
	for _, c := range []struct {
		forks      int
		fork, open operation
	}{{fewForks, opForkFew, opOpenFew}, {idleForks, "", opOpenMany}, {l.forks, opForkMany, ""}} {
		if err := l.forkUpTo(ctx, &made, c.forks); err != nil {
			return err
		}
		if c.open != "" {
			held, err := l.reopen(ctx, c.open)
			if err != nil {
				return err
			}
			l.heap, before = (held-before)/int64(c.forks), held
		}
		for range liveRepeats * l.rounds {
			if c.fork == "" {
				break
			}
			if err := l.fork(ctx, c.fork); err != nil {
				return err
			}
		}
	}
	return nil
}

// forkUpTo makes forks until there are n.
func (l *liveRun) forkUpTo(ctx context.Context, made *int, n int) error {
	for *made < n {
		var names []string
		for len(names) < hundred && *made < n {
			names = append(names, fmt.Sprintf("idle-%d", *made))
			*made++
		}
		if err := l.forkAs(ctx, names...); err != nil {
			return err
		}
	}
	return nil
}

// reopen measures the opening of the store, and returns the bytes of this process that are in use afterwards.
func (l *liveRun) reopen(ctx context.Context, op operation) (held int64, err error) {
	for range liveRepeats {
		if err := l.store.Driver.Cleanup(); err != nil {
			return 0, err
		}
		if err := l.took(ofCowshed, op, func() error { return l.open(ctx) }); err != nil {
			return 0, err
		}
	}
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc), nil
}

func runLive(args []string, out io.Writer) error {
	flags := flag.NewFlagSet(liveCommand, flag.ContinueOnError)
	c := config{filesystem: "btrfs", log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flags.StringVar(&c.root, "root", "", "empty `directory` on the btrfs to measure on")
	flags.StringVar(&c.work, "work", os.TempDir(), "`directory` on another filesystem for the tars")
	flags.IntVar(&c.rounds, "rounds", minRounds, "how often everything is measured")
	files := flags.Int("files", 50_000, "number of files of the image")
	large := flags.Int("large", 500_000, "number of files of a larger image, of which forks alone are measured; 0: none")
	forks := flags.Int("forks", liveForks, "number of forks that exist in the end")
	output := flags.String("o", "", "write the report to this Markdown `file`, and keep its other parts; default is to print it only")
	filesystem := flags.String("image", "a loopback image", "the device of the filesystem, as the report names it")
	revision := flags.String("revision", "unknown", "the measured revision, as the report names it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := c.check(flags, *output, minRounds); err != nil {
		return err
	}
	silencePeers()
	c.log = slog.New(slog.DiscardHandler)
	r := &report{
		filesystem: c.filesystem, quota: "quotas off", image: *filesystem, revision: *revision, rounds: c.rounds,
		date: time.Now().UTC().Format(time.DateOnly), machine: describeMachine(),
	}
	var err error
	if r.loadBefore, err = loadAverage(); err != nil {
		return err
	}
	var runs []*liveRun
	root := c.root
	for _, size := range []int{*files, *large} {
		if size == 0 {
			continue
		}
		l := &liveRun{config: c, files: size, all: size == *files, forks: *forks, samples: make(map[string]samples)}
		if l.root, err = os.MkdirTemp(root, "live-"); err != nil {
			return err
		}
		if err := l.measureAll(context.Background()); err != nil {
			return err
		}
		runs = append(runs, l)
	}
	if r.loadAfter, err = loadAverage(); err != nil {
		return err
	}
	write := func(w io.Writer) { r.writeLive(w, runs) }
	if *output != "" {
		if err := updateDocument(*output, documentTitle(c.filesystem), livePart, write); err != nil {
			return err
		}
	}
	write(out)
	return nil
}
