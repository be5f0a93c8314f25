package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Labels that name the root style of an active snapshot.
const (
	// RootStyleLabel is for clients of the snapshotter itself. containerd does not pass it on.
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

// clone makes a volume from another. Where volumes of SharedRoot cannot be made, or others cannot mount them, it is one of
// SnapshotRoot, unless a label names the style.
func (s *Snapshotter) clone(ctx context.Context, volume, source string, style rootStyle, opts cowcommon.VolumeOptions) error {
	opts.RootStyle = cowcommon.SnapshotRoot
	if style.RootStyle != cowcommon.SharedRoot || !style.named && s.notShared.Load() {
		return s.backend.Clone(ctx, volume, source, opts)
	}
	shared := opts
	shared.RootStyle = cowcommon.SharedRoot
	err := s.cloneShared(ctx, volume, source, shared)
	switch {
	case style.named:
		return err
	case errdefs.IsNotImplemented(err):
		if !s.notShared.Swap(true) {
			s.log.Warn("snapshotter: containers do not have the root style that is configured", "style", style.RootStyle, "reason", err)
		}
	case errdefs.IsInvalidArgument(err), // the name of this source cannot be in the options of a mount
		errors.Is(err, fault.ErrInUse): // somebody writes to the source
		s.log.Info("snapshotter: a container does not have the root style that is configured", "volume", volume, "reason", err)
	default:
		return err
	}
	return s.backend.Clone(ctx, volume, source, opts)
}

// cloneShared makes a volume of SharedRoot that others can mount. If it fails, there is no volume.
func (s *Snapshotter) cloneShared(ctx context.Context, volume, source string, opts cowcommon.VolumeOptions) error {
	if err := s.backend.Clone(ctx, volume, source, opts); err != nil {
		return err
	}
	_, err := s.mounter.MountSpec(ctx, volume, false)
	if err != nil {
		err = errors.Join(err, s.backend.Remove(context.WithoutCancel(ctx), volume))
	}
	return err
}
