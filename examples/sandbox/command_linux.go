package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Programs that run a command in a root.
const (
	unshareProgram = "unshare"
	runcProgram    = "runc"
)

// maxOutput is how much of a command's output is kept, from its end.
const maxOutput = 4096

// command runs the command in the root at dir, and returns the score that it printed. When it returns, no process of the
// command is left.
func (s *sandbox) command(ctx context.Context, number int, dir string) (score float64, err error) {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", fmt.Sprintf("SANDBOX_FORK=%d", number)}
	var out, problem tail
	if s.runtime == runcProgram {
		err = s.runc(ctx, number, dir, env, &out, &problem)
	} else {
		err = s.unshare(ctx, dir, env, &out, &problem)
	}
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case err != nil:
		return 0, fmt.Errorf("%w: %q", err, problem.lastLine())
	}
	score, err = strconv.ParseFloat(out.lastLine(), 64)
	if err != nil {
		return 0, fmt.Errorf("the last line is no score: %q", out.lastLine())
	}
	return score, nil
}

// unshare runs the command in namespaces of its own, without a network. It keeps accidents off the host, and no attackers:
// a process of root can leave its root directory.
func (s *sandbox) unshare(ctx context.Context, dir string, env []string, out, problem *tail) error {
	args := []string{
		"--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", "--propagation=private",
		"--root=" + dir, "--wd=/", "--mount-proc", "--",
	}
	cmd := exec.CommandContext(ctx, unshareProgram, append(args, s.options.command...)...)
	cmd.Env = env
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return runQuiet(cmd, out, problem)
}

// runc runs the command as a container.
func (s *sandbox) runc(ctx context.Context, number int, dir string, env []string, out, problem *tail) (err error) {
	bundle := filepath.Join(s.store, "bundles", strconv.Itoa(number))
	if err := s.makeBundle(ctx, bundle, dir, env); err != nil {
		return err
	}
	state := "--root=" + filepath.Join(s.store, "runc")
	name := fmt.Sprintf("%s-%d", filepath.Base(s.store), number)
	remove := func() error {
		// It succeeds if there is no such container.
		return exec.Command(runcProgram, state, "delete", "--force", name).Run()
	}
	cmd := exec.CommandContext(ctx, runcProgram, state, "run", "--bundle", bundle, name)
	cmd.Cancel = remove // runc ends with its container
	defer func() { err = errors.Join(err, remove()) }()
	return runQuiet(cmd, out, problem)
}

// makeBundle makes the directory that runc runs a container of. The container is as runc spec makes it, with another command.
func (s *sandbox) makeBundle(ctx context.Context, bundle, dir string, env []string) error {
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return err
	}
	if err := exec.CommandContext(ctx, runcProgram, "spec", "--bundle", bundle).Run(); err != nil {
		return fmt.Errorf("runc spec: %w", err)
	}
	config := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s has no process", config)
	}
	process["terminal"], process["args"], process["env"] = false, s.options.command, env
	spec["root"] = map[string]any{"path": dir}
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(config, data, 0o600)
}

// runQuiet runs a program in a process group of its own, so that Ctrl-C reaches this process alone. It waits until nobody can
// write to the outputs any more.
func runQuiet(cmd *exec.Cmd, out, problem *tail) error {
	cmd.Stdout, cmd.Stderr = out, problem
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 10 * time.Second
	return cmd.Run()
}

// tail keeps the end of an output.
type tail struct{ data []byte }

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if extra := len(t.data) - maxOutput; extra > 0 {
		t.data = append(t.data[:0], t.data[extra:]...)
	}
	return len(p), nil
}

func (t *tail) lastLine() string {
	lines := bytes.Split(bytes.TrimSpace(t.data), []byte("\n"))
	return strings.TrimSpace(string(lines[len(lines)-1]))
}
