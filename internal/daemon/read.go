package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/plugin"
)

// OpenToRead opens the driver of containerd's volumes for reading alone, while a daemon runs or not. Returns
// errdefs.ErrNotFound if there are no volumes. The caller calls Cleanup.
func OpenToRead(ctx context.Context, c Config, log *slog.Logger) (*cowdriver.Driver, error) {
	return openToRead(ctx, filepath.Join(c.Root, containerdDir), c, c.driverOptions, log)
}

// openToRead is OpenToRead for the homes in a directory.
func openToRead(ctx context.Context, dir string, c Config, options func(driver string) []string, log *slog.Logger) (*cowdriver.Driver, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(errdefs.ErrNotFound, "%w", err)
	}
	if err != nil {
		return nil, err
	}
	with, err := graphdriver.Prior(dir)
	if err != nil {
		return nil, err
	}
	name := c.Driver
	if name == autoDriver {
		name = ""
	}
	if len(with) == 0 || name != "" && !slices.Contains(with, name) {
		return nil, fault.New(errdefs.ErrNotFound, "there are no volumes in %s", dir)
	}
	return cowdriver.OpenDriver(ctx, name, graphdriver.Options{Root: dir, ReadOnly: true, DriverOptionsFor: options, Logger: log})
}

// Examine looks for faults in the homes of containerd's volumes and of the plugin's, while a daemon runs or not. Each finding
// names its home.
func Examine(ctx context.Context, c Config, log *slog.Logger) (findings []cowcommon.Finding) {
	examine := func(dir string, options func(driver string) []string) {
		driver, err := openToRead(ctx, dir, c, options, log)
		if errdefs.IsNotFound(err) {
			return
		}
		found := []cowcommon.Finding{{Verdict: cowcommon.Warn, Check: "volumes", Detail: fmt.Sprintf("cannot be examined: %v", err)}}
		if err == nil {
			found = cowcommon.Examine(ctx, driver.Backend())
			if err := driver.Cleanup(); err != nil {
				found = append(found, cowcommon.Finding{Verdict: cowcommon.Warn, Check: "driver", Detail: err.Error()})
			}
		}
		for _, f := range found {
			f.Detail = dir + ": " + f.Detail
			findings = append(findings, f)
		}
	}
	examine(filepath.Join(c.Root, containerdDir), c.driverOptions)
	if c.DockerPlugin == "" {
		return findings
	}
	request, err := plugin.ReadState(c.pluginState())
	switch {
	case err == nil:
		examine(c.pluginHome(request), c.pluginOptions(request))
	case !errdefs.IsFailedPrecondition(err): // no engine has opened it
		findings = append(findings, cowcommon.Finding{Verdict: cowcommon.Warn, Check: "volumes", Detail: fmt.Sprintf("those of the plugin cannot be examined: %v", err)})
	}
	return findings
}
