package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
)

const containersHelp = `The containers of cowshed serve are layers too. These commands take them: fork, snapshot, rollback, merge, log,
changes, diff, export, promote, usage, limit, mount and unmount. Write a container as

  docker:NAME               a container of Docker 29 and later
  nerdctl:[NAMESPACE/]NAME  a container of nerdctl, in the namespace "default" unless another is named
  cri:ID                    a container of Kubernetes, by its id or the beginning of that
  containerd:NAMESPACE/KEY  any snapshot of containerd, by its key
  fork:NAME                 a fork of a container
  REFERENCE@SNAPSHOT        a snapshot of any of these

Forks, snapshots and comparisons work while a container runs. A rollback or a merge without --live needs a container
that is stopped. The next start of the container sees the new content.

The snapshots of a container go with it. A fork stays until "cowshed rm fork:NAME", or until its --ttl ends. Forks are kept
with the daemon's volumes and not with the layers of the store: "cowshed ls --forks" lists them.

If the store has an image of such a name, such as docker:27, the name stands for the image. "cowshed export" of a container
writes its layers and those of its image, without the configuration of that. "cowshed promote" takes over the configuration.

The commands read the configuration of cowshed serve, for its root and for the sockets of the engines. The daemon may
run, and need not.`

// newContainersTopic is the help about references to containers.
func newContainersTopic() *cobra.Command {
	return &cobra.Command{Use: "containers", Short: "How commands take containers as layers", Long: containersHelp}
}

// addContainers makes a command take references to containers of the daemon.
func addContainers(a *app, cmd *cobra.Command) {
	cmd.Long = strings.TrimPrefix(cmd.Long+"\n\nA layer can be a container or its fork, such as docker:NAME: see cowshed help containers.", "\n\n")
	cmd.Flags().StringVar(&a.configFile, "config", daemon.DefaultConfigFile, "configuration `FILE` of cowshed serve, for containers")
}

// withLayers calls do with the open store that has the named layers. References to containers are those of the daemon's
// volumes, which are a store of their own.
func (a *app) withLayers(cmd *cobra.Command, names []string, do func(*store) error) error {
	var references []string
	for _, name := range names {
		if a.isReference(name) {
			references = append(references, name)
		}
	}
	switch len(references) {
	case 0:
		return a.with(cmd.Context(), do)
	case len(names):
		return a.withContainers(cmd, references, do)
	}
	return usagef("%s: a container and a layer of the store do not go together, since they are in different places", strings.Join(names, ", "))
}

// isReference reports whether a name is a reference to a container.
func (a *app) isReference(name string) bool { return layerstore.IsContainer(a.root, name, a.log) }

// withContainers calls do with the open store of the daemon's volumes. It finds the volumes of the references first.
func (a *app) withContainers(cmd *cobra.Command, references []string, do func(*store) error) (err error) {
	ctx := cmd.Context()
	c, err := a.daemonConfig(cmd)
	if err != nil {
		return err
	}
	if err := a.mountEmbedded(ctx); err != nil {
		return err
	}
	volumes := make(map[string]string)
	for _, name := range references {
		layer := layerref.Layer(name)
		if volumes[layer], err = a.volumeOf(ctx, c, name); err != nil {
			return err
		}
	}
	dir, driver, err := daemon.OpenHome(ctx, c, a.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, driver.Cleanup()) }()
	s := layerstore.New(dir, driver, nil, a.log) // there are no images
	s.Containers = volumes
	s.Origins = &layerstore.Origins{
		Engines: daemon.Resolver(c), Containerd: c.ConnectContainerd,
		VolumeOf: func(ctx context.Context, namespace, key string) (string, error) {
			return daemon.VolumeOf(ctx, c, a.log, namespace, key)
		},
	}
	s.Live.WithProcesses(daemon.ProcessOf(c)).WithContainers(daemon.ContainersOf(c))
	s.Recover(ctx)
	return do(a.storeOf(s))
}

// reachContainerd lets a store write images to the containerd that the daemon's configuration names.
func (a *app) reachContainerd(cmd *cobra.Command, s *store) {
	s.Containerd = func() (*containerdapi.Services, error) {
		c, err := a.daemonConfig(cmd)
		if err != nil {
			return nil, err
		}
		return c.ConnectContainerd()
	}
}

// daemonConfig is the configuration of the daemon, for a command of addContainers.
func (a *app) daemonConfig(cmd *cobra.Command) (daemon.Config, error) {
	return (&daemonFlags{app: a, configFile: a.configFile}).config(cmd)
}

// volumeOf finds the volume that a reference names, without its snapshot.
func (a *app) volumeOf(ctx context.Context, c daemon.Config, name string) (string, error) {
	return layerstore.VolumeOf(ctx, name, daemon.Resolver(c), func(ctx context.Context, namespace, key string) (string, error) {
		return daemon.VolumeOf(ctx, c, a.log, namespace, key)
	})
}

// askVolumeOf is volumeOf for completion: it asks the daemon, and opens nothing where that does not run.
func askVolumeOf(ctx context.Context, c daemon.Config, name string) (string, error) {
	return layerstore.VolumeOf(ctx, name, daemon.Resolver(c), func(ctx context.Context, namespace, key string) (string, error) {
		return daemon.AskVolumeOf(ctx, c, namespace, key)
	})
}
