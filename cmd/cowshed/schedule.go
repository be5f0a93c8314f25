package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// defaultKeep is how many snapshots a schedule keeps unless the user says otherwise.
const defaultKeep = 24

// scheduleInfo is a schedule in the output of snapshot schedules --json.
type scheduleInfo struct {
	Layer     string        `json:"layer"`
	Reference string        `json:"reference"` // the layer as commands take it
	Every     string        `json:"every"`
	Keep      int           `json:"keep"`
	Message   string        `json:"message,omitempty"`
	Pre       string        `json:"pre,omitempty"`
	Post      string        `json:"post,omitempty"`
	Inside    bool          `json:"inContainer,omitempty"` // of Pre and Post
	Since     time.Time     `json:"since"`
	Taken     int           `json:"taken"`             // snapshots that are there
	Last      time.Time     `json:"last,omitzero"`     // of these
	Next      time.Time     `json:"next"`              // when it is due; a time that has passed if cowshed serve does not run
	Overdue   bool          `json:"overdue,omitempty"` // nobody has tried for a period after that
	Failed    *live.Failure `json:"failed,omitempty"`
}

// outcome is that of the last snapshot in a word.
func (i scheduleInfo) outcome() string {
	switch {
	case i.Failed != nil && i.Failed.Snapshot == "":
		return "failed"
	case i.Overdue:
		return "overdue"
	case i.Failed != nil:
		return "incomplete"
	case i.Taken == 0:
		return "-"
	}
	return "ok"
}

// describeSchedule describes a schedule of layers that may have no Backend.
func describeSchedule(layers *live.Layers, s live.Schedule) (scheduleInfo, error) {
	info := scheduleInfo{
		Layer: s.Layer, Reference: s.Hooks.Reference, Every: s.Name(), Keep: s.Keep, Message: s.Message,
		Pre: s.Hooks.Pre, Post: s.Hooks.Post, Inside: s.Hooks.InContainer, Since: s.Since, Failed: s.Failed,
	}
	taken, err := layers.Scheduled(s)
	if err != nil {
		return info, err
	}
	info.Taken = len(taken)
	if len(taken) > 0 {
		info.Last = taken[len(taken)-1].Time
	}
	now := time.Now()
	if info.Overdue, err = layers.Overdue(s, now); err != nil {
		return info, err
	}
	info.Next, err = layers.FirstDue(s, now)
	return info, err
}

// schedule sets a schedule of a layer.
func (s *store) schedule(cmd *cobra.Command, layer string, f snapshotFlags) error {
	v, err := s.LayerOf(cmd.Context(), layer)
	if err != nil {
		return err
	}
	f.hooks.Reference = layer
	schedule := live.Schedule{Layer: v.Name, Every: f.every, Keep: f.keep, Message: f.message, Hooks: f.hooks}
	if err := s.Live.SetSchedule(cmd.Context(), schedule); err != nil {
		return err
	}
	if v.Limit != (quota.Limit{}) {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: %s has a limit: data that only its snapshots still have counts for it, with simple quotas of btrfs and on ZFS\n", printable.Path(layer))
	}
	schedule.Since = time.Now()
	info, err := describeSchedule(s.Live, schedule)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(cmd, info)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "every %s, the last %d are kept, the next is due on %s\n", info.Every, info.Keep, info.Next.Local().Format(time.DateTime))
	return err
}

func newSnapshotSchedulesCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "schedules",
		Short: "List the schedules of snapshots",
		Long: `Lists the schedules that cowshed snapshot --every has set, of the layers of the store and of containers. A time in the
column NEXT that has passed says that cowshed serve does not run, or that it has another root. OUTCOME is ok, incomplete,
failed, overdue, or - if no snapshot is there yet. Incomplete: there is a snapshot, and --post or a removal failed. Failed:
there is none. Overdue: nobody has tried for more than a period.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.listSchedules(cmd, asJSON) },
	}
	addJSON(cmd, &asJSON)
	addContainers(a, cmd)
	return cmd
}

func (a *app) listSchedules(cmd *cobra.Command, asJSON bool) error {
	c, err := a.daemonConfig(cmd)
	if err != nil {
		return err
	}
	if err := a.mountEmbedded(cmd.Context()); err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(live.DirsIn(a.root), "*"))
	if err != nil {
		return err
	}
	infos := []scheduleInfo{}
	for _, dir := range append(dirs, c.LiveDirs()...) {
		layers := live.New(nil, dir, a.log)
		schedules, unreadable := layers.Schedules()
		err = errors.Join(err, unreadable)
		for _, s := range schedules {
			info, infoErr := describeSchedule(layers, s)
			err = errors.Join(err, infoErr)
			infos = append(infos, info)
		}
	}
	return errors.Join(err, printSchedules(cmd, infos, asJSON)) // the others are printed
}

func printSchedules(cmd *cobra.Command, infos []scheduleInfo, asJSON bool) error {
	if asJSON {
		return printJSON(cmd, infos)
	}
	rows := make([][]string, 0, len(infos))
	for _, i := range infos {
		last := "-"
		if !i.Last.IsZero() {
			last = i.Last.Local().Format(time.DateTime)
		}
		rows = append(rows, []string{
			printable.Path(i.Reference), i.Every, strconv.Itoa(i.Keep), strconv.Itoa(i.Taken), last, i.Next.Local().Format(time.DateTime), i.outcome(),
		})
	}
	return table(cmd.OutOrStdout(), []string{"LAYER", "EVERY", "KEEP", "TAKEN", "LAST", "NEXT", "OUTCOME"}, rows)
}

func newSnapshotUnscheduleCommand(a *app) *cobra.Command {
	every := time.Duration(0)
	cmd := &cobra.Command{
		Use:   "unschedule LAYER",
		Short: "Take no more snapshots of a layer by schedule",
		Long:  `Ends the schedules of a layer, or with --every the one with that period. The snapshots that were taken stay.`,
		Args:  usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLayers(cmd, args, func(s *store) error {
				v, err := s.LayerAlone(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return s.Live.EndSchedules(cmd.Context(), v.Name, every)
			})
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	cmd.Flags().DurationVar(&every, "every", 0, "the period of the schedule that is ended; all schedules by default")
	addContainers(a, cmd)
	return cmd
}
