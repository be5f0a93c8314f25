package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/bindmount"
	"github.com/cowshed/cowshed/internal/layerstore"
)

func newMountCommand(a *app) *cobra.Command {
	readOnly := false
	cmd := &cobra.Command{
		Use:   "mount NAME [TARGET]",
		Short: "Show a layer's tree at a directory",
		Long: `Mounts a layer on the directory TARGET, or on one of its own in the store, and prints the path. TARGET is
made if its parent directory exists. The layer stays mounted until cowshed unmount, or until the machine stops.
While it is mounted, it is not removed, and not sealed when another layer is made from it.

Sealed layers, layers of images and containers are mounted read-only. A container has no TARGET, since unmount could not tell
that mount from its engine's.`,
		Example: `  cowshed mount web /mnt/web
  dir=$(cowshed mount web) && chroot "$dir" sh`,
		Args: usageArgs(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			target := ""
			if len(args) > 1 {
				target = args[1]
			}
			return a.withLayers(cmd, args[:1], func(s *store) error { return s.mount(cmd, args[0], target, readOnly) })
		},
		ValidArgsFunction: completeLayers(a, 1, true),
	}
	addContainers(a, cmd)
	cmd.Flags().BoolVarP(&readOnly, "read-only", "r", false, "mount it so that nothing can be changed")
	return cmd
}

func (s *store) mount(cmd *cobra.Command, name, target string, readOnly bool) (err error) {
	v, err := s.Layer(cmd.Context(), name)
	if err != nil {
		return err
	}
	if target != "" && s.IsContainer(v) {
		return failf(errdefs.ErrInvalidArgument, "container %s is mounted on a directory of Cowshed alone: leave out %s", s.Shown(v.Name), target)
	}
	user, err := s.UserOf(v)
	if err != nil {
		return err
	}
	if user != "" || v.Sealed || s.IsContainer(v) {
		readOnly = true
	}
	if s.ReadOnly && !readOnly {
		return failf(cowcommon.ErrReadOnly, "layer %s cannot be mounted to be written to, since the filesystem is read-only (see cowshed doctor); "+
			"add --read-only", layerstore.ShortName(v.Name))
	}
	var made bool
	if target == "" {
		target, made, err = s.makeOwnTarget(cmd.Context(), v)
	} else {
		target, made, err = makeTarget(target)
	}
	if err != nil {
		return err
	}
	if err := s.bind(cmd.Context(), v, target, readOnly); err != nil {
		if made {
			_ = os.Remove(target)
		}
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), target)
	return err
}

// makeTarget makes the directory to mount on if it is not there, and returns its absolute path.
func makeTarget(target string) (_ string, made bool, err error) {
	target, err = filepath.Abs(target)
	if err != nil {
		return "", false, err
	}
	err = os.Mkdir(target, 0o755)
	switch {
	case errors.Is(err, fs.ErrExist):
		return target, false, checkTarget(target)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "", false, failf(errdefs.ErrNotFound, "there is no directory %s to make %s in", filepath.Dir(target), filepath.Base(target))
	}
	return target, err == nil, err
}

// checkTarget returns an error unless the target is a directory.
func checkTarget(target string) error {
	info, err := os.Stat(target)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) { // or a link that leads nowhere
		return failf(errdefs.ErrInvalidArgument, "%s is not a directory", target)
	}
	return err
}

// makeOwnTarget makes the directory that a layer is mounted on if no other is named.
func (s *store) makeOwnTarget(ctx context.Context, v cowcommon.Volume) (target string, made bool, err error) {
	target = filepath.Join(s.Root, mountsDir, v.Name)
	if err = os.MkdirAll(filepath.Dir(target), 0o711); err == nil {
		err = os.Mkdir(target, 0o700)
	}
	if errors.Is(err, syscall.EROFS) {
		return "", false, failf(cowcommon.ErrReadOnly, "no mount point can be made in %s, since the filesystem is read-only (see cowshed doctor); "+
			"name a TARGET elsewhere", filepath.Dir(target))
	}
	if errors.Is(err, fs.ErrExist) {
		targets, err := s.Targets(ctx, v.Name)
		if err == nil && contains(targets, target) {
			err = failf(errdefs.ErrAlreadyExists, "layer %s is mounted on %s already", layerstore.ShortName(v.Name), target)
		}
		if err == nil {
			err = checkTarget(target)
		}
		return target, false, err
	}
	return target, err == nil, err
}

func (s *store) bind(ctx context.Context, v cowcommon.Volume, target string, readOnly bool) error {
	return s.Mounted(ctx, v.Name, func(dir string) error { return bindmount.Bind(dir, target, readOnly) })
}

func contains(paths []string, path string) bool {
	for _, p := range paths {
		if p == path {
			return true
		}
	}
	return false
}

func newUnmountCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "unmount NAME|TARGET",
		Aliases: []string{"umount"},
		Short:   "Undo mount",
		Long: `Unmounts a layer: from the directory TARGET, or from wherever it is mounted if it is named. A name that has
a slash in it is a directory. The directory TARGET stays, also where cowshed mount has made it. A container that is named
stays mounted where its engine has mounted it: only the directory that cowshed mount has made for it is unmounted.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error { return s.unmount(cmd, args[0]) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	addContainers(a, cmd)
	return cmd
}

func (s *store) unmount(cmd *cobra.Command, what string) error {
	name, targets, err := s.toUnmount(cmd, what)
	if err != nil {
		return err
	}
	if s.IsContainer(cowcommon.Volume{Name: name}) { // perhaps its engine has mounted another overlay of it since
		if err := s.unmountTargets(targets); err != nil {
			return err
		}
		if err := s.Mounted(cmd.Context(), name, func(string) error { return nil }); err != nil {
			s.Log.Info("the driver removes its own mount later", "name", what, "reason", err)
		}
		return nil
	}
	// The driver's own mount of a shared root goes with the last of the others.
	return s.Mounted(cmd.Context(), name, func(string) error { return s.unmountTargets(targets) })
}

func (s *store) unmountTargets(targets []string) error {
	for _, target := range targets {
		if err := bindmount.Unmount(target); err != nil {
			return err
		}
		if filepath.Dir(target) == filepath.Join(s.Root, mountsDir) {
			if err := os.Remove(target); err != nil && !errors.Is(err, syscall.EROFS) {
				return err
			}
		}
	}
	return nil
}

// toUnmount finds the mount points that are meant, and the name of the layer there.
func (s *store) toUnmount(cmd *cobra.Command, what string) (name string, targets []string, err error) {
	if !strings.Contains(what, "/") || s.Containers != nil {
		v, err := s.Layer(cmd.Context(), what)
		if err != nil {
			return "", nil, err
		}
		targets, err := s.mountedOn(cmd.Context(), v)
		if err == nil && len(targets) == 0 {
			err = failf(errdefs.ErrNotFound, "layer %s is not mounted", layerstore.ShortName(s.Shown(v.Name)))
		}
		return v.Name, targets, err
	}

	target, err := filepath.Abs(what)
	if err != nil {
		return "", nil, err
	}
	name, err = bindmount.Named(target, s.Home(), s.Driver.String())
	if err != nil {
		return "", nil, err
	}
	// Another filesystem may have something of the same name.
	targets, err = s.Targets(cmd.Context(), name)
	if err != nil {
		return "", nil, err
	}
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return "", nil, err
	}
	if !contains(targets, real) {
		return "", nil, failf(errdefs.ErrNotFound, "the mount on %s is no layer of this store", target)
	}
	return name, []string{real}, nil
}

// mountedOn lists the mount points of a layer. Of a container it is the directory that mount has made alone: the others are its
// engine's. The directory stays mounted when the engine mounts the container's root anew, which then is another filesystem.
func (s *store) mountedOn(ctx context.Context, v cowcommon.Volume) ([]string, error) {
	if !s.IsContainer(v) {
		return s.Targets(ctx, v.Name)
	}
	target := filepath.Join(s.Root, mountsDir, v.Name)
	is, err := mountinfo.Mounted(target)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !is {
		return nil, nil
	}
	return []string{target}, err
}
