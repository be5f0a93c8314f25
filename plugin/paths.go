package plugin

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

const (
	// SocketDir is where engines look for sockets of plugins.
	SocketDir = "/run/docker/plugins"

	// SpecDir is where engines look for files that name sockets in other places, as they do in
	// /usr/lib/docker/plugins. A socket in SocketDir goes before such a file.
	SpecDir = "/etc/docker/plugins"
)

// engineDrivers are the names that engines know as drivers of their own, so that a plugin of such a name is
// never asked.
var engineDrivers = []string{
	"aufs", "btrfs", "devicemapper", "fuse-overlayfs", "lcow", "overlay", "overlay2", "vfs", "windowsfilter", "zfs",
}

// CheckName reports whether a plugin may have the name: a letter or digit, then letters, digits and any of "_.-", and
// not the name of a driver that engines have themselves. Returns errdefs.ErrInvalidArgument if it may not.
func CheckName(name string) error {
	for _, c := range name {
		if c == ':' { // between the name and the tag of a plugin that the engine manages
			return fault.New(errdefs.ErrInvalidArgument, "plugin name %q has a colon", name)
		}
	}
	if err := cowcommon.CheckID(name); err != nil {
		return fmt.Errorf("plugin name: %w", err)
	}
	if slices.Contains(engineDrivers, name) {
		return fault.New(errdefs.ErrInvalidArgument, "plugin name %q is that of a driver in the engine itself, which would be used instead", name)
	}
	return nil
}

// SocketPath is the path at which engines look for the socket of the plugin called name. Errors: those of
// CheckName.
func SocketPath(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	return filepath.Join(SocketDir, name+".sock"), nil
}

// WriteSpec writes a file in dir, which is SpecDir or a similar directory. Engines read the file to find the plugin
// called name at the given socket. WriteSpec returns the file's path. Returns the errors of CheckName, and
// errdefs.ErrInvalidArgument if the path of the socket is not absolute.
func WriteSpec(dir, name, socket string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	if !filepath.IsAbs(socket) {
		return "", fault.New(errdefs.ErrInvalidArgument, "socket of plugin %s: %q is not an absolute path", name, socket)
	}
	path := filepath.Join(dir, name+".spec")
	if err := writeFile(path, []byte("unix://"+socket+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("spec of plugin %s: %w", name, err)
	}
	return path, nil
}
