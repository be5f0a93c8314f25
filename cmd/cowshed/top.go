package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/containername"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/limited"
)

const (
	topInterval = 5 * time.Second
	// topNames is how long the questions for names may take in one look.
	topNames = 2 * time.Second
)

type topFlags struct {
	daemonFlags
	json     bool
	once     bool
	interval time.Duration
}

func newTopCommand(a *app) *cobra.Command {
	f := &topFlags{daemonFlags: daemonFlags{app: a}}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Show how full layers and containers with a limit are, and how fast they grow",
		Long: `Shows the writable layers of the store and the containers of cowshed serve that have a limit, the fullest first. The
daemon need not run. Both are in the root of its configuration, or in --root. In a terminal the list is shown anew every
interval, until Ctrl-C. Otherwise it is printed once.

GROWTH is the change per second, in the last minute or since top was started. So printing once takes an interval;
with --interval 0 there is no growth. The filesystem counts data when it writes it out: up to a minute late on btrfs,
and 5 seconds on ZFS.

A container has the name that containerd or Docker knows. Where they do not answer it has its id.`,
		Example: `  cowshed top
  cowshed top --once --interval 1m
  cowshed top --json --interval 0`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	addJSON(cmd, &f.json)
	flags := cmd.Flags()
	flags.BoolVarP(&f.once, "once", "n", false, "print the list once, as without a terminal or with --json")
	flags.DurationVar(&f.interval, "interval", topInterval, "time between two looks")
	flags.StringVar(&f.configFile, "config", daemon.DefaultConfigFile, "configuration `FILE` of cowshed serve")
	return cmd
}

func (f *topFlags) run(cmd *cobra.Command) (err error) {
	once := f.once || f.json || !isTerminal(cmd.OutOrStdout())
	if f.interval < 0 || !once && f.interval < time.Second {
		return usagef("--interval %s: say a second or more, or 0 with --once", f.interval)
	}
	t, err := f.open(cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	if once {
		return f.printOnce(cmd, t)
	}
	return f.refresh(cmd, t)
}

// open opens the store and the volumes of the daemon for reading, as far as they are there.
func (f *topFlags) open(cmd *cobra.Command) (_ *top, err error) {
	c, err := f.config(cmd)
	if err != nil {
		return nil, err
	}
	ctx := cmd.Context()
	if err := f.app.checkDriver(ctx); err != nil {
		return nil, err
	}
	if err := f.app.mountEmbedded(ctx); err != nil {
		return nil, err
	}
	t := &top{samples: make(map[volumeID][]sample)}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	initialised, err := f.app.initialised()
	if err != nil {
		return nil, err
	}
	if initialised {
		opts := f.app.storeOptions()
		opts.ReadOnly = true
		s, err := layerstore.Open(ctx, opts)
		if err != nil {
			return nil, err
		}
		t.add(storeService, s.Driver.Backend(), s.Driver.Cleanup)
	}
	d, err := daemon.OpenToRead(ctx, c, f.app.log)
	switch {
	case err == nil:
		t.add(snapshotsService, d.Backend(), d.Cleanup)
	case !errdefs.IsNotFound(err):
		return nil, err
	}
	if len(t.homes) == 0 {
		return nil, failf(errdefs.ErrNotFound, "there is neither a store nor a daemon's volume in %s", f.app.root)
	}
	return t, t.openNames(c)
}

// openNames makes the connections by which names are asked for. They connect when they are used.
func (t *top) openNames(c daemon.Config) error {
	conn, err := containerdapi.Dial(c.ContainerdAddress)
	if err != nil {
		return err
	}
	t.closers.Add(conn.Close)
	var docker *dockerapi.Client
	if c.DockerAPI != "" {
		if docker, err = dockerapi.NewClient(c.DockerAPI); err != nil {
			return err
		}
		t.closers.Add(func() error { docker.Close(); return nil })
	}
	t.names = containername.New(conn, docker)
	return nil
}

func (t *top) add(service string, b cowcommon.Backend, closeBackend func() error) {
	t.homes = append(t.homes, topHome{service, b})
	t.closers.Add(closeBackend)
}

func (t *top) close() error { return t.closers.Close() }

// printOnce prints the list after two looks, of which the second is an interval later.
func (f *topFlags) printOnce(cmd *cobra.Command, t *top) error {
	rows, err := t.look(cmd.Context())
	if err != nil {
		return err
	}
	if f.interval > 0 {
		if err := sleep(cmd.Context(), f.interval); err != nil {
			return err
		}
		if rows, err = t.look(cmd.Context()); err != nil {
			return err
		}
	}
	if f.json {
		return printJSON(cmd, rows)
	}
	return table(cmd.OutOrStdout(), topHeader, cells(rows))
}

// Sequences of terminals.
const (
	enterScreen = "\x1b[?1049h\x1b[?7l\x1b[?25l" // another screen, long lines cut off, no cursor
	leaveScreen = "\x1b[?25h\x1b[?7h\x1b[?1049l"
	homeCursor  = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// refresh shows the list anew every interval. Ctrl-C is its usual end.
func (f *topFlags) refresh(cmd *cobra.Command, t *top) error {
	out := cmd.OutOrStdout()
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return err
	}
	defer func() { _, _ = io.WriteString(out, leaveScreen) }()
	for {
		rows, err := t.look(cmd.Context())
		if err == nil {
			err = draw(out, f.app.root, rows, screenHeight(out))
		}
		if err == nil {
			err = sleep(cmd.Context(), f.interval)
		}
		if cmd.Context().Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// draw fills the screen with as many rows as fit.
func draw(w io.Writer, root string, rows []topRow, height int) error {
	var text strings.Builder
	title := fmt.Sprintf("%s  %s  %d with a limit", root, time.Now().Format(time.TimeOnly), len(rows))
	text.WriteString(title + "\n\n")
	const others = 4 // title, empty line, header, and the line of the cursor
	if err := table(&text, topHeader, cells(rows[:max(0, min(len(rows), height-others))])); err != nil {
		return err
	}
	_, err := io.WriteString(w, homeCursor+strings.ReplaceAll(text.String(), "\n", clearLine+"\n")+clearBelow)
	return err
}

// screenHeight is the number of lines of a terminal.
func screenHeight(w any) int {
	const usual = 24
	f, ok := w.(*os.File)
	if !ok {
		return usual
	}
	_, height, err := term.GetSize(int(f.Fd()))
	if err != nil || height <= 0 {
		return usual
	}
	return height
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// look measures all volumes that have a limit, the fullest first.
func (t *top) look(ctx context.Context) ([]topRow, error) {
	samples := make(map[volumeID][]sample)
	var all []topVolume
	for _, h := range t.homes {
		volumes, err := limited.Volumes(ctx, h.backend)
		if err != nil {
			return nil, err
		}
		now := time.Now()
		for _, v := range volumes {
			if !v.Counted {
				continue
			}
			id := volumeID{h.service, v.Name}
			samples[id] = append(recent(t.samples[id], now), sample{now, v.Held})
			all = append(all, topVolume{id, v})
		}
	}
	asking, cancel := context.WithTimeout(ctx, topNames) // after measuring, which may take longer
	defer cancel()
	names := containername.NewLook(asking, t.names, t.known)
	rows := make([]topRow, 0, len(all))
	for _, v := range all {
		rows = append(rows, newRow(v.id, v.Volume, growthOf(samples[v.id]), names))
	}
	t.samples, t.known = samples, names.Known()
	sortRows(rows)
	return rows, nil
}
