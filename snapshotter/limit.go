package snapshotter

import (
	"bytes"
	"context"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// limitLabel is the label that SetLimit and Update change.
const limitLabel = snapshots.LabelSnapshotMaxSize

// SetLimit limits an active snapshot, as Update does with the label containerd.io/snapshot/max-size, which it sets too. The
// snapshot may hold more than that already: nothing can be written to it then, if the filesystem allows such a limit.
//
// Returns errdefs.ErrFailedPrecondition if the snapshot is not active or for UseUnpack, or if the filesystem refuses a
// limit below the present size.
func (s *Snapshotter) SetLimit(ctx context.Context, key string, bytes uint64) error {
	return wrap("limit snapshot", key, s.setLimit(ctx, key, bytes))
}

func (s *Snapshotter) setLimit(ctx context.Context, key string, bytes uint64) error {
	info := snapshots.Info{Name: key, Labels: map[string]string{limitLabel: strconv.FormatUint(bytes, 10)}}
	limit, err := parseLimit(info.Labels, s.opts.Scope)
	if err != nil {
		return err
	}
	r, err := s.read(ctx, key)
	if err != nil {
		return err
	}
	if r.info.Kind != snapshots.KindActive || UseOf(key) == UseUnpack {
		return fault.New(errdefs.ErrFailedPrecondition, "only an active snapshot has a limit of its own, and none while a layer is unpacked into it")
	}
	if err := cowcommon.SetLimit(ctx, s.backend, r.volume, limit); err != nil {
		return err
	}
	_, err = s.writeLabels(ctx, info, []string{"labels." + limitLabel})
	return err
}

// changeLimit sets the limit that an Update asks for, unless the snapshot has it. A crash before the label is written leaves
// the limit, and the client repeats the Update.
func (s *Snapshotter) changeLimit(ctx context.Context, info snapshots.Info, fieldpaths []string) error {
	if len(fieldpaths) > 0 && !slices.Contains(fieldpaths, "labels") && !slices.Contains(fieldpaths, "labels."+limitLabel) {
		return nil
	}
	if info.Labels[limitLabel] == "" || UseOf(info.Name) == UseUnpack {
		return nil
	}
	r, err := s.read(ctx, info.Name)
	if err != nil {
		return err
	}
	if r.info.Kind != snapshots.KindActive || r.info.Labels[limitLabel] == info.Labels[limitLabel] {
		return nil
	}
	limit, err := parseLimit(info.Labels, s.opts.Scope)
	if err != nil {
		return err
	}
	if err := s.checkHeld(ctx, r.volume, limit); err != nil {
		return err
	}
	return cowcommon.SetLimit(ctx, s.backend, r.volume, limit)
}

// checkHeld reports a limit that is below the present size of a volume. Without quotas there is no such count: the first
// limit starts it.
func (s *Snapshotter) checkHeld(ctx context.Context, volume string, limit quota.Limit) error {
	usage, err := cowcommon.Usage(ctx, s.backend, volume)
	if errdefs.IsNotImplemented(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if held := usage.Against(limit); held > limit.Bytes {
		return fault.New(errdefs.ErrFailedPrecondition, "a limit of %s is less than the %s (%d bytes) that the snapshot holds",
			quota.FormatSize(limit.Bytes), quota.FormatSize(held), held)
	}
	return nil
}

// Key returns the key of the snapshot that a client of containerd calls own in its namespace. containerd puts the
// namespace and a number before it. Only keys are read, so many snapshots cost little. Returns errdefs.ErrNotFound if
// there is none.
func (s *Snapshotter) Key(ctx context.Context, namespace, own string) (string, error) {
	key := ""
	err := s.look(ctx, func(_ context.Context, tx *bolt.Tx) error {
		key = findKey(tx, namespace, own)
		return nil
	})
	if err == nil && key == "" {
		err = fault.New(errdefs.ErrNotFound, "there is no such snapshot in the namespace %q", namespace)
	}
	return key, wrap("find snapshot", own, err)
}

func findKey(tx *bolt.Tx, namespace, own string) string {
	all := snapshotBucket(tx)
	if all == nil || namespace == "" || own == "" {
		return ""
	}
	prefix := []byte(namespace + "/")
	cursor := all.Cursor()
	for k, _ := cursor.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = cursor.Next() {
		if !bytes.HasSuffix(k, []byte("/"+own)) {
			continue
		}
		if in, client := SplitKey(string(k)); in == namespace && client == own {
			return string(k)
		}
	}
	return ""
}
