package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// cowshedDir is where buildCowshed put its program, or empty.
var cowshedDir string

// buildCowshed builds the daemon of this tree, once for all tests of a process.
var buildCowshed = sync.OnceValues(func() (string, error) {
	top, err := sourceTop()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "cowshed-e2e-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "cowshed")
	cmd := exec.Command("go", "build", "-o", program, "./cmd/cowshed")
	cmd.Dir = top
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build cowshed: %w: %s", err, out), os.RemoveAll(dir))
	}
	cowshedDir = dir
	return program, nil
})

// RemoveCowshed deletes the program that StartCowshed built, if it did; for TestMain.
func RemoveCowshed() error {
	if cowshedDir == "" {
		return nil
	}
	return os.RemoveAll(cowshedDir)
}

// StartCowshed builds cowshed from this tree and runs it with the given arguments until the test ends. It is ready
// when it accepts connections on the unix socket.
func (h *Host) StartCowshed(socket string, args ...string) *Daemon {
	h.t.Helper()
	program, err := buildCowshed()
	if err != nil {
		h.t.Fatalf("harness: %v", err)
	}
	return h.Start(Spec{
		Name:    "cowshed",
		Program: program,
		Args:    args,
		Env:     []string{path(), "HOME=" + h.Dir, "TMPDIR=" + h.dir(h.Dir, "tmp")},
		Ready:   func(ctx context.Context) error { return accepts(ctx, socket) },
	})
}

// accepts tells whether a unix socket takes connections.
func accepts(ctx context.Context, socket string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return conn.Close()
}
