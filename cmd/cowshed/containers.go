package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/snapshotter"
)

const containersHelp = `The containers of cowshed serve are layers too. These commands take them: fork, snapshot, rollback, merge, log,
changes, diff, export, usage, limit, mount and unmount. Write a container as

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
writes its layers and those of its image, without the configuration of that.

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

// isReference reports whether a name is a reference to a container. The name of an image in the store, such as docker:27, is
// none.
func (a *app) isReference(name string) bool {
	if !layerref.Is(name) {
		return false
	}
	_, err := image.NewStore(filepath.Join(a.root, imagesDir), nil, a.log).Get(name)
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err)
}

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
	moments := live.New(driver.Backend(), live.Dir(dir, driver.String(), driver.Backend()), a.log).WithProcesses(daemon.ProcessOf(c))
	if err := moments.Recover(ctx); err != nil {
		a.log.Warn("interrupted steps are ended later", "error", err)
	}
	images := image.NewStore(filepath.Join(dir, imagesDir), driver, a.log).WithBase(moments.Base) // there are no images
	return do(&store{root: dir, driver: driver, images: images, live: moments, log: a.log, quiet: a.quiet, containers: volumes})
}

// daemonConfig is the configuration of the daemon, for a command of addContainers.
func (a *app) daemonConfig(cmd *cobra.Command) (daemon.Config, error) {
	return (&daemonFlags{app: a, configFile: a.configFile}).config(cmd)
}

// resolver finds the containers of the engines that the daemon's configuration names.
func resolver(c daemon.Config) layerref.Resolver {
	return layerref.Resolver{DockerAPI: c.DockerAPI, Containerd: c.ContainerdAddress}
}

// volumeOf finds the volume that a reference names, without its snapshot.
func (a *app) volumeOf(ctx context.Context, c daemon.Config, name string) (string, error) {
	ref, err := layerref.Parse(name)
	if err != nil {
		return "", err
	}
	if ref.Kind == layerref.Fork {
		return ref.Name, checkFork(ref.Name)
	}
	answer, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	namespace, key, err := resolver(c).Snapshot(answer, ref)
	if err != nil {
		return "", err
	}
	return daemon.VolumeOf(ctx, c, a.log, namespace, key)
}

// checkFork makes sure that a fork of a container can have a name: it is in the snapshotter's home.
func checkFork(name string) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	if snapshotter.IsVolumeName(name) {
		return failf(errdefs.ErrInvalidArgument, "layer name %s is of the form that volumes of containers have; choose another", name)
	}
	return checkNewLayer(name)
}

// containerLayer finds the volume that a reference names: that of a container, a fork or a snapshot. The volume's own name is
// good too.
func (s *store) containerLayer(ctx context.Context, name string) (cowcommon.Volume, error) {
	if !layerref.Is(name) {
		return s.driver.Backend().Stat(ctx, name)
	}
	layer := layerref.Layer(name)
	v, err := s.driver.Backend().Stat(ctx, s.containers[layer])
	if err != nil || layer == name {
		return v, err
	}
	return s.live.Find(ctx, v.Name+name[len(layer):])
}

// isContainer reports whether a volume is the daemon's: that of a container or an image, and not a fork.
func (s *store) isContainer(v cowcommon.Volume) bool {
	return s.containers != nil && snapshotter.IsVolumeName(v.Name)
}

// shown is the name of a layer as commands take it.
func (s *store) shown(name string) string {
	if s.containers == nil || live.IsMoment(name) {
		return name
	}
	for reference, volume := range s.containers {
		if volume == name {
			return reference
		}
	}
	if snapshotter.IsVolumeName(name) {
		return name
	}
	return string(layerref.Fork) + ":" + name
}
