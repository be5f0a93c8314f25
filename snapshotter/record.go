package snapshotter

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// VolumeLabel is the label that names the volume of a snapshot, in metadata.db only: clients neither see nor set it. A
// view of a committed snapshot has no such label, since it shows the volume of its parent.
const VolumeLabel = "cowshed/volume"

// Volume names begin with the purpose of the volume.
const (
	snapshotPrefix  = "s-" // an active snapshot, which may be committed
	emptyViewPrefix = "v-" // a view without a parent: always empty
)

// randomLength is the number of characters of rand.Text in a volume name.
const randomLength = 26

// newVolumeName makes a name that no volume has had, and that says whose the volume is.
func newVolumeName(prefix, key string) string { return prefix + rand.Text() + "." + encodeKey(key) }

// IsVolumeName reports whether a name is of the form that the snapshotter gives to volumes. No fork has such a name.
func IsVolumeName(name string) bool {
	random, ok := strings.CutPrefix(name, snapshotPrefix)
	if !ok {
		random, ok = strings.CutPrefix(name, emptyViewPrefix)
	}
	random, _, _ = strings.Cut(random, ".")
	return ok && len(random) == randomLength && strings.Trim(random, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// KeyOfVolume returns the key in a volume's name. It is the key with which a snapshot was prepared, or the name to
// which a snapshot in use was committed. If whole is false, the key is cut off or not known.
func KeyOfVolume(volume string) (key string, whole bool) {
	_, encoded, ok := strings.Cut(volume, ".")
	if !ok {
		return "", false
	}
	return decodeKey(encoded)
}

// maxEncodedKey keeps names of volumes short enough for datasets. The keys of containerd's containers fit.
const maxEncodedKey = 88

// encodeKey makes a key part of a volume's name. A byte that a name cannot have is "_" and two hexadecimal digits; a
// "_" at the end says that the key goes on. A colon is such a byte too: it separates the layers of an overlay.
func encodeKey(key string) string {
	var b strings.Builder
	for i := range len(key) {
		next := key[i : i+1]
		if c := key[i]; !strings.ContainsRune(plainInNames, rune(c)) {
			next = fmt.Sprintf("_%02x", c)
		}
		if b.Len()+len(next) > maxEncodedKey {
			return b.String() + "_"
		}
		b.WriteString(next)
	}
	return b.String()
}

const plainInNames = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."

// decodeKey is the reverse of encodeKey. whole is false if the key goes on, or if this is none.
func decodeKey(encoded string) (key string, whole bool) {
	encoded, goesOn := strings.CutSuffix(encoded, "_")
	var b strings.Builder
	for rest := encoded; rest != ""; {
		if rest[0] != '_' {
			b.WriteByte(rest[0])
			rest = rest[1:]
			continue
		}
		if len(rest) < 3 {
			return b.String(), false
		}
		c, err := strconv.ParseUint(rest[1:3], 16, 8)
		if err != nil {
			return b.String(), false
		}
		b.WriteByte(byte(c))
		rest = rest[3:]
	}
	return b.String(), !goesOn && b.Len() > 0
}

// record is a snapshot's entry in the metadata.
type record struct {
	id     string
	info   snapshots.Info // as clients see it
	usage  snapshots.Usage
	volume string // "" if it has none of its own

	parentVolume string // "" if it has no parent
}

// tree is the volume that holds the snapshot's tree.
func (r *record) tree() string {
	if r.volume == "" {
		return r.parentVolume
	}
	return r.volume
}

// read looks up a snapshot, in a transaction of its own, once it has been made.
func (s *Snapshotter) read(ctx context.Context, key string) (r record, err error) {
	if err := s.awaitMade(ctx, key); err != nil {
		return record{}, err
	}
	err = s.look(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		r, err = lookup(ctx, key)
		return err
	})
	return r, err
}

// lookup looks up a snapshot. ctx carries a transaction.
func lookup(ctx context.Context, key string) (record, error) {
	var r record
	var err error
	if r.id, r.info, r.usage, err = storage.GetInfo(ctx, key); err != nil {
		return record{}, err
	}
	r.volume = r.info.Labels[VolumeLabel]
	r.info = visible(r.info)
	if r.info.Parent != "" {
		_, parent, _, err := storage.GetInfo(ctx, r.info.Parent)
		if err != nil {
			return record{}, fmt.Errorf("parent %q: %w", r.info.Parent, err)
		}
		r.parentVolume = parent.Labels[VolumeLabel]
	}
	return r, nil
}

// parentRecord looks up the record of a new snapshot's parent. ctx carries a transaction.
func parentRecord(ctx context.Context, parent string) (record, error) {
	r, err := lookup(ctx, parent)
	if err != nil {
		return record{}, fmt.Errorf("parent %q: %w", parent, err)
	}
	if r.info.Kind != snapshots.KindCommitted {
		return record{}, fault.New(errdefs.ErrInvalidArgument, "parent %q is not committed", parent)
	}
	if r.volume == "" {
		return record{}, fault.New(errdefs.ErrFailedPrecondition, "parent %q has no volume", parent)
	}
	return r, nil
}

// checkAbsent reports whether a key or name is free. ctx carries a transaction.
func checkAbsent(ctx context.Context, key string) error {
	_, _, _, err := storage.GetInfo(ctx, key)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		err = fault.New(errdefs.ErrAlreadyExists, "snapshot %q", key)
	}
	return err
}

// visible returns info without the label that clients do not see.
func visible(info snapshots.Info) snapshots.Info {
	if _, ok := info.Labels[VolumeLabel]; !ok {
		return info
	}
	info.Labels = maps.Clone(info.Labels)
	delete(info.Labels, VolumeLabel)
	if len(info.Labels) == 0 {
		info.Labels = nil
	}
	return info
}

// withVolume returns labels with that of the volume. "" stands for none.
func withVolume(labels map[string]string, volume string) map[string]string {
	if volume == "" {
		return labels
	}
	labels = maps.Clone(labels)
	if labels == nil {
		labels = make(map[string]string, 1)
	}
	labels[VolumeLabel] = volume
	return labels
}
