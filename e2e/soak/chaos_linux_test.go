package soak

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// chaosKinds are the events that may happen beside the clients' work. "cancel" and "limit" are up to the clients.
var chaosKinds = []string{"kill", "term", "signal", "cancel", "space", "limit", "foreign"}

// space is the known state of the filesystem's space: whether something fills it, and how often that has changed.
type space struct {
	full    bool
	changed int
}

func (s *soak) space() space {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *soak) setFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = space{full: full, changed: s.now.changed + 1}
}

// disturb runs the kinds of chaos in turn until ctx is done, each once at least, and takes back its changes. kills says
// whether the daemon may be killed and stopped.
func (s *soak) disturb(ctx context.Context, rng *rand.Rand, kills bool) error {
	type event struct {
		kind string
		run  func(ctx context.Context, rng *rand.Rand) error
	}
	var events []event
	for _, e := range []event{
		{"kill", func(context.Context, *rand.Rand) error { return s.daemon.restart(syscall.SIGKILL) }},
		{"term", func(context.Context, *rand.Rand) error { return s.daemon.restart(syscall.SIGTERM) }},
		{"signal", s.sendSignals}, {"foreign", s.snapshotForeign},
		{"space", func(ctx context.Context, rng *rand.Rand) error { return s.fill(ctx, rng, kills && s.chaos["kill"]) }},
	} {
		if s.chaos[e.kind] && (kills || e.kind != "kill" && e.kind != "term") {
			events = append(events, e)
		}
	}
	for i := 0; len(events) > 0; i++ {
		// Each kind happens once, also if the time is up on a slow machine.
		goesOn := sleep(ctx, time.Duration(rng.Int64N(int64(time.Second))))
		if !goesOn && (i >= len(events) || !errors.Is(ctx.Err(), context.DeadlineExceeded)) {
			return nil
		}
		at := i % len(events)
		if at == 0 {
			rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		}
		e := events[at]
		s.count(e.kind)
		if err := e.run(ctx, rng); err != nil {
			return fmt.Errorf("%s: %w", e.kind, err)
		}
	}
	return nil
}

// sleep says whether ctx is still to go on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// sendSignals sends signals that mean nothing for half a second.
func (s *soak) sendSignals(ctx context.Context, _ *rand.Rand) error {
	for i := range 500 {
		if !sleep(ctx, time.Millisecond) {
			return nil
		}
		if err := s.daemon.signal([]syscall.Signal{syscall.SIGURG, syscall.SIGWINCH}[i%2]); err != nil {
			return err
		}
	}
	return nil
}

// fill takes all space that the filesystem has for a while, and if kill is set kills the daemon meanwhile.
func (s *soak) fill(ctx context.Context, rng *rand.Rand, kill bool) (err error) {
	s.setFull(true)
	name := filepath.Join(s.mnt, "filler")
	defer func() {
		err = errors.Join(err, os.Remove(name), syncFilesystem(s.mnt))
		s.setFull(false)
	}()
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	for step := int64(256 << 20); step >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, size, step)
		switch {
		case err == nil:
			size += step
		case errors.Is(err, unix.ENOSPC):
			step /= 4
		case errors.Is(err, unix.EINTR):
		default:
			return fmt.Errorf("fallocate: %w", err)
		}
	}
	if sleep(ctx, time.Duration(rng.Int64N(int64(2*time.Second)))) && kill {
		if err := s.daemon.restart(syscall.SIGKILL); err != nil {
			return err
		}
		sleep(ctx, time.Second)
	}
	return nil
}

func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// snapshotForeign makes snapshots of volumes outside Cowshed's home, as a backup program does, and deletes older ones.
func (s *soak) snapshotForeign(_ context.Context, rng *rand.Rand) error {
	if err := os.MkdirAll(s.foreign(), 0o755); err != nil {
		return err
	}
	for _, home := range s.homes() {
		volumes, err := os.ReadDir(filepath.Join(home, "subvolumes"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for range min(2, len(volumes)) {
			s.foreignMade++
			from := filepath.Join(home, "subvolumes", volumes[rng.IntN(len(volumes))].Name())
			to := filepath.Join(s.foreign(), fmt.Sprint(s.foreignMade))
			// The volume may be gone by now, or the filesystem full.
			_ = exec.Command("btrfs", "subvolume", "snapshot", "-r", from, to).Run()
		}
	}
	return s.removeForeign(8)
}

// removeForeign deletes foreign snapshots but the latest so many.
func (s *soak) removeForeign(kept int) error {
	entries, err := os.ReadDir(s.foreign())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := len(a) - len(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for len(names) > kept {
		path := filepath.Join(s.foreign(), names[0])
		if out, err := exec.Command("btrfs", "subvolume", "delete", path).CombinedOutput(); err != nil {
			return fmt.Errorf("delete the foreign snapshot %s: %w: %s", path, err, out)
		}
		names = names[1:]
	}
	return nil
}
