package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// layerInfo is a layer as ls --json prints it.
type layerInfo struct {
	Name       string            `json:"name"`
	Parent     string            `json:"parent,omitempty"`
	Sealed     bool              `json:"sealed"`
	Limit      uint64            `json:"limit,omitempty"`      // bytes
	LimitScope string            `json:"limitScope,omitempty"` // whose data the limit counts: layer or total
	Usage      *uint64           `json:"usage"`                // bytes; null where the filesystem does not keep count
	Created    time.Time         `json:"created"`
	ForkOf     string            `json:"forkOf,omitempty"` // the layer of whose moment it is a fork
	Image      string            `json:"image,omitempty"`  // that has it as its uppermost layer
	Details    map[string]string `json:"details,omitempty"`
}

type lsFlags struct {
	json      bool
	namesOnly bool
	noTrunc   bool
	forks     bool
}

func newLsCommand(a *app) *cobra.Command {
	f := lsFlags{}
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List layers",
		Long: `Lists layers with their parent, whether they are sealed, and their limit. With quotas on, the filesystem counts the
size of their own data, which is listed too. Names of images' layers are cut to 12 digits; other commands
accept these too.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.forks {
				return a.withContainers(cmd, nil, func(s *store) error { return s.ls(cmd, f) })
			}
			return a.with(cmd.Context(), func(s *store) error { return s.ls(cmd, f) })
		},
	}
	addJSON(cmd, &f.json)
	addContainers(a, cmd)
	cmd.Flags().BoolVar(&f.forks, "forks", false, "list the forks of containers instead")
	cmd.Flags().BoolVarP(&f.namesOnly, "names", "n", false, "print names only")
	cmd.Flags().BoolVar(&f.noTrunc, "no-trunc", false, "print names in full")
	return cmd
}

func (s *store) ls(cmd *cobra.Command, f lsFlags) error {
	s.sweep(cmd.Context())
	layers, err := s.list(cmd.Context())
	if err != nil {
		return err
	}
	switch {
	case f.json:
		return printJSON(cmd, layers)
	case f.namesOnly:
		for _, l := range layers {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), l.Name); err != nil {
				return err
			}
		}
		return nil
	}
	shown := shortName
	if f.noTrunc {
		shown = func(name string) string { return name }
	}
	rows := make([][]string, 0, len(layers))
	for _, l := range layers {
		rows = append(rows, []string{
			shown(l.Name), orDash(shown(l.shownParent())), strconv.FormatBool(l.Sealed), limitText(l), usageText(l.Usage),
			l.Created.Local().Format(time.DateTime),
		})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "PARENT", "SEALED", "LIMIT", "USAGE", "CREATED"}, rows)
}

// shownParent is the parent as people are shown it: the moment of a fork is that of a layer.
func (l layerInfo) shownParent() string {
	if l.ForkOf != "" {
		return l.ForkOf
	}
	return l.Parent
}

func limitText(l layerInfo) string {
	switch l.LimitScope {
	case "", quota.ScopeLayer.String():
		if l.Limit == 0 {
			return "-"
		}
		return quota.FormatSize(l.Limit)
	}
	return quota.FormatSize(l.Limit) + " " + l.LimitScope
}

func usageText(bytes *uint64) string {
	if bytes == nil {
		return "-"
	}
	return quota.FormatSize(*bytes)
}

// list describes all layers, sorted by name.
func (s *store) list(ctx context.Context) ([]layerInfo, error) {
	images, err := s.images.List()
	if err != nil { // the layers are there all the same
		s.log.Warn("image records cannot be read", "error", err)
	}
	tops := make(map[string]string)
	for _, img := range images {
		tops[img.Top()] = img.Name
	}
	layers := []layerInfo{}
	for v, err := range s.driver.Backend().Volumes(ctx) {
		if err != nil {
			return nil, err
		}
		if live.IsMoment(v.Name) || s.isContainer(v) {
			continue
		}
		l, err := s.describe(ctx, v)
		if errdefs.IsNotFound(err) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		l.Image = tops[v.Name]
		layers = append(layers, l)
	}
	slices.SortFunc(layers, func(a, b layerInfo) int { return strings.Compare(a.Name, b.Name) })
	return layers, nil
}

func (s *store) describe(ctx context.Context, v cowcommon.Volume) (layerInfo, error) {
	l := layerInfo{
		Name: s.shown(v.Name), Parent: v.Parent, Sealed: v.Sealed, Limit: v.Limit.Bytes, Created: v.Created.UTC(), Details: v.Details,
	}
	if v.Limit.Bytes != 0 {
		l.LimitScope = v.Limit.Scope.String()
	}
	if m, err := s.live.ForkedFrom(ctx, v); err == nil {
		l.ForkOf = m.Layer
	} else if !errdefs.IsNotFound(err) { // the layer is there all the same
		s.log.Warn("a moment's record cannot be read", "layer", v.Name, "error", err)
	}
	usage, err := cowcommon.Usage(ctx, s.driver.Backend(), v.Name)
	switch {
	case err == nil:
		l.Usage = &usage.Bytes
	case !errdefs.IsNotImplemented(err):
		return l, err
	}
	return l, nil
}
