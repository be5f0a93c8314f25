// Package setup changes the configurations of programs that use Cowshed: containerd, Docker, nerdctl, BuildKit and
// Kubernetes.
//
// A [Plan] has the changes to files, with reasons. Applying it writes, beside each file, a record of the file's
// former state, then the file. Undoing puts back exactly that. Both may be interrupted at any moment, and be done
// again.
//
// An unsafe change is a [RefusedError], with the text that a person can add by hand.
package setup

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/containerdconf"
)

// Target is the program to set up.
type Target string

// The targets.
const (
	Containerd Target = "containerd"
	Docker     Target = "docker"
	Nerdctl    Target = "nerdctl"
	BuildKit   Target = "buildkit"
	Kubernetes Target = "kubernetes"
)

// Targets are all of them.
var Targets = []Target{Containerd, Docker, Nerdctl, BuildKit, Kubernetes}

// Host says where things are on a host.
type Host struct {
	// Socket is that of cowshed serve, Root the directory of its volumes for containerd.
	Socket, Root string
	// ContainerdAddress is the containerd that cowshed serve works for.
	ContainerdAddress string
	// DockerPlugin is the name of the graph driver plugin that cowshed serve has, "" if none.
	DockerPlugin string
	// Engine is the version of Docker Engine, such as 29.0.1; "": that of the dockerd that is installed.
	Engine string

	// Global are flags before the command, such as --root, that command lines which are advised need.
	Global []string

	// The configurations.
	CowshedConfig, ContainerdConfig, DockerConfig, NerdctlConfig, BuildKitConfig string
}

// Default files.
const (
	DefaultDockerConfig   = "/etc/docker/daemon.json"
	DefaultNerdctlConfig  = "/etc/nerdctl/nerdctl.toml"
	DefaultBuildKitConfig = "/etc/buildkit/buildkitd.toml"
)

// Change is the change to a file.
type Change struct {
	// File is its name. If that is a symbolic link, the link's target is changed.
	File string
	// Before and After are its contents; nil: it does not exist.
	Before, After []byte
	Why           string

	real     string // File without symbolic links
	restores bool   // the record goes with it
}

// Diff is the change as a unified diff.
func (c Change) Diff() string { return unifiedDiff(c.File, c.Before, c.After) }

// Plan is a list of changes.
type Plan struct {
	Target  Target
	Changes []Change
	// Notes are for a person to read before.
	Notes []string
	// Units are the systemd units that read the files when they start, in this order.
	Units []string

	lockDir string
	sweep   []string // files beside which an interrupted set-up may have left others
}

// RefusedError says why a file is not changed.
type RefusedError struct {
	File   string
	Reason string
	// Paste is a text for a person to add by hand, "" if that would not help.
	Paste string
	Cause error
}

// Error implements error.
func (r *RefusedError) Error() string {
	text := fmt.Sprintf("%s: %s", r.File, r.Reason)
	if r.Cause != nil {
		text = fmt.Sprintf("%s: %v", text, r.Cause)
	}
	if r.Paste != "" {
		text += "\nPut this there:\n\n" + strings.TrimRight(r.Paste, "\n") + "\n"
	}
	return text
}

// Is makes it an errdefs.ErrFailedPrecondition.
func (r *RefusedError) Is(target error) bool { return target == errdefs.ErrFailedPrecondition }

// New returns the plan that makes a target use Cowshed. There are no changes if it does.
func New(target Target, h Host) (*Plan, error) {
	switch target {
	case Containerd:
		return h.containerd()
	case Kubernetes:
		return h.kubernetes()
	case Docker:
		return h.docker()
	case Nerdctl:
		return h.nerdctl()
	case BuildKit:
		return h.buildkit()
	}
	return nil, fault.New(errdefs.ErrInvalidArgument, "target %q", target)
}

// edit adds the change of a file by edit. A file that does not exist is an empty one.
func (p *Plan) edit(file, why, paste string, edit func(text []byte) ([]byte, error)) error {
	real, before, err := readConfig(file)
	if err != nil {
		return err
	}
	if generated(before) {
		return &RefusedError{File: file, Reason: "it says that it is generated and not to be edited; change its source", Paste: paste}
	}
	after, err := edit(before)
	if err != nil {
		return &RefusedError{File: file, Reason: "not changed", Cause: err, Paste: paste}
	}
	if before == nil || !bytes.Equal(after, before) {
		p.Changes = append(p.Changes, Change{File: file, Before: before, After: after, Why: why, real: real})
	}
	return nil
}

// generated reports whether the first lines of a file say that a program writes it, as those of k3s do.
func generated(text []byte) bool {
	for i, line := range strings.SplitN(string(text), "\n", 6) {
		if i < 5 && strings.Contains(strings.ToLower(line), "do not edit") {
			return true
		}
	}
	return false
}

// snapshotter returns the name that containerd has for Cowshed's snapshotter, and its configuration.
func (h Host) snapshotter(target Target) (string, *containerdconf.Config, error) {
	main, err := h.mainConfig()
	if err != nil {
		return "", nil, err
	}
	if names := main.config.ProxiesTo(h.Socket, "snapshot"); len(names) > 0 {
		return names[0], main.config, nil
	}
	return "", nil, &RefusedError{File: h.ContainerdConfig, Reason: fmt.Sprintf(
		"containerd has no snapshotter on %s, which %s would use through it; first run: %s", h.Socket, target, h.command(Containerd, "--apply"))}
}

// command is the command line that sets up a target on this host.
func (h Host) command(target Target, args string) string {
	words := []string{"cowshed"}
	for _, flag := range h.Global {
		words = append(words, shellQuote(flag))
	}
	words = append(append(words, "setup", string(target)), h.flags(target)...)
	return strings.Join(append(words, args), " ")
}

// flags are the flags that name files in unusual places.
func (h Host) flags(target Target) []string {
	var flags []string
	for _, f := range []struct {
		name, value, usual string
		targets            []Target
	}{
		{"--config", h.CowshedConfig, DefaultCowshedConfig, Targets},
		{"--containerd-config", h.ContainerdConfig, containerdconf.DefaultFile, Targets},
		{"--docker-config", h.DockerConfig, DefaultDockerConfig, []Target{Docker}},
		{"--nerdctl-config", h.NerdctlConfig, DefaultNerdctlConfig, []Target{Nerdctl}},
		{"--buildkit-config", h.BuildKitConfig, DefaultBuildKitConfig, []Target{BuildKit}},
		{"--engine", h.Engine, "", []Target{Docker}},
	} {
		for _, t := range f.targets {
			if t == target && f.value != f.usual && f.value != "" {
				flags = append(flags, f.name, shellQuote(f.value))
			}
		}
	}
	return flags
}

// Command is the command line that applies the plan of New for a target of this host.
func (h Host) Command(target Target) string { return h.command(target, "--apply") }

// shellQuote makes a word that a shell reads as it is.
func shellQuote(word string) string {
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-=:,@%+", r)
	}) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// DefaultCowshedConfig is the configuration of cowshed serve.
const DefaultCowshedConfig = "/etc/cowshed/config.toml"
