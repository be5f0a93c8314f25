package limitalert

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/printable"
)

const (
	commandTimeout = 30 * time.Second
	// killDelay is how long the output of a command that has ended, or was killed, may stay open.
	killDelay = time.Second
	maxOutput = 1 << 10 // that errors show
)

// CheckCommand checks a command with its arguments. Returns errdefs.ErrInvalidArgument if the command has no absolute path.
func CheckCommand(command []string) error {
	if len(command) > 0 && !filepath.IsAbs(command[0]) {
		return fault.New(errdefs.ErrInvalidArgument, "%q must begin with an absolute path", command)
	}
	for _, arg := range command {
		if strings.ContainsRune(arg, 0) {
			return fault.New(errdefs.ErrInvalidArgument, "%q has a NUL", arg)
		}
	}
	return nil
}

// commandOf runs a command for alerts, without a shell and without the environment of this process.
func commandOf(command []string) func(context.Context, Alert, []byte) error {
	return func(ctx context.Context, a Alert, body []byte) error {
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		out := &beginning{}
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Dir, cmd.Env, cmd.Stdin, cmd.WaitDelay = "/", environment(a), bytes.NewReader(body), killDelay
		cmd.Stdout, cmd.Stderr = out, out
		killGroup(cmd)
		err := cmd.Run()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w: %s", command[0], err, printable.Path(strings.TrimSpace(string(out.text))))
	}
}

// environment is the environment of a command.
func environment(a Alert) []string {
	env := []string{"PATH=" + os.Getenv("PATH")}
	for _, v := range []struct{ name, value string }{
		{"PERCENT", strconv.Itoa(a.Percent)},
		{"HELD", strconv.FormatUint(a.Held, 10)},
		{"LIMIT", strconv.FormatUint(a.Limit, 10)},
		{"NAMESPACE", a.Namespace},
		{"ID", a.ID},
		{"POD_NAMESPACE", a.PodNamespace},
		{"POD", a.Pod},
		{"CONTAINER", a.Container},
		{"SERVICE", a.Service},
		{"VOLUME", a.Volume},
		{"TIME", a.Time.UTC().Format(time.RFC3339)},
	} {
		env = append(env, "COWSHED_"+v.name+"="+strings.ReplaceAll(v.value, "\x00", ""))
	}
	return env
}

// beginning keeps the first bytes that are written.
type beginning struct{ text []byte }

func (b *beginning) Write(p []byte) (int, error) {
	b.text = append(b.text, p[:min(maxOutput-len(b.text), len(p))]...)
	return len(p), nil
}
