package snapshotter

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// partialName is the directory in the snapshotter's root that lists partial volumes.
const partialName = "partial"

// partials is a directory with an empty file for each volume that may hold a part of a layer. The file is made before a layer is
// applied to the volume, and removed when all of the layer is there. So a process that ends meanwhile leaves it. The directory is
// made with the first file: a start needs no space for it.
type partials struct {
	dir string
	// ordered says that the volumes are on the same filesystem, which makes changes durable in their order. Then no change of the
	// directory needs a sync of its own.
	ordered bool

	mu   sync.Mutex
	made bool // the directory is there for good
}

// orderer is a Backend whose filesystem makes changes durable in their order.
type orderer interface {
	// Orders reports whether a change in the directory dir survives a power cut if a later change of a volume does. The contents of
	// files have no such order.
	Orders(dir string) (bool, error)
}

func openPartials(root string, backend cowcommon.Backend) (*partials, error) {
	p := &partials{dir: filepath.Join(root, partialName)}
	o, ok := cowcommon.As[orderer](backend)
	if !ok {
		return p, nil
	}
	var err error
	p.ordered, err = o.Orders(root)
	return p, err
}

// makeDir makes the directory, unless it is there.
func (p *partials) makeDir() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.made {
		return nil
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !p.ordered {
		if err := syncdir.Sync(filepath.Dir(p.dir)); err != nil {
			return err
		}
	}
	p.made = true
	return nil
}

// add lists a volume, so that a power cut which leaves later changes of the volume leaves that too.
func (p *partials) add(volume string) error {
	if err := p.makeDir(); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(p.dir, volume), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), p.sync())
}

// forget is the reverse of add.
func (p *partials) forget(volume string) error {
	err := os.Remove(filepath.Join(p.dir, volume))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, p.sync())
}

func (p *partials) sync() error {
	if p.ordered {
		return nil
	}
	return syncdir.Sync(p.dir)
}

func (p *partials) all() (volumes []string, err error) {
	dir, err := os.Open(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// findPartial finds the volumes that an earlier process has left with a part of a layer. Their snapshots cannot be committed.
func (s *Snapshotter) findPartial(known *inventory) error {
	volumes, err := s.partial.all()
	if err != nil {
		return err
	}
	for _, volume := range volumes {
		if v, there := known.volumes[volume]; !known.isThere(volume) || there && v.Sealed {
			if err := s.partial.forget(volume); err != nil {
				s.log.Warn("snapshotter: the mark of a layer that was being applied is left", "volume", volume, "error", err)
			}
			continue
		}
		s.spoil(volume)
		if owner, owned := known.owners[volume]; owned {
			s.log.Warn("snapshotter: snapshot holds a part of a layer, since the process ended while that was applied: it cannot be committed, remove it",
				"key", owner.Name, "volume", volume)
		}
	}
	return nil
}

// spoil notes that a volume holds a part of a layer.
func (s *Snapshotter) spoil(volume string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spoiled[volume] = struct{}{}
}

// forgetSpoiled notes that a volume is destroyed, which may have held a part of a layer.
func (s *Snapshotter) forgetSpoiled(volume string) {
	s.mu.Lock()
	_, spoiled := s.spoiled[volume]
	delete(s.spoiled, volume)
	s.mu.Unlock()
	if !spoiled {
		return
	}
	if err := s.partial.forget(volume); err != nil {
		s.log.Warn("snapshotter: the mark of a deleted volume stays until the next start", "volume", volume, "error", err)
	}
}
