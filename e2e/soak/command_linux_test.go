package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cowshed/cowshed/internal/testfs"
)

// commander works on layers of its own with the command cowshed, in the same root as other commanders.
type commander struct {
	name string
	soak *soak
	rng  *rand.Rand
	made int
	have map[string]*layer
	done int // operations
}

// layer is a commander's knowledge of one of its layers: its files, and those of its parent.
type layer struct {
	parent        string
	files, before tree
}

const (
	maxLayers = 6
	// exitPrecondition is the exit code of a command that finds the layer in use.
	exitPrecondition = 5
)

// errStopped says that a command was killed, or stopped by a signal: its work is done or not.
var errStopped = errors.New("the command was stopped")

func newCommander(s *soak, name string, seed uint64) *commander {
	return &commander{name: name, soak: s, rng: rand.New(rand.NewPCG(seed, 1)), have: make(map[string]*layer)}
}

// cowshed runs the command and returns its output. It is not stopped.
func (c *commander) cowshed(args ...string) (string, error) { return c.start(false, args...) }

// start runs the command under signals that mean nothing to it. If stop is set, it now and then sends a signal that
// stops the command, which is errStopped.
func (c *commander) start(stop bool, args ...string) (string, error) {
	cmd := exec.Command(c.soak.program, append([]string{"--root", c.soak.commandRoot(), "--driver", "btrfs",
		"--storage-opt", "btrfs.quota=" + c.soak.daemon.quota}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan struct{})
	signalled := make(chan bool, 1)
	go func() { signalled <- c.signals(cmd, stop, ended) }()
	err := cmd.Wait()
	close(ended)
	if <-signalled && err != nil {
		return "", errStopped
	}
	if err != nil {
		return "", fmt.Errorf("cowshed %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// signals sends signals until the command has ended, and says whether one of them stops it.
func (c *commander) signals(cmd *exec.Cmd, stop bool, ended <-chan struct{}) bool {
	var stopAfter <-chan time.Time
	if stop && c.soak.chaos["kill"] && c.rng.IntN(3) == 0 {
		stopAfter = time.After(time.Duration(c.rng.Int64N(int64(80 * time.Millisecond))))
	}
	harmless := []syscall.Signal{syscall.SIGWINCH, syscall.SIGURG}
	pause := time.Hour
	if c.soak.chaos["signal"] {
		pause = time.Millisecond
	}
	for i := 0; ; i++ {
		select {
		case <-ended:
			return false
		case <-stopAfter:
			// It may have ended by now.
			_ = cmd.Process.Signal([]syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM}[c.rng.IntN(3)])
			return true
		case <-time.After(pause):
			_ = cmd.Process.Signal(harmless[i%len(harmless)])
		}
	}
}

// run works until ctx is done.
func (c *commander) run(ctx context.Context) error {
	operations := []func() error{c.create, c.create, c.write, c.write, c.changes, c.changes, c.diff, c.remove, c.list}
	for ctx.Err() == nil {
		if err := operations[c.rng.IntN(len(operations))](); err != nil {
			return fmt.Errorf("%s, operation %d: %w", c.name, c.done, err)
		}
		c.done++
	}
	return nil
}

func (c *commander) pick() (string, *layer) {
	names := slices.Sorted(maps.Keys(c.have))
	if len(names) == 0 {
		return "", nil
	}
	name := names[c.rng.IntN(len(names))]
	return name, c.have[name]
}

// exists asks whether a layer is there, after a command that was stopped.
func (c *commander) exists(name string) (bool, error) {
	names, err := c.names()
	return slices.Contains(names, name), err
}

func (c *commander) names() ([]string, error) {
	out, err := c.cowshed("ls", "--names")
	return strings.Fields(out), err
}

// short says that an error is possible where there is no space left.
func (c *commander) short(before space, err error) bool {
	return err != nil && strings.Contains(err.Error(), "no space left") && (before.full || c.soak.space() != before)
}

func (c *commander) create() error {
	if len(c.have) >= maxLayers {
		return c.remove()
	}
	c.made++
	name := fmt.Sprintf("%s-%d", c.name, c.made)
	made := &layer{files: make(tree), before: make(tree)}
	args := []string{"create", name}
	if parent, of := c.pick(); parent != "" {
		made = &layer{parent: parent, files: maps.Clone(of.files), before: maps.Clone(of.files)}
		args = append(args, "--parent", parent)
	}
	before := c.soak.space()
	_, err := c.start(true, args...)
	there := err == nil
	switch {
	case errors.Is(err, errStopped):
		if there, err = c.exists(name); err != nil {
			return err
		}
	case c.short(before, err):
		if there, err = c.exists(name); err == nil && there {
			err = fmt.Errorf("creating %s failed, and it is there", name)
		}
		if err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if there {
		c.have[name] = made
	}
	return nil
}

// in mounts a layer and calls f with the directory.
func (c *commander) in(name string, f func(dir string) error) error {
	out, err := c.cowshed("mount", name)
	if err != nil {
		return err
	}
	err = f(strings.TrimSuffix(out, "\n"))
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return errors.Join(err, c.unmount(name))
}

// unmount unmounts a layer. For a moment a process that another goroutine starts has the files that this one had open.
func (c *commander) unmount(name string) error {
	for begun := time.Now(); ; {
		_, err := c.cowshed("unmount", name)
		var exit *exec.ExitError
		if time.Since(begun) > testfs.Patience || !errors.As(err, &exit) || exit.ExitCode() != exitPrecondition {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *commander) isParent(name string) bool {
	for _, l := range c.have {
		if l.parent == name {
			return true
		}
	}
	return false
}

// write changes files of a layer, or looks at them if the layer is another's parent and so sealed.
func (c *commander) write() error {
	name, l := c.pick()
	if name == "" {
		return nil
	}
	lost := false
	before := c.soak.space()
	err := c.in(name, func(dir string) error {
		if err := l.files.check(dir); err != nil || c.isParent(name) {
			return err
		}
		edited := maps.Clone(l.files)
		err := edited.edit(c.rng, dir)
		switch {
		case errors.Is(err, syscall.EROFS): // sealed by a child that is gone
			return nil
		case noSpace(err):
			lost = true
			return nil
		}
		l.files = edited
		return err
	})
	if c.short(before, err) {
		return nil
	}
	if err == nil && lost {
		return c.removeLayer(name)
	}
	return err
}

// changes compares the command's list with the changes made.
func (c *commander) changes() error {
	name, l := c.pick()
	if name == "" {
		return nil
	}
	before := c.soak.space()
	out, err := c.start(true, "changes", name)
	if errors.Is(err, errStopped) || c.short(before, err) {
		return nil
	}
	if err != nil {
		return err
	}
	var want []string
	for path, f := range l.files {
		switch was, ok := l.before[path]; {
		case !ok:
			want = append(want, "A /"+path)
		case was != f:
			want = append(want, "C /"+path)
		}
	}
	for path := range l.before {
		if _, ok := l.files[path]; !ok {
			want = append(want, "D /"+path)
		}
	}
	slices.Sort(want)
	got := slices.Sorted(strings.Lines(out))
	for i := range got {
		got[i] = strings.TrimSuffix(got[i], "\n")
	}
	// The root itself counts as changed when a file in it came or went, and a file may have been written anew.
	missing := slices.DeleteFunc(slices.Clone(want), func(line string) bool { return slices.Contains(got, line) })
	if len(missing) > 0 {
		return fmt.Errorf("changes of %s lacks %q: it has %q", name, missing, got)
	}
	seen := make(map[string]bool)
	for _, line := range got {
		if seen[line] {
			return fmt.Errorf("changes of %s lists %q twice", name, line)
		}
		seen[line] = true
	}
	return nil
}

func (c *commander) diff() error {
	name, _ := c.pick()
	if name == "" {
		return nil
	}
	before := c.soak.space()
	output := filepath.Join(c.soak.dir, c.name+".tar")
	_, err := c.start(true, "diff", name, "--output", output)
	if errors.Is(err, errStopped) || c.short(before, err) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(output))
}

func (c *commander) remove() error {
	for name := range c.have {
		if !c.isParent(name) {
			return c.removeLayer(name)
		}
	}
	return nil
}

func (c *commander) removeLayer(name string) error {
	_, err := c.start(true, "rm", name)
	if errors.Is(err, errStopped) {
		there, err := c.exists(name)
		if err != nil || there {
			return err
		}
	} else if err != nil {
		return err
	}
	delete(c.have, name)
	return nil
}

// list checks that the layers are there, and none that this commander has removed.
func (c *commander) list() error {
	names, err := c.names()
	if err != nil {
		return err
	}
	for name := range c.have {
		if !slices.Contains(names, name) {
			return fmt.Errorf("%s is not listed", name)
		}
	}
	for _, name := range names {
		if _, ok := c.have[name]; !ok && strings.HasPrefix(name, c.name+"-") {
			return fmt.Errorf("%s is listed though it was removed, or never made", name)
		}
	}
	return nil
}

// checkAll checks everything that the commander knows.
func (c *commander) checkAll() error {
	if err := c.list(); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	for name, l := range c.have {
		if err := c.in(name, l.files.check); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// removeAll removes all layers, children first.
func (c *commander) removeAll() error {
	for len(c.have) > 0 {
		if err := c.remove(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}
