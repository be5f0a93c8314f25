package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"golang.org/x/sys/unix"
)

// memory is the most memory that a contender has held while it applied or exported a base, in bytes.
type memory struct{ apply, export int64 }

// memoryCommand is the first argument of this program when it is run to measure memory.
const memoryCommand = "memory"

// measureMemory has another process apply the base, and one more export it: memory that was held once counts for
// the whole life of a process.
func (c config) measureMemory(name string, base *layer) (m memory, err error) {
	root := filepath.Join(c.root, name)
	if err := c.makeRoot(root); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.removeAll(root), c.settle()) }()
	for _, part := range []struct {
		op     string
		result *int64
	}{{"apply", &m.apply}, {"export", &m.export}} {
		if err := c.settle(); err != nil {
			return m, err
		}
		var stderr bytes.Buffer
		cmd := exec.Command("/proc/self/exe", memoryCommand, "-driver", c.filesystem, "-root", c.root, "-work", c.work,
			"-contender", name, "-layer", base.path, part.op)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return m, fmt.Errorf("%s: %w: %s", part.op, err, stderr.String())
		}
		if _, err := fmt.Sscan(string(out), part.result); err != nil {
			return m, fmt.Errorf("%s: %w", part.op, err)
		}
	}
	return m, nil
}

// runMemory is the other process. It prints the number of bytes.
func runMemory(args []string) (err error) {
	flags := flag.NewFlagSet(memoryCommand, flag.ContinueOnError)
	var c config
	flags.StringVar(&c.filesystem, "driver", "", "")
	flags.StringVar(&c.root, "root", "", "")
	flags.StringVar(&c.work, "work", "", "")
	name := flags.String("contender", "", "")
	path := flags.String("layer", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	silencePeers()
	c.only = []string{*name}
	driver, err := c.contenders()[0].open(filepath.Join(c.root, *name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, driver.close()) }()
	base := &layer{path: *path, formats: []layertar.Format{layertar.Plain}} // not mapped: that would count
	applying := flags.Arg(0) == "apply"
	if p, ok := driver.(interface{ prepare(*layer) error }); ok && applying {
		if err := p.prepare(base); err != nil {
			return err
		}
	}
	if err := resetPeak(); err != nil {
		return err
	}
	if applying {
		err = driver.apply(baseID, base, layertar.Plain)
	} else {
		err = driver.export(baseID, layertar.Plain)
	}
	if err != nil {
		return err
	}
	peak, err := peakMemory()
	if err != nil {
		return err
	}
	fmt.Println(peak)
	return nil
}

// resetPeak makes the high-water mark of this process that of now (proc(5), /proc/pid/clear_refs).
func resetPeak() error {
	debug.FreeOSMemory()
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// peakMemory returns the high-water mark of this process, or of a process that it has run if that is higher:
// some peers unpack in one.
func peakMemory() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	var kib int64
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscan(value, &kib); err != nil {
				return 0, err
			}
		}
	}
	var children unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &children); err != nil {
		return 0, err
	}
	return max(kib, children.Maxrss) << 10, nil
}
