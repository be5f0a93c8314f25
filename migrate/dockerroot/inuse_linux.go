package dockerroot

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/mounttable"
	"github.com/cowshed/cowshed/migrate/internal/rootuse"
)

// databases are files of bolt, which an engine has locked as long as it runs. A "*" stands for all names.
var databases = []string{
	"volumes/metadata.db",
	"network/files/local-kv.db",
	"buildkit/*.db",
	"content/metadata.db",
	"containerd/daemon/io.containerd.metadata.v1.bolt/meta.db",
}

// InUse implements migrate.Source. An engine has its databases locked. Containers that outlive it have their layers mounted.
// If there are none, the databases stay locked until Close: an engine cannot start then.
func (s *Source) InUse(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fault.Wrap("look for users of", s.root.Path(), err), s.locks.Release())
		}
	}()
	if err := s.checkLocks(ctx); err != nil {
		return err
	}
	finder := rootuse.NewFinder(s.root)
	for _, dir := range s.keeper.uses() {
		if err := s.checkMounts(finder, dir); err != nil {
			return err
		}
	}
	if d, ok := s.keeper.(*datasets); ok {
		if err := d.checkMounts(); err != nil {
			return err
		}
	}
	return rootuse.Mountpoints(s.root, s.driver, s.image)
}

// checkLocks locks all databases. Returns ErrFailedPrecondition if an engine runs.
func (s *Source) checkLocks(ctx context.Context) error {
	for _, pattern := range databases {
		files, err := s.glob(pattern)
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.locks.Flock(s.root, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// glob lists the names of a pattern whose last part may have a "*".
func (s *Source) glob(pattern string) (files []string, err error) {
	dir, last := path.Split(pattern)
	if !strings.Contains(last, "*") {
		return []string{pattern}, nil
	}
	names, err := s.list(path.Clean(dir))
	for _, name := range names {
		if ok, _ := path.Match(last, name); ok { // a constant pattern
			files = append(files, dir+name)
		}
	}
	return files, err
}

// checkMounts returns ErrFailedPrecondition if something in a directory is mounted somewhere.
func (s *Source) checkMounts(finder *rootuse.Finder, name string) error {
	dir := s.root.Join(name)
	uses, err := finder.Uses(name)
	if err != nil {
		return err
	}
	// Docker mounts the driver's directory on itself, and does not unmount it when it is killed. That uses no layer.
	uses = slices.DeleteFunc(uses, func(u mounttable.Use) bool { return u.Layer == "" && u.Mountpoint == dir })
	if len(uses) == 0 {
		return nil
	}
	has, err := s.namesIn(name)
	if err != nil {
		return err
	}
	uses = slices.DeleteFunc(uses, func(u mounttable.Use) bool { return isElsewhere(u.Layer, name, has) })
	return mounttable.InUse("a layer in "+dir, uses)
}

// namesIn are the IDs and short names of the layers in a directory.
func (s *Source) namesIn(dir string) (map[string]bool, error) {
	has := map[string]bool{}
	for _, name := range []string{dir, path.Join(dir, linkDir)} {
		names, err := s.list(name)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			has[n] = true
		}
	}
	return has, nil
}

// isElsewhere reports whether the path of an overlay's layer is that of another root's layer. The kernel tells such paths
// only, whose ends are the same in all roots. IDs and short names are not, nor are other names in the directory dir.
func isElsewhere(layer, dir string, has map[string]bool) bool {
	named := false
	for _, below := range strings.Split(layer, "/"+dir+"/")[1:] {
		switch name, _, _ := strings.Cut(below, "/"); {
		case name == linkDir: // all roots have it
		case has[name]:
			return false
		default:
			named = true
		}
	}
	for name := range strings.SplitSeq(layer, "/") {
		if isLayerID(name) || isLink(name) {
			if has[name] {
				return false
			}
			named = true
		}
	}
	return named
}

// isLink reports whether name is a short name of a layer.
func isLink(name string) bool {
	return len(name) == 26 && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == ""
}
