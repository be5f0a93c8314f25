package snapshotter

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Lost is a volume that the metadata did not know at the start, and did not call doomed either. It may be the only copy
// of somebody's data. So it is kept until Restore or Discard decides about it.
type Lost struct {
	Volume string `json:"volume"`
	// Key is the key of the lost snapshot, as far as it can be known. It is "" for a committed snapshot of which only
	// the volume is left.
	Key     string    `json:"key,omitempty"`
	Made    string    `json:"made_for,omitempty"` // the key that it was prepared with, as far as its name has it
	Sealed  bool      `json:"sealed"`
	Parent  string    `json:"parent_volume,omitempty"`
	Created time.Time `json:"created"`

	was *wasSnapshot
}

// wasSnapshot is the record of a snapshot whose volume was gone, or a record in a damaged file.
type wasSnapshot struct {
	Key    string            `json:"key"`
	Kind   snapshots.Kind    `json:"kind"`
	Parent string            `json:"parent,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Usage  snapshots.Usage   `json:"usage"`
}

func putGone(tx *bolt.Tx, volume string, info snapshots.Info, usage snapshots.Usage) error {
	text, err := json.Marshal(wasSnapshot{info.Name, info.Kind, info.Parent, visible(info).Labels, usage})
	if err != nil {
		return err
	}
	return gone.put(tx, volume, string(text))
}

// setLost notes a lost volume. was is its entry in the ledger, "" if it has none.
func (s *Snapshotter) setLost(v cowcommon.Volume, was string) {
	made, whole := KeyOfVolume(v.Name)
	l := Lost{Volume: v.Name, Made: made, Sealed: v.Sealed, Parent: v.Parent, Created: v.Created}
	if whole && !v.Sealed {
		l.Key = made
	}
	if was != "" {
		l.was = new(wasSnapshot)
		if err := json.Unmarshal([]byte(was), l.was); err != nil {
			l.was = nil
			s.log.Warn("snapshotter: the record of a lost volume cannot be read", "volume", v.Name, "error", err)
		} else {
			l.Key = l.was.Key
		}
	}
	s.log.Warn("snapshotter: a volume is lost: the metadata does not know it", "volume", l.Volume, "key", l.Key, "made for", l.Made, "sealed", l.Sealed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost[v.Name] = l
}

// Lost lists the volumes that are lost, by their names.
func (s *Snapshotter) Lost() []Lost {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Lost, 0, len(s.lost))
	for _, l := range s.lost {
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b Lost) int { return cmp.Compare(a.Volume, b.Volume) })
	return all
}

// Restore makes a lost volume a snapshot again: a committed one if it is sealed, otherwise an active one. Its parent
// is the snapshot that the volume was cloned from, if that is not lost too. key "" stands for the known key.
//
// Returns errdefs.ErrNotFound if no such volume is lost, errdefs.ErrInvalidArgument if a key has to be given, and
// errdefs.ErrAlreadyExists if another snapshot has the key.
func (s *Snapshotter) Restore(ctx context.Context, volume, key string) error {
	return wrap("restore lost volume", volume, s.restore(ctx, volume, key))
}

func (s *Snapshotter) restore(ctx context.Context, volume, key string) error {
	l, err := s.lostVolume(volume)
	if err != nil {
		return err
	}
	if key == "" {
		key = l.Key
	}
	if key == "" {
		return fault.New(errdefs.ErrInvalidArgument, "its former key is unknown: give a key")
	}
	if err := checkKey(key); err != nil {
		return err
	}
	v, err := s.backend.Stat(ctx, volume)
	if err != nil {
		return err
	}
	was := l.was
	if was == nil {
		was = &wasSnapshot{Kind: snapshots.KindActive, Usage: unmeasured}
		if v.Sealed {
			was.Kind = snapshots.KindCommitted
		}
	}
	base, err := s.baseOf(ctx, v)
	if err != nil {
		return err
	}
	again := false
	err = s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if r, err := lookup(ctx, key); again && err == nil && r.volume == volume {
			return nil // by the transaction before this one
		}
		again = true
		if err := s.checkLost(ctx, tx, volume); err != nil {
			return err
		}
		parent, err := parentOf(ctx, base, was.Parent)
		if err != nil {
			return err
		}
		return errors.Join(insert(ctx, key, parent, volume, was), gone.del(tx, volume))
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.lost, volume)
	s.mu.Unlock()
	if v.Sealed && was.Kind == snapshots.KindActive {
		return s.thaw(ctx, key, v)
	}
	return nil
}

// parentOf finds the committed snapshot of the volume base, "" if there is none. ctx carries a transaction.
func parentOf(ctx context.Context, base, named string) (parent string, err error) {
	if named != "" {
		if r, err := lookup(ctx, named); err == nil && r.info.Kind == snapshots.KindCommitted {
			return named, nil
		}
	}
	if base == "" {
		return "", nil
	}
	err = walkInfo(ctx, func(info snapshots.Info) {
		if info.Kind == snapshots.KindCommitted && info.Labels[VolumeLabel] == base {
			parent = info.Name
		}
	})
	return parent, err
}

// insert makes a snapshot of a volume that is there. ctx carries a transaction.
func insert(ctx context.Context, key, parent, volume string, was *wasSnapshot) error {
	if err := checkAbsent(ctx, key); err != nil {
		return err
	}
	labels := snapshots.WithLabels(withVolume(was.Labels, volume))
	if was.Kind != snapshots.KindCommitted {
		_, err := storage.CreateSnapshot(ctx, was.Kind, key, parent, labels)
		return err
	}
	active := "cowshed-restore-" + rand.Text()
	if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, active, parent, labels); err != nil {
		return err
	}
	_, err := storage.CommitActive(ctx, active, key, was.Usage, labels, snapshots.WithParent(parent))
	return err
}

// Discard destroys a lost volume. Returns errdefs.ErrNotFound if no such volume is lost, and
// errdefs.ErrFailedPrecondition if it is in use; Cleanup then destroys it later.
func (s *Snapshotter) Discard(ctx context.Context, volume string) error {
	if _, err := s.lostVolume(volume); err != nil {
		return wrap("discard lost volume", volume, err)
	}
	again := false
	err := s.change(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if again && doomed.has(tx, volume) {
			return nil // by the transaction before this one
		}
		again = true
		if err := s.checkLost(ctx, tx, volume); err != nil {
			return err
		}
		return errors.Join(gone.del(tx, volume), doomed.put(tx, volume, ""))
	})
	if err != nil {
		return wrap("discard lost volume", volume, err)
	}
	s.mu.Lock()
	delete(s.lost, volume)
	s.mu.Unlock()
	if err := s.removeVolume(ctx, volume); err != nil {
		s.doom(volume)
		return wrap("discard lost volume", volume, err)
	}
	s.noteDestroyed(volume)
	return nil
}

func (s *Snapshotter) lostVolume(volume string) (Lost, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.lost[volume]
	if !ok {
		return Lost{}, notLost()
	}
	return l, nil
}

func notLost() error { return fault.New(errdefs.ErrNotFound, "no such volume is lost") }

// checkLost returns errdefs.ErrNotFound if a volume is not lost any more, since another Restore or Discard has decided about it. ctx
// carries the transaction. Until the other has taken the volume off the list, its transaction tells.
func (s *Snapshotter) checkLost(ctx context.Context, tx *bolt.Tx, volume string) error {
	if _, err := s.lostVolume(volume); err != nil {
		return err
	}
	decided := doomed.has(tx, volume)
	err := walkInfo(ctx, func(info snapshots.Info) { decided = decided || info.Labels[VolumeLabel] == volume })
	if err == nil && decided {
		err = notLost()
	}
	return err
}

// walkInfo calls see for each snapshot. ctx carries a transaction.
func walkInfo(ctx context.Context, see func(info snapshots.Info)) error {
	err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
		see(info)
		return nil
	})
	if errdefs.IsNotFound(err) { // the metadata has never held any
		return nil
	}
	return err
}
