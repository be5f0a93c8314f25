package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cost is the memory of this process and the space that its filesystem has in use, in bytes.
type cost struct {
	rss, pss uint64
	disk     int64
}

// measure measures the cost, with everything written that is to be written.
func measure(dir string) (c cost, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return c, err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return c, err
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &stat); err != nil {
		return c, err
	}
	c.disk = int64(stat.Blocks-stat.Bfree) * stat.Bsize
	memory, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		return c, err
	}
	for line := range strings.Lines(string(memory)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 64)
		switch {
		case fields[0] == "Rss:" && err == nil:
			c.rss = kib << 10
		case fields[0] == "Pss:" && err == nil:
			c.pss = kib << 10
		}
	}
	return c, nil
}

// printCosts prints the memory of this process, and the space of each fork: when it is made, and after its command.
func (s *sandbox) printCosts(before, forked, after cost) {
	each := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(s.forks) }
	fmt.Fprintf(s.out, "memory  RSS %.1f MiB, PSS %.1f MiB; the forks took %.1f KiB each\n",
		float64(after.rss)/(1<<20), float64(after.pss)/(1<<20), each(int64(forked.pss)-int64(before.pss)))
	fmt.Fprintf(s.out, "disk    %.1f KiB per fork when it is made, %.1f KiB after its command\n",
		each(forked.disk-before.disk), each(after.disk-before.disk))
}
