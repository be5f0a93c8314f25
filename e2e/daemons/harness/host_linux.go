package harness

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
)

// Host is the part of the machine that belongs to one test.
type Host struct {
	// Programs are those that its daemons run.
	Programs Programs
	// Dir has the daemons' sockets, states and logs. Its path is short, as that of a socket has to be.
	Dir string
	// Data is a directory on the filesystem under test, for the data of daemons.
	Data string
	// LogLevel is that of containerd and Cowshed when they are started: debug or info, with which containerd says that it has started.
	LogLevel string
	// Cgroup is the name of the cgroup that holds those of its containers.
	Cgroup string

	// DataMounts are the mount points below Data that the test has made and takes away itself.
	DataMounts []string

	t       testing.TB
	daemons []*Daemon
	// ownMounts are those that a daemon makes for itself and, because it was killed, may leave.
	ownMounts []string
}

// NewHost returns a host that keeps its data below data. When the test ends, it fails if something of the host's
// daemons is left; if it has failed, the end of each daemon's log is shown.
func NewHost(t testing.TB, data string) *Host {
	t.Helper()
	testfs.Root(t)
	h := &Host{Programs: FindPrograms(t), Data: data, LogLevel: "debug", t: t}
	id := strings.ToLower(rand.Text()[:8])
	h.Cgroup = "cowshed-e2e-" + id
	h.Dir = filepath.Join(os.TempDir(), "cs-"+id)
	if err := os.Mkdir(h.Dir, 0o755); err != nil {
		t.Fatalf("harness: %v", err)
	}
	t.Cleanup(func() {
		h.checkLeft()
		if t.Failed() {
			for _, d := range h.daemons {
				t.Logf("%s", d.tail())
			}
		}
		if err := os.RemoveAll(h.Dir); err != nil {
			t.Errorf("harness: %v", err)
		}
	})
	return h
}

// dir makes a directory below base and returns its path.
func (h *Host) dir(base string, elem ...string) string {
	h.t.Helper()
	dir := filepath.Join(append([]string{base}, elem...)...)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	return dir
}

// write makes a file in the host's directory and returns its path.
func (h *Host) write(name, content string) string {
	h.t.Helper()
	file := filepath.Join(h.Dir, name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	return file
}
