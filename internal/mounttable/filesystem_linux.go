package mounttable

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/overlaysource"
)

// Filesystem is one whose mounts are looked for. It is safe for concurrent use.
type Filesystem struct {
	device uint64 // of the superblock, as statmount(2) and mountinfo have it; 0: any

	// others are the mounts of other filesystems, overlays with their layers, by unique id. A mount never changes its
	// filesystem, and its id is not used again. The map is replaced, never changed.
	others atomic.Pointer[map[uint64]*overlay]
	old    atomic.Bool // the kernel cannot list mounts (before Linux 6.12, or without privilege)

	noSources bool // the kernel's list is taken to have no sources, as before Linux 6.13
}

// New returns the filesystem that the file open as fd is on. Where its mount cannot be seen from here, it stands
// for all filesystems.
func New(fd int) (*Filesystem, error) {
	device, err := deviceOf(fd)
	if err != nil {
		return nil, fmt.Errorf("device of a filesystem: %w", err)
	}
	return &Filesystem{device: device}, nil
}

// ByProc returns the same filesystem, whose mounts are then found by /proc alone, as on kernels before 6.12.
func (f *Filesystem) ByProc() *Filesystem {
	proc := &Filesystem{device: f.device}
	proc.old.Store(true)
	return proc
}

// UsesOf lists the mounts of a directory, of everything below it, and of overlays that it is a layer of, in all mount
// namespaces. dir is its path from the top of the filesystem. names reports whether the source of an overlay of Cowshed
// names the directory. It is nil if this is not known.
//
// The kernel does not tell the layers of an overlay, only by which paths they were given. They are compared with the
// mounts of the filesystem in the same namespace, and in that of this process with dir itself. The end of a path that is the
// end of dir counts too, unless names can tell. Mounts that are in no namespace cannot be found, such as those below a detached mount.
func (f *Filesystem) UsesOf(dir string, names func(overlaysource.Source) bool) ([]Use, error) {
	t := target{dir: dir, names: names, ownSources: sync.OnceValue(ownSources)}
	if !f.old.Load() {
		uses, err := f.listed(t)
		if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EPERM) &&
			!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EACCES) {
			return uses, err
		}
		f.old.Store(true)
	}
	return f.inProc(t)
}

// listed is UsesOf by the kernel's list of mounts. It asks about mounts of other filesystems only once.
func (f *Filesystem) listed(t target) ([]Use, error) {
	namespaces, err := namespaces()
	if err != nil {
		return nil, err
	}
	known := map[uint64]*overlay{}
	if others := f.others.Load(); others != nil {
		known = *others
	}
	found := map[uint64]*overlay{} // that were not known
	total := 0
	var uses []Use
	var ids []uint64
	buffer := newStatmountBuffer()
	for _, n := range namespaces {
		if ids, err = n.all(ids); err != nil {
			if errors.Is(err, unix.ENOENT) { // the namespace is gone
				continue
			}
			return nil, err
		}
		total += len(ids)
		s := seen{namespace: n}
		for _, id := range ids {
			if o, ok := known[id]; ok {
				s.addOverlay(o)
				continue
			}
			if buffer, err = f.look(&s, id, found, buffer); err != nil && !errors.Is(err, unix.ENOENT) { // else it was unmounted
				return nil, err
			}
		}
		uses = append(uses, s.usesOf(t)...)
	}
	if len(found) > 0 {
		f.remember(known, found, total)
	}
	return uses, nil
}

// look asks about a mount, and adds it to those that were seen. found gets overlays, and nil for mounts of other filesystems.
func (f *Filesystem) look(s *seen, id uint64, found map[uint64]*overlay, buffer mountStat) (mountStat, error) {
	buffer, err := s.namespace.stat(id, statmountSuperblock|statmountRoot|statmountPoint, buffer)
	if err != nil {
		return buffer, err
	}
	switch {
	case buffer.magic() == unix.OVERLAYFS_SUPER_MAGIC:
		o := &overlay{point: buffer.point(), device: buffer.device()}
		if buffer, err = s.namespace.stat(id, statmountOptions|statmountSource, buffer); err != nil {
			return buffer, err
		}
		if !buffer.has(statmountOptions) {
			return buffer, unix.ENOSYS
		}
		o.layers = LayersOf(buffer.options())
		if buffer.has(statmountSource) && !f.noSources {
			o.setSource(buffer.source())
		}
		found[id] = o
		s.addOverlay(o)
	case f.is(buffer.device()):
		s.mounts = append(s.mounts, mount{root: buffer.root(), point: buffer.point()})
	default:
		found[id] = nil
	}
	return buffer, nil
}

// remember keeps found mounts, and forgets known mounts once most of them are gone.
func (f *Filesystem) remember(known, found map[uint64]*overlay, total int) {
	if len(known) < 2*total+1024 {
		merged := maps.Clone(known)
		maps.Copy(merged, found)
		found = merged
	}
	f.others.Store(&found)
}

func (f *Filesystem) is(device uint64) bool { return f.device == 0 || f.device == device }

// mount is a mount of the filesystem.
type mount struct {
	root  string // the path of the mounted directory from the top of the filesystem
	point string
}

// seen has the mounts of one mount namespace.
type seen struct {
	namespace namespace
	mounts    []mount
	overlays  []*overlay
}

func (s *seen) addOverlay(o *overlay) {
	if o != nil {
		s.overlays = append(s.overlays, o)
	}
}

func (s *seen) usesOf(t target) (uses []Use) {
	for _, m := range s.mounts {
		if within(m.root, t.dir) {
			uses = append(uses, Use{Mountpoint: m.point, namespace: s.namespace.inode})
		}
	}
	for _, o := range s.overlays {
		if layer, ok := s.layerIn(o, t); ok {
			uses = append(uses, Use{Mountpoint: o.point, Layer: layer, namespace: s.namespace.inode})
		}
	}
	return uses
}

// isWithin reports whether a mount of the namespace shows that a layer of an overlay is dir or something below it.
func (s *seen) isWithin(layer, dir string) bool {
	for _, m := range s.mounts {
		if within(layer, m.point) && within(join(m.root, layer[len(m.point):]), dir) {
			return true
		}
	}
	return false
}

// looksWithin reports whether a path names dir or something below it. The path may be meant in another namespace, or
// relative to an unknown directory. It is compared by its last two names, or a relative path by its last name alone.
func looksWithin(path, dir string) bool {
	parent, name := dir[:strings.LastIndexByte(dir, '/')], dir[strings.LastIndexByte(dir, '/'):]
	end := parent[strings.LastIndexByte(parent, '/')+1:] + name
	if !strings.HasPrefix(path, "/") && (path == name[1:] || strings.HasPrefix(path, name[1:]+"/")) {
		return true
	}
	return strings.Contains("/"+path+"/", "/"+strings.TrimPrefix(end, "/")+"/")
}

// within reports whether a path is dir or below it.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/' || dir == "/")
}

func join(root, rest string) string {
	return strings.TrimSuffix(root, "/") + "/" + strings.TrimPrefix(rest, "/")
}
