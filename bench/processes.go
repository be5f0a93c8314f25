package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"golang.org/x/sys/unix"
)

// Rows of the table of processes that are not timed on their own.
const (
	opCreateFirst operation = "create the first child of a base"
	opGetPut      operation = "mount a child and unmount it"
)

// counted is the order of the table of processes.
var counted = []operation{
	opStart, opApply, opCreateFirst, opCreate, opCreateLimit, opGetPut, opChanges, opDiff, opUsage, opExport, opRemove,
}

// The processes of ZFS's programs are counted by putting this program in the place of theirs: it notes that it was run
// and becomes the real one. Nothing is timed meanwhile.
const (
	countVariable = "COWSHED_BENCH_COUNT" // the file that gets a byte per process
	pathVariable  = "COWSHED_BENCH_PATH"  // PATH with the real programs
)

var countedPrograms = []string{"zfs", "zpool"}

// isCounter reports whether this program was started under the name of a counted program.
func isCounter(arg0 string) bool {
	name := filepath.Base(arg0)
	return os.Getenv(countVariable) != "" && (name == countedPrograms[0] || name == countedPrograms[1])
}

// countAndRun counts a process and becomes the program.
func countAndRun(args []string) error {
	f, err := os.OpenFile(os.Getenv(countVariable), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString("."); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Setenv("PATH", os.Getenv(pathVariable)); err != nil {
		return err
	}
	path, err := exec.LookPath(filepath.Base(args[0]))
	if err != nil {
		return err
	}
	return unix.Exec(path, args, os.Environ())
}

// processes are how many processes of ZFS's programs operations start, by contender.
type processes map[string]map[operation]int

// countProcesses takes every contender once through its operations.
func (c config) countProcesses() (counts processes, err error) {
	dir, err := os.MkdirTemp(c.work, "count")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	base, err := makeLayer(filepath.Join(dir, "layer.tar"), allFormats[:1], func(w io.Writer) error { return writeLayer(w, 10) })
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, base.remove()) }()
	restore, err := countIn(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()

	counts = make(processes)
	for _, o := range c.contenders() {
		if counts[o.name], err = c.countContender(o, base); err != nil {
			return nil, fmt.Errorf("count processes of %s: %w", o.name, err)
		}
	}
	return counts, nil
}

// countIn puts this program in the place of those that are counted, until restore.
func countIn(dir string) (restore func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, name := range countedPrograms {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	count := filepath.Join(dir, "count")
	if err := os.WriteFile(count, nil, 0o600); err != nil {
		return nil, err
	}
	path := os.Getenv("PATH")
	restore = func() error {
		return errors.Join(os.Setenv("PATH", path), os.Unsetenv(countVariable), os.Unsetenv(pathVariable))
	}
	return restore, errors.Join(os.Setenv(countVariable, count), os.Setenv(pathVariable, path),
		os.Setenv("PATH", dir+":"+path))
}

func (c config) countContender(o opener, base *layer) (counts map[operation]int, err error) {
	root := filepath.Join(c.root, o.name)
	if err := c.makeRoot(root); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.removeAll(root)) }()

	counts = make(map[operation]int)
	var driver contender
	defer func() {
		if driver != nil {
			err = errors.Join(err, driver.close())
		}
	}()
	for _, step := range []struct {
		op operation
		do func() error
	}{
		{opStart, func() (err error) { driver, err = o.open(root); return err }},
		{opApply, func() error { return driver.apply(baseID, base, layertar.Plain) }},
		{opCreateFirst, func() error { return driver.create(childID, baseID, 0) }},
		{opCreate, func() error { return driver.create("plain000", baseID, 0) }},
		{opCreateLimit, func() error { return driver.create("limit000", baseID, childLimit) }},
		{opGetPut, func() error {
			return driver.edit(childID, func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) })
		}},
		{opChanges, func() error { _, err := driver.changes(childID, baseID); return err }},
		{opDiff, func() error { _, err := driver.diff(childID, baseID); return err }},
		{opUsage, func() error { _, err := driver.usage(childID, baseID); return err }},
		{opExport, func() error { return driver.export(baseID, layertar.Plain) }},
		{opRemove, func() error { return driver.remove("plain000") }},
	} {
		if err := c.settle(); err != nil {
			return nil, err
		}
		before, err := countSoFar()
		if err != nil {
			return nil, err
		}
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.op, err)
		}
		after, err := countSoFar()
		if err != nil {
			return nil, err
		}
		counts[step.op] = after - before
	}
	return counts, nil
}

func countSoFar() (int, error) {
	info, err := os.Stat(os.Getenv(countVariable))
	if err != nil {
		return 0, err
	}
	return int(info.Size()), nil
}
