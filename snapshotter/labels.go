package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/quota"
)

// maxKeyLength is the longest key that bolt takes, in bytes.
const maxKeyLength = 32768

// request has a client's options besides key and parent.
type request struct {
	info  snapshots.Info
	limit quota.Limit         // from the label; 0 bytes: none
	style cowcommon.RootStyle // from a label; DefaultRoot: none
	ids   idMapping
	adopt bool // the volume that was offered
}

// parseRequest checks the key and the options of Prepare, View or Commit. Returns errdefs.ErrInvalidArgument if any
// of them is malformed.
func (s *Snapshotter) parseRequest(key string, opts []snapshots.Opt) (r request, err error) {
	if err := checkKey(key); err != nil {
		return request{}, err
	}
	for _, opt := range opts {
		if err := opt(&r.info); err != nil {
			return request{}, err
		}
	}
	if err := checkLabels(r.info.Labels); err != nil {
		return request{}, err
	}
	if r.adopt, err = takeAdopt(r.info.Labels); err != nil {
		return request{}, err
	}
	if r.limit, err = parseLimit(r.info.Labels, s.opts.Scope); err != nil {
		return request{}, err
	}
	if r.style, err = labelledStyle(key, r.info.Labels); err != nil {
		return request{}, err
	}
	r.ids, err = parseIDMapping(r.info.Labels)
	return r, err
}

func checkKey(key string) error {
	switch {
	case key == "":
		return fault.New(errdefs.ErrInvalidArgument, "a snapshot needs a key")
	case len(key) > maxKeyLength:
		return fault.New(errdefs.ErrInvalidArgument, "key of %d bytes is longer than %d", len(key), maxKeyLength)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	for name := range labels {
		switch {
		case name == "" || len(name) > maxKeyLength:
			return fault.New(errdefs.ErrInvalidArgument, "label name of %d bytes", len(name))
		case name == VolumeLabel:
			return fault.New(errdefs.ErrInvalidArgument, "label %s is not for clients", VolumeLabel)
		}
	}
	return nil
}

// takeAdopt reads AdoptLabel, and takes it from the labels that are kept.
func takeAdopt(labels map[string]string) (bool, error) {
	value, ok := labels[AdoptLabel]
	if ok && value != Offered {
		return false, fault.New(errdefs.ErrInvalidArgument, "label %s=%q must be %q", AdoptLabel, value, Offered)
	}
	delete(labels, AdoptLabel)
	return ok, nil
}

// parseLimit reads the label containerd.io/snapshot/max-size, a decimal number of bytes above 0.
func parseLimit(labels map[string]string, scope quota.Scope) (quota.Limit, error) {
	text, ok := labels[snapshots.LabelSnapshotMaxSize]
	if !ok {
		return quota.Limit{}, nil
	}
	bytes, err := strconv.ParseUint(text, 10, 63)
	if err != nil || bytes == 0 {
		return quota.Limit{}, fault.New(errdefs.ErrInvalidArgument, "label %s=%q must be a number of bytes above 0", snapshots.LabelSnapshotMaxSize, text)
	}
	return quota.Limit{Bytes: bytes, Scope: scope}, nil
}

// limitOf is the limit of a new active snapshot. A label overrides Options, but not where a layer is unpacked:
// containerd takes such labels from the image's manifest, whose author may be hostile. A label does more than limit:
// the first limit turns quotas on for the filesystem.
func (s *Snapshotter) limitOf(r request, key string) quota.Limit {
	use := UseOf(key)
	switch {
	case r.limit.Bytes != 0 && use != UseUnpack:
		return r.limit
	case use == UseContainer:
		return s.opts.DefaultLimit
	}
	return s.opts.BuildLimit
}

// namingLimit adds to the error of a write to a volume, if it came of the volume's limit, which limit that is.
func (s *Snapshotter) namingLimit(ctx context.Context, volume string, err error) error {
	if !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	v, statErr := s.backend.Stat(context.WithoutCancel(ctx), volume)
	if statErr != nil || v.Limit.Bytes == 0 {
		return err
	}
	setBy := ""
	switch v.Limit.Bytes {
	case s.opts.BuildLimit.Bytes:
		setBy = " (build_limit, for builds and layers that are unpacked)"
	case s.opts.DefaultLimit.Bytes:
		setBy = " (default_limit, for containers)"
	}
	return fmt.Errorf("the snapshot is at its limit of %s%s: %w", quota.FormatSize(v.Limit.Bytes), setBy, err)
}

// idMapping is the id mapping of a mount in the form of the labels, "container:host:size" with commas between
// several. The zero value maps nothing.
type idMapping struct{ uids, gids string }

// parseIDMapping reads the labels containerd.io/snapshot/uidmapping and gidmapping.
func parseIDMapping(labels map[string]string) (idMapping, error) {
	m := idMapping{labels[snapshots.LabelSnapshotUIDMapping], labels[snapshots.LabelSnapshotGIDMapping]}
	if (m.uids == "") != (m.gids == "") {
		return idMapping{}, fault.New(errdefs.ErrInvalidArgument, "labels %s and %s need each other", snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping)
	}
	if m == (idMapping{}) {
		return m, nil
	}
	for _, ranges := range []string{m.uids, m.gids} {
		for r := range strings.SplitSeq(ranges, ",") {
			if !isIDRange(r) {
				return idMapping{}, fault.New(errdefs.ErrInvalidArgument, "id mapping %q must have the form container:host:size", ranges)
			}
		}
	}
	return m, nil
}

// isIDRange reports whether text is "container:host:size" and all ids of both ranges can be.
func isIDRange(text string) bool {
	const noID = 1<<32 - 1
	fields := strings.Split(text, ":")
	if len(fields) != 3 {
		return false
	}
	var n [3]uint64
	for i, field := range fields {
		var err error
		if n[i], err = strconv.ParseUint(field, 10, 32); err != nil {
			return false
		}
	}
	size := n[2]
	return size > 0 && n[0]+size <= noID && n[1]+size <= noID
}

func (m idMapping) mountOptions() []string {
	if m == (idMapping{}) {
		return nil
	}
	return []string{uidMapOption + m.uids, gidMapOption + m.gids}
}
