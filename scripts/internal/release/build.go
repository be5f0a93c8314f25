package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// build makes the files of one commit in a directory of its own.
type build struct {
	tree       string // a clone that has the commit
	commit     string
	maintainer string // of the packages, as checkMaintainer has it
	dir        string // is made
	arches     []string
	cache      string // of Go's builds; "" for the usual one
}

func (b build) source() string { return filepath.Join(b.dir, "source") }
func (b build) dist() string   { return filepath.Join(b.dir, "dist") }

// staged is where the files of an architecture are installed, below a prefix.
func (b build) staged(arch string) string  { return filepath.Join(b.dir, "staged", arch) }
func (b build) tarball(arch string) string { return filepath.Join(b.dir, "tarball", arch) }

// program is a program that was built, with the record that the go command has put into it.
type program struct {
	file string
	arch string
	info *buildinfo.BuildInfo
	date time.Time // of the commit
}

// version is the version of its module, which the go command has read from git: v1.2.3, or v0.0.0-DATE-COMMIT if no
// version has been tagged yet.
func (p program) version() string { return p.info.Main.Version }

// Prefixes under which the files are installed: by packages, and by people.
const (
	packagePrefix = "/usr"
	tarballPrefix = "/usr/local"
)

func (b build) run(ctx context.Context) error {
	if err := os.MkdirAll(b.dist(), 0o755); err != nil {
		return err
	}
	if err := b.clone(ctx); err != nil {
		return err
	}
	date, err := commitDate(ctx, b.source())
	if err != nil {
		return err
	}
	for _, arch := range b.arches {
		p, err := b.compile(ctx, arch, date)
		if err != nil {
			return err
		}
		for _, write := range []func(program) error{b.writeTarball, b.writePackages, b.writeBill} {
			if err := write(p); err != nil {
				return fmt.Errorf("%s: %w", arch, err)
			}
		}
	}
	return writeSums(b.dist())
}

// checkedOut is the commit that is checked out in a tree.
func checkedOut(ctx context.Context, tree string) (string, error) {
	return output(ctx, tree, nil, "git", "rev-parse", "HEAD")
}

// clone makes a copy of the commit, with its tags and without uncommitted changes.
func (b build) clone(ctx context.Context) error {
	tree, err := filepath.Abs(b.tree)
	if err != nil {
		return err
	}
	if _, err := output(ctx, "", nil, "git", "clone", "--quiet", "--no-checkout", tree, b.source()); err != nil {
		return err
	}
	_, err = output(ctx, b.source(), nil, "git", "checkout", "--quiet", "--detach", b.commit)
	return err
}

// commitDate is when the commit was made that is checked out in a tree.
func commitDate(ctx context.Context, tree string) (time.Time, error) {
	text, err := output(ctx, tree, nil, "git", "log", "-1", "--format=%ct")
	if err != nil {
		return time.Time{}, err
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("date of the commit: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// compile builds the program for an architecture, and installs it with its units and manual under both prefixes.
func (b build) compile(ctx context.Context, arch string, date time.Time) (program, error) {
	env := b.environment(arch, date)
	for _, args := range [][]string{
		{"build"},
		{"install", "DESTDIR=" + b.staged(arch), "PREFIX=" + packagePrefix},
		{"install", "DESTDIR=" + b.tarball(arch), "PREFIX=" + tarballPrefix},
	} {
		if _, err := output(ctx, b.source(), env, "make", args...); err != nil {
			return program{}, err
		}
	}
	p := program{file: filepath.Join(b.staged(arch), packagePrefix, "bin/cowshed"), arch: arch, date: date}
	var err error
	if p.info, err = buildinfo.ReadFile(p.file); err != nil {
		return program{}, err
	}
	if version := p.version(); !strings.HasPrefix(version, "v") || strings.Contains(version, "+dirty") {
		return program{}, fmt.Errorf("%s has the version %q: go has not read it from a clean clone", p.file, version)
	}
	return p, nil
}

// environment is that of this process without variables that could change the bytes of a build.
func (b build) environment(arch string, date time.Time) []string {
	settings := map[string]string{
		"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch, "GOAMD64": "v1", "GOARM64": "v8.0", "GOEXPERIMENT": "",
		"GOFLAGS": "-buildvcs=true", "GOWORK": "off", "GOTOOLCHAIN": "local",
		"SOURCE_DATE_EPOCH": strconv.FormatInt(date.Unix(), 10), "LC_ALL": "C.UTF-8", "TZ": "UTC",
		// Variables of make, and of the program's own defaults.
		"MAKEFLAGS": "", "MAKELEVEL": "", "VERSION": "", "PREFIX": "", "DESTDIR": "", "SYSCONFDIR": "",
		"COWSHED_ROOT": "", "COWSHED_DRIVER": "", "NERDCTL_TOML": "",
	}
	if b.cache != "" {
		settings["GOCACHE"] = b.cache
	}
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		_, ok := settings[name]
		return ok
	})
	for name, value := range settings {
		if value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// output runs a command and returns its output, without white space around it.
func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, env
	// make ends its children on SIGTERM.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var failure strings.Builder
	cmd.Stderr = &failure
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(failure.String()))
	}
	return strings.TrimSpace(string(text)), nil
}
