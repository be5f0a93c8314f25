package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/printable"
)

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{errReported, 1},
		{image.ErrMalformed, 1},
		{usagef("x"), 2},
		{usageError{errdefs.ErrNotFound}, 2},
		{errdefs.ErrInvalidArgument, 2},
		{errdefs.ErrNotFound, 3},
		{errdefs.ErrAlreadyExists, 4},
		{errdefs.ErrFailedPrecondition, 5},
		{failf(errdefs.ErrFailedPrecondition, "in use"), 5},
		{cowcommon.ErrReadOnly, 5},
		{&fs.PathError{Op: "mkdir", Err: syscall.EROFS}, 5},
		{&detect.ReadOnlyError{}, 5},
		{&fs.PathError{Op: "write", Err: syscall.ENOSPC}, 7},
		{&fs.PathError{Op: "write", Err: syscall.EDQUOT}, 7},
		{errdefs.ErrNotImplemented, 6},
		{graphdriver.ErrNotSupported, 6},
		{graphdriver.ErrPrerequisites, 6},
		{graphdriver.ErrIncompatibleFS, 6},
		{signalError{syscall.SIGINT}, 130},
		{fmt.Errorf("%w: %w", signalError{syscall.SIGTERM}, errdefs.ErrNotFound), 143},
		{&fs.PathError{Op: "write", Err: syscall.EPIPE}, 141},
	} {
		assert.Equal(t, test.want, exitCode(test.err), "%v", test.err)
		if test.err != nil {
			assert.Equal(t, test.want, exitCode(fmt.Errorf("wrapped: %w", test.err)), "%v, wrapped", test.err)
		}
	}
}

func TestFailf(t *testing.T) {
	cause := errors.New("cause")
	err := failf(errdefs.ErrNotFound, "nothing here: %w", cause)
	assert.Equal(t, "nothing here: cause", err.Error(), "the kind is not part of the message")
	assert.ErrorIs(t, err, cause)
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
}

func TestErrorHint(t *testing.T) {
	cmd := &cobra.Command{Use: "cmd"}
	for want, err := range map[string]error{
		"cmd --help":      usagef("x"),
		"--driver a":      &graphdriver.AmbiguousError{Drivers: []string{"a", "b"}},
		"doctor":          syscall.EPERM,
		"can be listed":   fmt.Errorf("x: %w", cowcommon.ErrReadOnly),
		"cowshed limit":   syscall.EDQUOT,
		"init --loop":     syscall.ENOSPC,
		"cowshed doctor":  syscall.EACCES,
		"or --driver b":   &graphdriver.AmbiguousError{Drivers: []string{"a", "b"}},
		"cowshed usage; ": fmt.Errorf("x: %w", syscall.EDQUOT),
	} {
		assert.Contains(t, errorHint(cmd, err), want)
	}
	assert.Empty(t, errorHint(cmd, errors.New("x")))
	assert.Contains(t, refusedHint(1000), "sudo")
	assert.NotContains(t, refusedHint(0), "sudo", "root need not become root")
}

func TestWithCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	assert.Equal(t, errReported, withCause(ctx, errReported))
	cancel(signalError{syscall.SIGTERM})
	err := withCause(ctx, fmt.Errorf("x: %w", context.Canceled))
	assert.Equal(t, 143, exitCode(err))
	assert.Equal(t, "stopped by signal: terminated", errorMessage(err))
}

func TestQuotePath(t *testing.T) {
	for path, want := range map[string]string{
		"/plain":         "/plain",
		"/with space":    "/with space",
		"/ünïcode":       "/ünïcode",
		"/new\nline":     `"/new\nline"`,
		"/esc\x1b[31m":   `"/esc\x1b[31m"`,
		"/bad\xff":       `"/bad\xff"`,
		`/quo"te`:        `"/quo\"te"`,
		`/back\slash`:    `"/back\\slash"`,
		"/bidi\u202etxt": `"/bidi\u202etxt"`,
	} {
		assert.Equal(t, want, printable.Path(path))
	}
}

func TestMakeTree(t *testing.T) {
	roots := makeTree([]api.Layer{
		{Name: "a"}, {Name: "b", Parent: "a"}, {Name: "c", Parent: "b"}, {Name: "d", Parent: "a"}, {Name: "e", Parent: "gone"},
		{Name: "self", Parent: "self"},
	})
	var out strings.Builder
	for _, root := range roots {
		require.NoError(t, printTree(&out, root, "", ""))
	}
	assert.Equal(t, "a\n├── b\n│   └── c\n└── d\ne\nself\n", out.String())
}

// Each wrong command line fails with exit code 2, names the fault, and makes nothing.
func TestUsageErrors(t *testing.T) {
	a := at{root: filepath.Join(t.TempDir(), "store")}
	for _, test := range []struct {
		args []string
		says string
	}{
		{[]string{"nonsense"}, "nonsense"},
		{[]string{"--nonsense"}, "nonsense"},
		{[]string{"ls", "extra"}, "extra"},
		{[]string{"ls", "--log-level", "loud"}, "loud"},
		{[]string{"rm"}, "at least 1"},
		{[]string{"mount"}, "between 1 and 2"},
		{[]string{"create", "a", "b"}, "at most 1"},
		{[]string{"limit", "a"}, "accepts 2"},
		{[]string{"limit", "a", "big"}, "big"},
		{[]string{"limit", "a", "0"}, `"0"`},
		{[]string{"limit", "a", "0"}, "use none"},
		{[]string{"limit", "a", "0.0 GiB"}, "use none"},
		{[]string{"limit", "a", "--", "-5G"}, "-5G"},
		{[]string{"init", "--loop", "lots"}, "lots"},
		{[]string{"init", "--loop", "1M"}, "too small"},
		{[]string{"init", "--always"}, "--loop"},
		{[]string{"changes", "a", "b", "--whole"}, "PARENT"},
		{[]string{"changes", "a", "--json", "-0"}, "null"},
		{[]string{"export", "a", "b"}, `"b"`},
		{[]string{"setup", "podman"}, "podman"},
		{[]string{"setup", "containerd", "--restart"}, "--apply or --undo"},
		{[]string{"setup", "containerd", "--apply", "--undo"}, "opposite"},
		{[]string{"setup", "containerd", "--config", "/nonexistent/cowshed.toml"}, "/nonexistent/cowshed.toml"},
		{[]string{"setup", "docker", "--engine", "new"}, "--engine VERSION"},
		{[]string{"export", "a", "rootfs:x"}, "rootfs:x"},
		{[]string{"export", "a", "docker://BAD"}, "BAD"},
	} {
		r := a.run(t, test.args...)
		assert.Equal(t, exitUsage, r.code, "%v: %s", test.args, r.err)
		assert.Contains(t, r.err, test.says, "%v", test.args)
		assert.Empty(t, r.out, "%v", test.args)
		assert.NoDirExists(t, a.root, "%v", test.args)
		assert.NoFileExists(t, a.root+".img", "%v", test.args)
	}
}

func TestNoStore(t *testing.T) {
	a := at{root: filepath.Join(t.TempDir(), "store")}
	for _, args := range [][]string{
		{"ls"}, {"tree"}, {"status"}, {"images"}, {"create", "x"}, {"rm", "x"}, {"usage", "x"}, {"limit", "x", "1G"},
		{"mount", "x"}, {"unmount", "x"}, {"changes", "x"}, {"apply", "x"}, {"rmi", "x"}, {"deinit", "--yes"},
	} {
		r := a.run(t, args...)
		assert.Equal(t, exitNotFound, r.code, "%v: %s", args, r.err)
		assert.Contains(t, r.err, "cowshed init", "%v", args)
		assert.NoDirExists(t, a.root, "%v", args)
	}
}

// With a driver that is not there no store can be, whatever the command.
func TestNoSuchDriver(t *testing.T) {
	a := at{root: filepath.Join(t.TempDir(), "store")}
	for driver, says := range map[string]string{"aufs": "was removed from Docker", "nonsense": "no storage driver of that name", "../btrfs": "no storage driver"} {
		for _, args := range [][]string{{"ls"}, {"rm", "x"}, {"init"}, {"init", "--loop", "300M"}, {"deinit", "--yes"}} {
			r := a.run(t, append([]string{"--driver", driver}, args...)...)
			assert.Equal(t, exitUnsupported, r.code, "%v: %s", args, r.err)
			assert.Contains(t, r.err, driver)
			assert.Contains(t, r.err, says)
			assert.NotContains(t, r.err, "cowshed init", "another store does not help")
			assert.NoDirExists(t, a.root)
			assert.NoFileExists(t, a.root+".img")
		}
		r := a.run(t, "--driver", driver, "doctor")
		assert.Equal(t, exitFailure, r.code)
		assert.Contains(t, r.out, says)
		assert.NotContains(t, r.out, "there is no store")
	}
}

func TestKeptText(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 4)
	assert.Equal(t, "kept of app:1: layer 0123456789ab, needed by layer web",
		keptText("app:1", &image.Removed{Kept: []string{long}, Needed: []string{"layer web"}}))
	assert.Equal(t, "kept of app:1: layer x, needed by image a, layer b, layer c and 2 more; below it: y, 0123456789ab",
		keptText("app:1", &image.Removed{Kept: []string{"x", "y", long}, Needed: []string{"image a", "layer b", "layer c", "layer d", "layer e"}}))
}

func TestHelp(t *testing.T) {
	a := at{root: filepath.Join(t.TempDir(), "store")}
	assert.Contains(t, a.ok(t, "help", "exit-codes"), "128+N")
	assert.Contains(t, a.ok(t), "Usage:")
	assert.Contains(t, a.ok(t, "--version"), versionString())
	assert.Contains(t, a.ok(t, "version"), versionString())
	var v map[string]string
	a.json(t, &v, "version")
	assert.Equal(t, versionString(), v["version"])
	for _, shell := range []string{"bash", "zsh", "fish"} {
		assert.Contains(t, a.ok(t, "completion", shell), "cowshed")
	}

	for _, c := range newRootCommand().Commands() {
		assert.NotEmpty(t, c.Short, c.Name())
		for _, other := range newRootCommand().Commands() {
			assert.Equal(t, c.Name() == other.Name(), c.Short == other.Short, "%s and %s", c.Name(), other.Name())
		}
	}
}
