package snapshotter

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// killEnv makes the test binary a process that works on the snapshotter in that directory until it is killed.
const killEnv = "COWSHED_TEST_SNAPSHOTTER_WORK"

// applyEnv makes the test binary a process that applies layers, as JSON of applyWork says, until it is killed.
const applyEnv = "COWSHED_TEST_SNAPSHOTTER_APPLY"

func TestMain(m *testing.M) {
	if mnt := os.Getenv(killEnv); mnt != "" {
		fmt.Fprintln(os.Stderr, workUntilKilled(mnt))
		os.Exit(1)
	}
	if work := os.Getenv(applyEnv); work != "" {
		fmt.Fprintln(os.Stderr, applyUntilKilled(work))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// openAt opens the snapshotter whose files are below a directory.
func openAt(ctx context.Context, mnt string) (*Snapshotter, error) {
	backend, err := btrfs.Open(ctx, filepath.Join(mnt, "volumes"), btrfs.Options{})
	if err != nil {
		return nil, err
	}
	return New(ctx, filepath.Join(mnt, "snapshotter"), backend, Options{})
}

// workUntilKilled runs the life of one container after another, for several clients, and writes a line to the
// standard output for each step.
func workUntilKilled(mnt string) error {
	ctx := context.Background()
	s, err := openAt(ctx, mnt)
	if err != nil {
		return err
	}
	errs := make(chan error)
	for client := range 8 {
		go func() { errs <- workAs(s, fmt.Sprintf("%d-%d", os.Getpid(), client)) }()
	}
	return <-errs
}

func workAs(s *Snapshotter, id string) error {
	ctx := context.Background()
	for round := 0; ; round++ {
		id := fmt.Sprintf("%s-%d", id, round)
		steps := []func() error{
			func() error { _, err := s.Prepare(ctx, "a-"+id, "image"); return err },
			func() error { return s.Commit(ctx, "c-"+id, "a-"+id) },
			func() error { _, err := s.View(ctx, "v-"+id, "c-"+id); return err },
			func() error { return s.Remove(ctx, "v-"+id) },
			func() error { return s.Remove(ctx, "c-"+id) },
			func() error { return s.Cleanup(ctx) },
		}
		for i, step := range steps {
			if err := step(); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
			fmt.Println(id, i)
		}
	}
}

// Wherever the process is killed, the next one finds metadata and volumes in agreement.
func TestKilled(t *testing.T) {
	h := newHost(t, Options{}, testfs.WithSimpleQuota())
	h.image("image")
	for _, steps := range []int{1, 2, 10, 25, 60, 61, 62} {
		require.NoError(t, h.Close())
		killAfter(t, killEnv+"="+h.mnt, steps, func() {})
		require.NoError(t, h.open(), "after %d steps", steps)
		checkAgreement(t, h)
		removeAll(t, h, "image")
		require.NoError(t, h.Cleanup(t.Context()))
		assert.Len(t, h.volumes(), 1, "after %d steps", steps)
	}
}

// killAfter kills a process that works when it has done that many steps, and when ready has returned after that.
func killAfter(t *testing.T, work string, steps int, ready func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), work)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	testfs.Start(t, cmd)
	lines := bufio.NewScanner(stdout)
	for range steps {
		if !assert.True(t, lines.Scan(), "it has ended by itself") {
			break
		}
	}
	ready()
	require.NoError(t, cmd.Process.Kill())
	var exit *exec.ExitError
	assert.ErrorAs(t, testfs.Wait(t, cmd), &exit)
}

func checkAgreement(t *testing.T, h *host) {
	t.Helper()
	volumes := make(map[string]cowcommon.Volume)
	for v, err := range h.backend.Volumes(t.Context()) {
		require.NoError(t, err)
		volumes[v.Name] = v
	}
	named := make(map[string]struct{})
	require.NoError(t, h.Walk(t.Context(), func(ctx context.Context, info snapshots.Info) error {
		name, err := h.Volume(ctx, info.Name)
		require.NoError(t, err)
		v, ok := volumes[name]
		assert.True(t, ok, "%s %q has no volume", info.Kind, info.Name)
		assert.Equal(t, info.Kind != snapshots.KindActive, v.Sealed, "%s %q", info.Kind, info.Name)
		named[name] = struct{}{}
		return nil
	}))
	for name := range volumes {
		assert.Contains(t, named, name)
	}
}

// removeAll removes all snapshots but one.
func removeAll(t *testing.T, h *host, kept string) {
	t.Helper()
	for left := true; left; {
		left = false
		for _, key := range h.keys() {
			if key == kept {
				continue
			}
			if err := h.Remove(t.Context(), key); errdefs.IsFailedPrecondition(err) {
				left = true // its children first
			} else {
				require.NoError(t, err)
			}
		}
	}
}
