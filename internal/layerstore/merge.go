package layerstore

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/live"
)

// MergeOptions says how a fork is merged.
type MergeOptions struct {
	Live     bool // change the files in place, also while the layer is in use
	Changing live.Changing
	Strategy api.Strategy
	Paths    []string // absolute and clean, of which and below which the fork's state is taken
}

// MergeTarget finds the layer into which a fork is merged. into may be "", for the layer from which the fork was made.
func (s *Store) MergeTarget(ctx context.Context, fork cowcommon.Volume, into string) (cowcommon.Volume, error) {
	m, err := s.Live.ForkedFrom(ctx, fork)
	if err != nil {
		return cowcommon.Volume{}, err
	}
	if into == "" {
		into = m.Layer
	}
	target, err := s.LayerOf(ctx, into)
	if err != nil {
		return target, fmt.Errorf("layer to merge into: %w", err)
	}
	return target, nil
}

// Merge applies the changes of a fork to the layer target. The errors are those of live.Layers.Merge.
func (s *Store) Merge(ctx context.Context, fork, target cowcommon.Volume, opts MergeOptions) (api.Merge, error) {
	if !opts.Live {
		if err := s.CheckUnmounted(ctx, target); err != nil {
			return api.Merge{}, err
		}
	}
	merged, err := s.Live.Merge(ctx, fork.Name, live.MergeOptions{Into: target.Name, Live: opts.Live, Changing: opts.Changing, Resolve: opts.resolve})
	return api.Merge{
		Into: s.Shown(target.Name), Before: merged.Before.Name, Changes: Changes(merged.Changes), Conflicts: Conflicts(merged.Conflicts),
	}, err
}

// CleanPaths returns paths in the form of MergeOptions.Paths. Returns ErrInvalidArgument if one is not absolute.
func CleanPaths(paths []string) ([]string, error) {
	clean := make([]string, 0, len(paths))
	for _, p := range paths {
		if !strings.HasPrefix(p, "/") {
			return nil, fault.Said(errdefs.ErrInvalidArgument, "%q: say a path from the layer's root, such as /etc/passwd", p)
		}
		clean = append(clean, path.Clean(p))
	}
	return clean, nil
}

// resolve decides about a conflict.
func (o MergeOptions) resolve(c live.Conflict) live.Resolution {
	within := func(top string) bool {
		return c.Path == top || strings.HasPrefix(c.Path, strings.TrimSuffix(top, "/")+"/")
	}
	switch {
	case o.Strategy == api.Theirs, slices.ContainsFunc(o.Paths, within):
		return live.Theirs
	case o.Strategy == api.Ours:
		return live.Ours
	}
	return live.Refuse
}

// Changes describes changes.
func Changes(changes []archive.Change) []api.Change {
	infos := make([]api.Change, 0, len(changes))
	for _, change := range changes {
		infos = append(infos, Change(change))
	}
	return infos
}

// Change describes a change.
func Change(change archive.Change) api.Change {
	return api.NewChange(api.ChangeKind(change.Kind.String()), change.Path)
}

// Conflicts describes conflicts.
func Conflicts(conflicts []live.Conflict) []api.Conflict {
	infos := make([]api.Conflict, 0, len(conflicts))
	for _, c := range conflicts {
		infos = append(infos, api.Conflict{
			Path: c.Path, Fork: api.ChangeKind(c.Fork.String()), Layer: api.ChangeKind(c.Layer.String()), Reason: c.Reason,
		})
	}
	return infos
}
