package tocontainerd

import (
	"context"
	"log/slog"
	"regexp"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Moby is the namespace in which Docker keeps its images and containers.
const Moby = "moby"

// DefaultSnapshotter is the name by which containerd knows Cowshed, if nobody has chosen another.
const DefaultSnapshotter = "cowshed"

// Options says where a Target makes things.
type Options struct {
	// Address is the path of containerd's socket.
	Address string
	// Namespace is one of containerd's.
	Namespace string
	// Snapshotter is containerd's name of Cowshed. "": DefaultSnapshotter.
	Snapshotter string
	// DockerRoot is the root of the Docker Engine, whose directory "containers" has the containers of the old root. It is
	// needed for containers in namespace Moby.
	DockerRoot string
	// Idle returns errdefs.ErrFailedPrecondition while the Docker Engine works on DockerRoot. nil: there is no engine.
	Idle func(ctx context.Context) error
	// StateDir is a directory that keeps the files that Commit replaces, until the migration is finished or undone. It
	// belongs to one migration, and its path gives the migration's lease its name.
	StateDir string
	// Logger gets a note if something is done in another way than the best. nil: slog.Default.
	Logger *slog.Logger
}

var validNamespace = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)

// complete fills in defaults. Returns errdefs.ErrInvalidArgument if an option is malformed.
func (o *Options) complete() error {
	if o.Snapshotter == "" {
		o.Snapshotter = DefaultSnapshotter
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case !validNamespace.MatchString(o.Namespace) || len(o.Namespace) > 76:
		return fault.New(errdefs.ErrInvalidArgument, "namespace %q", o.Namespace)
	case o.StateDir == "":
		return fault.New(errdefs.ErrInvalidArgument, "a directory for the state is needed")
	}
	return nil
}
