package rootuse

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mounttable"
)

// maxCommandLine is the most bytes of a command line that are looked at.
const maxCommandLine = 1 << 20

// Process returns fault.ErrInUse if a process runs whose name, of at most 15 bytes, is that, and one of whose arguments
// matches.
func Process(name string, matches func(argument string) bool) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "comm"))
		if err != nil || strings.TrimSuffix(string(comm), "\n") != name {
			continue // it has ended, or is another program
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		for argument := range bytes.SplitSeq(line[:min(len(line), maxCommandLine)], []byte{0}) {
			if matches(string(argument)) {
				return fault.New(fault.ErrInUse, "%s works on it (%s)", mounttable.DescribeProcess(pid), argument)
			}
		}
	}
	return nil
}
