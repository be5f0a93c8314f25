package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/loopstore"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// verdict and finding are of the lines that doctor prints.
type (
	verdict = cowcommon.Verdict
	finding = cowcommon.Finding
)

const (
	ok   = cowcommon.OK
	warn = cowcommon.Warn
	fail = cowcommon.Fail
)

func newDoctorCommand(a *app) *cobra.Command {
	asJSON := false
	var host *containerdFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that everything works, and say what to do where it does not",
		Long: `Checks privileges, the filesystem, the kernel's functions, the embedded store, quotas and native diffs. It looks for
foreign files in the store, checks images, and lists the processes that use the store.

With --containerd it checks instead how cowshed serve, containerd and Docker are set up on this host.

Each line says ok, warn or fail. The exit code is 1 if a line says fail, else 0.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.doctor(cmd, asJSON, host) },
	}
	addJSON(cmd, &asJSON)
	host = addContainerdFlags(cmd)
	return cmd
}

func (a *app) doctor(cmd *cobra.Command, asJSON bool, host *containerdFlags) error {
	d := &doctor{app: a}
	if host.check {
		d.containerd(cmd.Context(), cmd, host)
	} else {
		d.run(cmd.Context())
	}
	if asJSON {
		if err := printJSON(cmd, d.findings); err != nil {
			return err
		}
	} else if err := d.print(cmd); err != nil {
		return err
	}
	for _, f := range d.findings {
		if f.Verdict == fail {
			return errReported
		}
	}
	return nil
}

type doctor struct {
	app      *app
	findings []finding
}

func (d *doctor) add(v verdict, check, advice, format string, args ...any) {
	d.findings = append(d.findings, finding{Verdict: v, Check: check, Detail: fmt.Sprintf(format, args...), Advice: advice})
}

func (d *doctor) print(cmd *cobra.Command) error {
	for _, f := range d.findings {
		line := fmt.Sprintf("%-4s  %s: %s", f.Verdict, f.Check, f.Detail)
		if f.Advice != "" {
			line += "\n      " + f.Advice
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
			return err
		}
	}
	return nil
}

func (d *doctor) run(ctx context.Context) {
	d.privileges()
	d.embedded(ctx)
	d.filesystem(ctx)

	initialised, err := d.app.initialised()
	if driverErr := d.app.checkDriver(ctx); driverErr != nil {
		err = driverErr
	}
	switch {
	case err != nil:
		d.add(fail, "store", "", "%v", err)
	case !initialised:
		d.add(warn, "store", "make one with: cowshed init", "there is no store in %s", d.app.root)
	default:
		d.store(ctx)
	}
}

// embedded looks at the store in an image file.
func (d *doctor) embedded(ctx context.Context) {
	embedded, err := loopstore.At(d.app.root)
	if err != nil {
		d.add(fail, "embedded store", "", "%v", err)
		return
	}
	switch state, err := embedded.State(); {
	case errdefs.IsFailedPrecondition(err):
		d.add(warn, "embedded store", "if an embedded store is needed, choose another --root", "%v", err)
	case err != nil:
		d.add(fail, "embedded store", "", "%v", err)
	case state == loopstore.Absent:
		d.add(ok, "embedded store", "", "none is used")
	case state == loopstore.Mounted:
		d.add(ok, "embedded store", "", "%s is mounted on %s", embedded.Image, embedded.Root)
		d.room(embedded)
	default:
		if _, err := embedded.Mount(ctx); err != nil {
			d.add(fail, "embedded store", "", "%v", err)
			return
		}
		d.add(ok, "embedded store", "", "%s was not mounted on %s, and is now", embedded.Image, embedded.Root)
		d.room(embedded)
	}
}

// leastFree is how many bytes a filesystem has left that is as good as full.
const leastFree = 1 << 20

// room checks whether the host has room for the growth of an embedded store.
func (d *doctor) room(embedded loopstore.Store) {
	room, err := embedded.Room()
	host := filepath.Dir(embedded.Image)
	switch {
	case err != nil:
		d.add(warn, "embedded store", "", "%v", err)
	case room.MayTake <= room.Free:
	case room.Free < leastFree:
		d.add(fail, "embedded store", fmt.Sprintf("make room in %s; if %s has become read-only, unmount it then, and run cowshed doctor again", host, embedded.Root),
			"the filesystem of %s is full, so writes to the store are lost and the kernel makes it read-only", embedded.Image)
	default:
		d.add(warn, "embedded store", fmt.Sprintf("make room in %s before the store becomes read-only", host),
			"%s may still take %s, and its filesystem has %s left", embedded.Image, quota.FormatSize(room.MayTake), quota.FormatSize(room.Free))
	}
}

func (d *doctor) filesystem(ctx context.Context) {
	f, err := detect.Probe(d.app.root)
	if err != nil {
		d.add(fail, "filesystem", "", "%v", err)
		return
	}
	driver, known := cowdriver.Lookup(f.Type)
	if !known {
		d.add(fail, "filesystem", "make an embedded store with: cowshed init --loop SIZE", "%s is on %s, not on %s", d.app.root, f, cowdriver.Filesystems())
		return
	}
	if driver.Devices != nil {
		d.findings = append(d.findings, driver.Devices(f)...)
	}
	err = driver.Usable(ctx, d.app.root)
	var readOnly *detect.ReadOnlyError
	if errors.As(err, &readOnly) {
		d.add(fail, "filesystem", readOnly.Advice, "%s is on %s, which can only be read: %s", d.app.root, f, readOnly.Cause)
		return
	}
	if err != nil {
		d.add(fail, "filesystem", "", "%v", err)
		return
	}
	d.add(ok, "filesystem", "", "%s is on %s", d.app.root, f)
	d.features(driver, f)
}

// features reports the kernel's functions that are of use on the filesystem.
func (d *doctor) features(driver cowdriver.Registration, f detect.Filesystem) {
	features := []detect.Feature{{Name: "openat2", Without: "paths are resolved in a slower way", Check: detect.OpenAt2}}
	if driver.Features != nil {
		features = append(features, driver.Features(f)...)
	}
	for _, feature := range features {
		switch err := feature.Check(); {
		case err == nil:
			d.add(ok, "kernel", "", "it has %s", feature.Name)
		case errors.Is(err, graphdriver.ErrNotSupported):
			d.add(warn, "kernel", feature.Without, "%v", err)
		default:
			d.add(warn, "kernel", "", "cannot tell: %v", err)
		}
	}
}

// store looks at a store that is there.
func (d *doctor) store(ctx context.Context) {
	d.lockHolders()
	// A warning of the driver while it opens is a finding too.
	complaints := &complaints{}
	app := *d.app
	app.log = slog.New(complaints)
	s, err := app.openThere(ctx)
	for _, complaint := range complaints.all() {
		d.add(warn, "layout", "", "%s", complaint)
	}
	if err != nil {
		d.add(fail, "driver", "", "%v", err)
		return
	}
	defer func() {
		if err := s.Driver.Cleanup(); err != nil {
			d.add(warn, "driver", "", "%v", err)
		}
	}()
	d.add(ok, "driver", "", "%s, in %s", s.Driver, s.Home())
	d.findings = append(d.findings, cowcommon.Examine(ctx, s.Driver.Backend())...)
	d.layers(ctx, s)
	d.nativeDiff(ctx, s)
	d.images(ctx, s)
	d.moments(ctx, s.Live)
}

// layers counts layers.
func (d *doctor) layers(ctx context.Context, s *store) {
	count := 0
	for _, err := range s.Driver.Backend().Volumes(ctx) {
		if err != nil {
			d.add(fail, "layers", "", "%v", err)
			return
		}
		count++
	}
	d.add(ok, "layers", "", "there are %d", count)
}

// nativeDiff asks the filesystem where a layer differs from its parent, if there is such a layer.
func (d *doctor) nativeDiff(ctx context.Context, s *store) {
	for v, err := range s.Driver.Backend().Volumes(ctx) {
		if err != nil || v.Parent == "" {
			continue
		}
		switch err := tryHints(ctx, s.Driver.Backend(), v); {
		case err == nil:
			d.add(ok, "native diff", "", "the filesystem lists changes (tried with layer %s)", layerstore.ShortName(v.Name))
		case errors.Is(err, treediff.ErrNoHints):
			d.add(warn, "native diff", "layers are compared by walking them, which is slow", "layer %s: %v", layerstore.ShortName(v.Name), err)
		case errdefs.IsNotFound(err):
			continue // removed meanwhile
		case fault.IsFull(err):
			d.add(warn, "native diff", "make room: see cowshed status", "it cannot be tried without space: layer %s: %v", layerstore.ShortName(v.Name), err)
		default:
			d.add(fail, "native diff", "", "layer %s: %v", layerstore.ShortName(v.Name), err)
		}
		return
	}
	d.add(ok, "native diff", "", "%s (not tried: no layer was made from another)", s.Driver.NativeDiff())
}

func tryHints(ctx context.Context, backend cowcommon.Backend, v cowcommon.Volume) (err error) {
	top, err := backend.View(ctx, v.Name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	base, err := backend.View(ctx, v.Parent)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	_, err = cowcommon.Hints(ctx, backend, base, top)
	return err
}

func (d *doctor) images(ctx context.Context, s *store) {
	problems, err := s.Images.Check(ctx)
	if err != nil {
		d.add(fail, "images", "", "%v", err)
		return
	}
	for _, p := range problems {
		v := warn
		if p.Severe {
			v = fail
		}
		d.add(v, "images", p.Advice, "%s", p.What)
	}
	if len(problems) == 0 {
		d.add(ok, "images", "", "records and layers agree")
	}
}

const momentsCheck = "moments"

// moments looks for forks, snapshots and their records that do not fit together, and at schedules.
func (d *doctor) moments(ctx context.Context, layers *live.Layers) {
	problems, err := layers.Check(ctx)
	switch {
	case errdefs.IsUnavailable(err):
		d.add(ok, momentsCheck, "", "not looked at: %v", err)
		problems = layers.CheckSchedules(time.Now())
	case err != nil:
		d.add(fail, momentsCheck, "", "%v", err)
		problems = layers.CheckSchedules(time.Now())
	case len(problems) == 0:
		d.add(ok, momentsCheck, "", "records of snapshots and forks agree with the volumes")
	}
	d.problems(problems)
}

func (d *doctor) problems(problems []live.Problem) {
	for _, p := range problems {
		v := warn
		if p.Severe {
			v = fail
		}
		d.add(v, momentsCheck, p.Advice, "%s", p.What)
	}
}

// complaints is a slog.Handler that keeps warnings and errors.
type complaints struct {
	mu    sync.Mutex
	lines []string
}

func (c *complaints) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines
}

// Enabled implements slog.Handler.
func (c *complaints) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

// Handle implements slog.Handler.
func (c *complaints) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, line)
	return nil
}

// WithAttrs implements slog.Handler.
func (c *complaints) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup implements slog.Handler.
func (c *complaints) WithGroup(string) slog.Handler { return c }
