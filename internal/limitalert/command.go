package limitalert

import (
	"bytes"
	"context"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/hostcommand"
)

const commandTimeout = 30 * time.Second

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
		return hostcommand.Command{Args: command, Env: environment(a), Stdin: bytes.NewReader(body), Timeout: commandTimeout}.Run(ctx)
	}
}

// environment is the environment of a command.
func environment(a Alert) (env []string) {
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
		env = append(env, hostcommand.Variable(v.name, v.value))
	}
	return env
}
