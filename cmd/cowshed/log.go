package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/live"
)

// logLayer is a layer in the output of log --json.
type logLayer struct {
	Name    string            `json:"name"`
	Expires time.Time         `json:"expires,omitzero"`
	Labels  map[string]string `json:"labels,omitempty"`
	Moments []logMoment       `json:"moments,omitempty"`
}

// logMoment is a moment of a layer in the output of log --json.
type logMoment struct {
	Name    string     `json:"name,omitempty"` // of the snapshot
	Message string     `json:"message,omitempty"`
	Time    time.Time  `json:"time"`
	Volume  string     `json:"volume"`
	Forks   []logLayer `json:"forks,omitempty"`
}

func newLogCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "log LAYER",
		Short: "Show the snapshots and forks of a layer",
		Long: `Shows the moments of a layer that are kept, oldest first: its snapshots, and the times at which it was forked,
with the forks and their moments below. Before that it removes forks that have expired.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error { return s.showLog(cmd, args[0], asJSON) })
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	return cmd
}

func (s *store) showLog(cmd *cobra.Command, name string, asJSON bool) error {
	s.sweep(cmd.Context())
	v, err := s.layerAlone(cmd.Context(), name)
	if err != nil {
		return err
	}
	l, err := s.logOf(cmd.Context(), live.Fork{Name: v.Name}, make(map[string]bool))
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd, l)
	}
	return printLog(cmd.OutOrStdout(), l, "")
}

// sweep removes expired forks, and moments that nothing needs, before a command that lists layers or snapshots.
func (s *store) sweep(ctx context.Context) {
	if s.readOnly {
		return
	}
	if err := s.live.Sweep(ctx); err != nil {
		s.log.Warn("expired forks or moments stay", "error", err)
	}
}

// logOf describes a layer with its moments and forks. seen are the layers on the way to it.
func (s *store) logOf(ctx context.Context, fork live.Fork, seen map[string]bool) (logLayer, error) {
	l := logLayer{Name: s.shown(fork.Name), Expires: fork.Expires, Labels: fork.Labels}
	if seen[fork.Name] { // a later layer of that name
		return l, nil
	}
	seen[fork.Name] = true
	moments, err := s.live.Moments(ctx, fork.Name)
	if err != nil {
		return l, err
	}
	for _, m := range moments {
		shown := logMoment{Name: m.Name, Message: m.Message, Time: m.Time, Volume: m.Volume}
		for _, f := range m.Forks {
			v, err := s.driver.Backend().Stat(ctx, f.Name)
			base := ""
			if err == nil {
				base, err = s.live.Base(ctx, v)
			}
			if errdefs.IsNotFound(err) || err == nil && base != m.Volume {
				continue
			}
			if err != nil {
				return l, err
			}
			below, err := s.logOf(ctx, f, seen)
			if err != nil {
				return l, err
			}
			shown.Forks = append(shown.Forks, below)
		}
		if shown.Name != "" || len(shown.Forks) > 0 {
			l.Moments = append(l.Moments, shown)
		}
	}
	return l, nil
}

func printLog(w io.Writer, l logLayer, indent string) error {
	line := indent + l.Name
	if !l.Expires.IsZero() {
		line += "  until " + l.Expires.Local().Format(time.DateTime)
	}
	if _, err := fmt.Fprintln(w, line); err != nil {
		return err
	}
	for _, m := range l.Moments {
		line := indent + "  " + m.Time.Local().Format(time.DateTime)
		if m.Name != "" {
			line += "  @" + m.Name
		}
		if m.Message != "" {
			line += "  " + printable.Path(m.Message)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
		for _, fork := range m.Forks {
			if err := printLog(w, fork, indent+"    "); err != nil {
				return err
			}
		}
	}
	return nil
}
