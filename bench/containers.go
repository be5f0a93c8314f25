package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// containersCommand is the first argument of this program when it measures containers: Cowshed in both root styles beside
// overlayfs. holdCommand is that of the program that the containers run.
const (
	containersCommand = "containers"
	holdCommand       = "hold"
)

// The operations on containers of one image.
const (
	opMount         operation = "create and mount"
	opRunChanges    operation = "list 3 changes of a running container"
	opRunDiff       operation = "diff of 3 changes of a running container"
	opPageCache     operation = "page cache of 20 containers that read the same 100 MB"
	opPSS           operation = "memory (PSS) of 20 containers that run the same program"
	opOnePSS        operation = "memory (PSS) of one such container"
	opFilePSS       operation = "memory of files (PSS) of 20 containers that run the same program"
	opOneFilePSS    operation = "memory of files (PSS) of one such container"
	opFirstStart    operation = "first start of a program, from an empty cache"
	opThirdStart    operation = "third start, in another container"
	opFirstWrite    operation = "first write to a file of 256 MiB"
	opSmallFiles    operation = "1,000 small files written"
	opRenameDir     operation = "rename of a directory by mv"
	opRemoveChanged operation = "remove a container with 1,000 files"
	opCommitFew     operation = "commit of 3 changes"
	opCommitMany    operation = "commit of 10,000 changes"
	opBareRenames   operation = "10,000 bare renames, and a commit"
)

// isSize reports whether samples of the operation are bytes.
func (op operation) isSize() bool {
	return slices.Contains([]operation{opPageCache, opPSS, opOnePSS, opFilePSS, opOneFilePSS}, op)
}

// format formats a sample.
func (op operation) format(d time.Duration) string {
	if op.isSize() {
		return mebibytes(int64(d))
	}
	return short(d)
}

// onExt4 is the contender that is not on the filesystem under test.
const onExt4 = "overlay2-ext4"

// Files of the image, besides small files.
const (
	sharedData = "data100"  // that all containers read
	largeData  = "large256" // that each writes to
	program    = "program"  // that all run: a copy of this one

	manyContainers = 20
	smallFiles     = 1000
	manyChanges    = 10_000
)

// containersWorkload is an image of n small files, and the files that containers use.
func containersWorkload(n int) workload {
	return workload{
		title: fmt.Sprintf("Containers of an image of %s files", thousands(n+3)), key: "containers", containers: true,
		write: func(w io.Writer) error { return writeContainersLayer(w, n) },
		steps: []step{
			{"apply", (*run).applyUntimed}, {"mount", (*run).createAndMount}, {"edit", (*run).edit},
			{"changes", (*run).changes}, {"diff", (*run).diff}, {"running", (*run).running}, {"usage", (*run).usage},
			{"share", (*run).share}, {"work", (*run).work}, {"commit", (*run).commits}, {"remove", (*run).remove},
		},
	}
}

func writeContainersLayer(w io.Writer, n int) error {
	tw := tar.NewWriter(w)
	if err := addFiles(tw, 0, n); err != nil {
		return err
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // it never fails
	for _, f := range []struct {
		name string
		data []byte
	}{{sharedData, bytes.Repeat(noise, 100)}, {largeData, bytes.Repeat(noise, 256)}, {program, self}} {
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: 0o755, Size: int64(len(f.data)), ModTime: time.Unix(layerTime, 0),
			Format: tar.FormatPAX,
		}
		if err := tw.WriteHeader(header); err != nil {
			return err
		}
		if _, err := tw.Write(f.data); err != nil {
			return err
		}
	}
	return tw.Close()
}

// createAndMount makes containers, and measures until the root of each is there.
func (r *run) createAndMount() error {
	for i := range childrenPerRound {
		id := fmt.Sprintf("plain%03d", i)
		if err := r.settle(); err != nil {
			return err
		}
		start := time.Now()
		err := r.driver.create(id, baseID, 0)
		if err == nil {
			err = r.driver.edit(id, func(string) error {
				r.samples.add(opMount, time.Since(start))
				return nil
			})
		}
		if err != nil {
			return err
		}
		r.children = append(r.children, id)
	}
	return nil
}

// running compares the changed child while it is mounted.
func (r *run) running() error {
	return r.driver.edit(childID, func(string) error {
		err := r.repeated(opRunChanges, func() error {
			_, err := r.driver.changes(childID, baseID)
			return err
		})
		if err != nil {
			return err
		}
		return r.timedDiff(opRunDiff, "")
	})
}

// share has containers of one image read the same file and run the same program.
func (r *run) share() error {
	var ids []string
	for i := range manyContainers {
		ids = append(ids, fmt.Sprintf("share%03d", i))
		if err := r.driver.create(ids[i], baseID, 0); err != nil {
			return err
		}
	}
	if err := r.mounted(ids, nil, r.measureShared); err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.driver.remove(id); err != nil {
			return err
		}
	}
	return nil
}

// mounted calls f with the roots of containers, besides those that are mounted already.
func (r *run) mounted(ids, dirs []string, f func(dirs []string) error) error {
	if len(ids) == 0 {
		return f(dirs)
	}
	return r.driver.edit(ids[0], func(dir string) error { return r.mounted(ids[1:], append(dirs, dir), f) })
}

func (r *run) measureShared(dirs []string) error {
	if err := r.dropCaches(); err != nil {
		return err
	}
	for i, dir := range dirs {
		start := time.Now()
		if err := exec.Command(filepath.Join(dir, program), holdCommand).Run(); err != nil { // it has no input to wait for
			return err
		}
		switch {
		case i == 0:
			r.samples.add(opFirstStart, time.Since(start))
		case i >= 2:
			r.samples.add(opThirdStart, time.Since(start))
		}
	}
	for _, held := range []struct {
		op, ofFiles operation
		dirs        []string
	}{{opOnePSS, opOneFilePSS, dirs[:1]}, {opPSS, opFilePSS, dirs}} {
		used, err := memoryOf(held.dirs)
		if err != nil {
			return err
		}
		r.samples.add(held.op, time.Duration(used.all))
		r.samples.add(held.ofFiles, time.Duration(used.files))
	}
	if err := r.dropCaches(); err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := read(filepath.Join(dir, sharedData)); err != nil {
			return err
		}
	}
	cached := int64(0)
	for _, dir := range dirs {
		n, err := dropCached(filepath.Join(dir, sharedData))
		if err != nil {
			return err
		}
		cached += n
	}
	r.samples.add(opPageCache, time.Duration(cached))
	return nil
}

func read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(io.Discard, f)
	return err
}

// dropCached takes a file out of the page cache, and returns the number of bytes that were in it. Files that share their
// pages are counted once, since the first of them takes the pages of all away.
func dropCached(path string) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	page := os.Getpagesize()
	resident := make([]byte, (len(data)+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		return 0, errors.Join(errno, unix.Munmap(data))
	}
	if err := unix.Munmap(data); err != nil {
		return 0, err
	}
	for _, b := range resident {
		n += int64(b&1) * int64(page)
	}
	return n, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// dropCaches empties the caches of the machine.
func (r *run) dropCaches() error {
	if err := r.settle(); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// pss is a proportional set size in bytes, and that part of it that files have.
type pss struct{ all, files int64 }

// memoryOf is the proportional set size of all the programs together, of which each container runs one.
func memoryOf(dirs []string) (total pss, err error) {
	var programs []*exec.Cmd
	var inputs []io.Closer
	defer func() {
		for _, in := range inputs {
			err = errors.Join(err, in.Close()) // so that the program ends
		}
		for _, cmd := range programs {
			err = errors.Join(err, cmd.Wait())
		}
	}()
	for _, dir := range dirs {
		cmd := exec.Command(filepath.Join(dir, program), holdCommand)
		in, err := cmd.StdinPipe()
		if err != nil {
			return total, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return total, err
		}
		if err := cmd.Start(); err != nil {
			return total, err
		}
		programs, inputs = append(programs, cmd), append(inputs, in)
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			return total, fmt.Errorf("%s: %w", dir, err)
		}
	}
	for _, cmd := range programs {
		used, err := pssOf(cmd.Process.Pid)
		if err != nil {
			return total, err
		}
		total.all += used.all
		total.files += used.files
	}
	return total, nil
}

func pssOf(pid int) (used pss, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return used, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		sizes := map[string]*int64{"Pss": &used.all, "Pss_File": &used.files}
		if size := sizes[key]; size != nil {
			if _, err := fmt.Sscan(value, size); err != nil {
				return used, err
			}
			*size <<= 10
		}
	}
	if used.all == 0 || used.files == 0 {
		return used, fmt.Errorf("process %d has no Pss", pid)
	}
	return used, nil
}

// hold is the program in a container: it reads all of itself, as a program does with its libraries, and waits for the end of
// its input.
func hold() error {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// work has a container write.
func (r *run) work() error {
	for i := range 3 {
		id := fmt.Sprintf("work%d", i)
		if err := r.driver.create(id, baseID, 0); err != nil {
			return err
		}
		err := r.driver.edit(id, func(dir string) error {
			return errors.Join(
				r.timed(opFirstWrite, func() error { return overwriteFirst(filepath.Join(dir, largeData)) }),
				r.timed(opSmallFiles, func() error { return writeSmall(filepath.Join(dir, "small")) }),
				r.timed(opRenameDir, func() error {
					// rename(2) of a directory of the image is EXDEV on overlayfs.
					return exec.Command("mv", filepath.Join(dir, "usr00/share000"), filepath.Join(dir, "moved")).Run()
				}))
		})
		if err == nil {
			err = r.timed(opRemoveChanged, func() error { return r.driver.remove(id) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// committer is a contender whose writable layers become layers that others are made from.
type committer interface {
	commit(name, id string) error
}

// commits makes layers of containers with few changes and with many. The changes are on disk by then.
func (r *run) commits() error {
	driver, ok := r.driver.(committer)
	if !ok {
		return nil
	}
	among := r.amongPaths()
	for i := range 3 {
		few, many := fmt.Sprintf("few%d", i), fmt.Sprintf("many%d", i)
		if err := r.driver.create(few, baseID, 0); err != nil {
			return err
		}
		if err := r.change(few); err != nil {
			return err
		}
		if err := r.committed(driver, few, opCommitFew, nil); err != nil {
			return err
		}
		if err := r.driver.create(many, baseID, 0); err != nil {
			return err
		}
		if err := r.driver.edit(many, func(dir string) error { return writeMany(dir, among) }); err != nil {
			return err
		}
		if err := r.committed(driver, many, opCommitMany, nil); err != nil {
			return err
		}
		if err := r.bareRenames(driver, among); err != nil {
			return err
		}
	}
	return nil
}

// committed measures a commit of a layer, after something else, and removes the result.
func (r *run) committed(driver committer, id string, op operation, before func() error) error {
	err := r.timed(op, func() error {
		if before != nil {
			if err := before(); err != nil {
				return err
			}
		}
		return driver.commit(committedPrefix+id, id)
	})
	if err != nil {
		return err
	}
	if _, renames := r.driver.(*cowshed); renames {
		return r.driver.remove(id)
	}
	return r.driver.remove(committedPrefix + id)
}

const committedPrefix = "committed-"

// bareRenames measures the least time of a commit of many changes in a shared root, by a volume of the root style snapshot.
func (r *run) bareRenames(driver committer, to func(dir string, i int) string) error {
	own, ok := r.driver.(*cowshed)
	if !ok {
		return nil
	}
	const id = "renames"
	if err := r.driver.create(id, baseID, 0); err != nil {
		return err
	}
	dir, err := own.driver.Get(id, "")
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	err = unix.Statfs(dir, &fs)
	if err == nil && fs.Type != unix.OVERLAYFS_SUPER_MAGIC {
		err = writeMany(dir, apartPath)
	}
	if err := errors.Join(err, own.driver.Put(id)); err != nil {
		return err
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return r.driver.remove(id)
	}
	return r.committed(driver, id, opBareRenames, func() error { return renameMany(dir, to) })
}

// amongPaths returns the function for the path of one of many files, in directories of the image.
func (r *run) amongPaths() func(dir string, i int) string {
	in := r.base.someFiles(100)
	return func(dir string, i int) string {
		return filepath.Join(dir, filepath.Dir(in[i%len(in)]), fmt.Sprint("new", i))
	}
}

// apartPath is the path of one of many files, in directories of a hundred.
func apartPath(dir string, i int) string {
	return filepath.Join(dir, "apart", fmt.Sprint(i/100), fmt.Sprint(i))
}

// writeMany writes many files at paths in dir.
func writeMany(dir string, path func(dir string, i int) string) error {
	for i := range manyChanges {
		file := path(dir, i)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte("new"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func renameMany(dir string, to func(dir string, i int) string) error {
	for i := range manyChanges {
		if err := os.Rename(apartPath(dir, i), to(dir, i)); err != nil {
			return err
		}
	}
	return nil
}

func overwriteFirst(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("x")
	return errors.Join(err, f.Close())
}

func writeSmall(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for i := range smallFiles {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, meanFileSize), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func runContainers(args []string, out io.Writer) error {
	flags := flag.NewFlagSet(containersCommand, flag.ContinueOnError)
	c := config{filesystem: "btrfs", log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	flags.StringVar(&c.root, "root", "", "empty `directory` on the btrfs to measure on")
	flags.StringVar(&c.ext4, "ext4", "", "empty `directory` on an ext4, for moby's overlay2; default is to leave it out")
	flags.StringVar(&c.work, "work", os.TempDir(), "`directory` on another filesystem for the tars")
	flags.IntVar(&c.rounds, "rounds", minRounds, "how often everything is measured")
	flags.DurationVar(&c.repeat, "repeat", time.Second, "repeat cheap operations for so long in each round")
	files := flags.Int("files", 50_000, "number of small files of the image")
	only := flags.String("only", "", "names of contenders, comma separated; default all")
	output := flags.String("o", "", "write the report to this Markdown `file`, and keep its other parts; default is to print it only")
	image := flags.String("image", "a loopback image", "the device of the filesystem, as the report names it")
	revision := flags.String("revision", "unknown", "the measured revision, as the report names it")
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
	r := &report{
		filesystem: c.filesystem, quota: "quotas off", image: *image, revision: *revision, rounds: c.rounds,
		date: time.Now().UTC().Format(time.DateOnly), machine: describeMachine(),
	}
	var err error
	if r.loadBefore, err = loadAverage(); err != nil {
		return err
	}
	result, err := c.measure(containersWorkload(*files))
	if err != nil {
		return err
	}
	if r.loadAfter, err = loadAverage(); err != nil {
		return err
	}
	r.results = append(r.results, result)
	if *output != "" {
		if err := updateDocument(*output, documentTitle(c.filesystem), containersPart, r.writeContainers); err != nil {
			return err
		}
	}
	r.writeContainers(out)
	return nil
}
