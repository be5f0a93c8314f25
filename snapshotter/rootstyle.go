package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
)

// Labels that name the root style of an active snapshot.
const (
	// RootStyleLabel is for clients of the snapshotter itself. containerd keeps it to itself.
	RootStyleLabel = "cowshed/root-style"
	// InheritedRootStyleLabel is the same for clients of containerd, which passes it on.
	InheritedRootStyleLabel = "containerd.io/snapshot/cowshed.dev.root-style"
)

// labelledStyle is the root style that labels name, DefaultRoot if none do. RootStyleLabel comes first. The other label has
// no effect where a layer is unpacked: there it comes from the image's manifest, whose author may be hostile.
//
// Returns errdefs.ErrInvalidArgument if a label has a value that is no style.
func labelledStyle(key string, labels map[string]string) (style cowcommon.RootStyle, err error) {
	for _, label := range []string{InheritedRootStyleLabel, RootStyleLabel} {
		value, ok := labels[label]
		if !ok {
			continue
		}
		named, err := cowcommon.ParseRootStyle(value)
		if err != nil {
			return cowcommon.DefaultRoot, fmt.Errorf("label %s: %w", label, err)
		}
		if label == RootStyleLabel || UseOf(key) != UseUnpack {
			style = named
		}
	}
	return style, nil
}

// rootStyle is the root style of an active snapshot.
type rootStyle struct {
	cowcommon.RootStyle
	named bool // by a label, so that no other will do
}

// styleOf is the root style of an active snapshot. The default is for containers alone, and not for those with mapped ids:
// an overlay cannot be mounted so.
func (s *Snapshotter) styleOf(key string, labelled cowcommon.RootStyle, ids idMapping) rootStyle {
	switch {
	case labelled != cowcommon.DefaultRoot:
		return rootStyle{labelled, true}
	case UseOf(key) != UseContainer || ids != (idMapping{}) || s.opts.RootStyle == cowcommon.DefaultRoot:
		return rootStyle{cowcommon.SnapshotRoot, false}
	}
	return rootStyle{s.opts.RootStyle, false}
}

// styleOfExisting is styleOf for a snapshot that exists.
func (s *Snapshotter) styleOfExisting(info snapshots.Info) (rootStyle, error) {
	labelled, err := labelledStyle(info.Name, info.Labels)
	if err != nil {
		return rootStyle{}, err
	}
	ids, err := parseIDMapping(info.Labels)
	return s.styleOf(info.Name, labelled, ids), err
}

// clone makes a volume from another. Where others cannot mount volumes of SharedRoot, it is one of SnapshotRoot, unless a
// label names the style. Then it returns errdefs.ErrNotImplemented, and the caller removes the volume.
func (s *Snapshotter) clone(ctx context.Context, volume, source string, style rootStyle, opts cowcommon.VolumeOptions) error {
	opts.RootStyle = style.RootStyle
	if style.RootStyle == cowcommon.SharedRoot && !style.named && s.notShared.Load() {
		opts.RootStyle = cowcommon.SnapshotRoot
	}
	if err := s.backend.Clone(ctx, volume, source, opts); err != nil || opts.RootStyle != cowcommon.SharedRoot {
		return err
	}
	_, err := s.mounter.MountSpec(ctx, volume, false)
	if !errdefs.IsNotImplemented(err) || style.named {
		return err
	}
	if !s.notShared.Swap(true) {
		s.log.Warn("snapshotter: containers do not have the root style that is configured", "style", style.RootStyle, "reason", err)
	}
	if err := s.backend.Remove(ctx, volume); err != nil {
		return err
	}
	opts.RootStyle = cowcommon.SnapshotRoot
	return s.backend.Clone(ctx, volume, source, opts)
}
