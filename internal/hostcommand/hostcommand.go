// Package hostcommand runs commands that a configuration or a user names.
package hostcommand

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cowshed/cowshed/internal/printable"
)

const (
	// killDelay is how long the output of a command that has ended, or was killed, may stay open.
	killDelay = time.Second
	maxOutput = 1 << 10 // that errors show
)

// Command is a command that runs in the directory / and with its own environment.
type Command struct {
	Args    []string  // without a shell; the first is an absolute path
	Env     []string  // as NAME=value; PATH is added, and nothing else of this process
	Stdin   io.Reader // nil: none
	Timeout time.Duration
	// Files are open in the command, and in all that it starts, from descriptor 3 on.
	Files []*os.File
}

// Run runs the command. If it takes longer than its timeout, or ctx is done, it is killed with all processes that it
// has started. A process that it leaves in the background goes on if the command succeeds. The error has the beginning
// of its output. It is an *exec.ExitError if the command failed by itself, and the cause of ctx or
// context.DeadlineExceeded if it was killed.
func (c Command) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out := &beginning{}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.WaitDelay = "/", append([]string{"PATH=" + os.Getenv("PATH")}, c.Env...), c.Stdin, killDelay
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, c.Files
	killGroup(cmd)
	err := cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // something in the background has the output open
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return fmt.Errorf("%s: %w: %s", c.Args[0], err, printable.Path(strings.TrimSpace(string(out.text))))
}

// Variable is a variable for Env. A NUL in its value, which no environment can have, is left out.
func Variable(name, value string) string {
	return "COWSHED_" + name + "=" + strings.ReplaceAll(value, "\x00", "")
}

// beginning keeps the first bytes that are written.
type beginning struct{ text []byte }

func (b *beginning) Write(p []byte) (int, error) {
	b.text = append(b.text, p[:min(maxOutput-len(b.text), len(p))]...)
	return len(p), nil
}
