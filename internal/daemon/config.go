package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet"
	"github.com/cowshed/cowshed/internal/limitalert"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/plugin"
	"github.com/cowshed/cowshed/quota"
)

// DefaultConfigFile is read where no other file is named, if it is there.
const DefaultConfigFile = "/etc/cowshed/config.toml"

// autoDriver is the Driver that stands for the driver with volumes in the root, or else for the driver that fits its
// filesystem.
const autoDriver = "auto"

// containerdDir is the directory in the root for the snapshotter of containerd.
const containerdDir = "containerd"

// maxContainerMetrics is the most containers that can have metrics of their own.
const maxContainerMetrics = 10000

// Config says how the daemon works. packaging/cowshed.toml describes each key.
type Config struct {
	Root           string   `toml:"root"`
	State          string   `toml:"state"`
	Driver         string   `toml:"driver"`
	StorageOptions []string `toml:"storage_options"`

	Address           string `toml:"address"`
	ContainerdAddress string `toml:"containerd_address"`
	DefaultLimit      string `toml:"default_limit"`
	BuildLimit        string `toml:"build_limit"`
	MaxLimit          string `toml:"max_limit"`
	LimitScope        string `toml:"limit_scope"`
	RootStyle         string `toml:"root_style"`
	CountInodes       bool   `toml:"count_inodes"`

	NRI       bool   `toml:"nri"`
	NRISocket string `toml:"nri_socket"`
	DockerAPI string `toml:"docker_api"`
	DockerNRI string `toml:"docker_nri"`

	KubeletPods       bool   `toml:"kubelet_pods"`
	KubeletAddress    string `toml:"kubelet_address"`
	KubeletCA         string `toml:"kubelet_ca"`
	KubeletCredential string `toml:"kubelet_credential"`

	AlertPercents    []int    `toml:"alert_percents"`
	AlertCommand     []string `toml:"alert_command"`
	AlertWebhook     string   `toml:"alert_webhook"`
	ContainerMetrics int      `toml:"container_metrics"`

	API           string         `toml:"api"`
	APIGroup      string         `toml:"api_group"`
	APITokenFile  string         `toml:"api_token_file"`
	APINamespaces []APINamespace `toml:"api_namespaces"`

	DockerPlugin  string `toml:"docker_plugin"`
	DockerHome    string `toml:"docker_home"`
	DockerSocket  string `toml:"docker_socket"`
	DockerSpecDir string `toml:"docker_spec_dir"`

	Metrics     string   `toml:"metrics"`
	LogLevel    string   `toml:"log_level"`
	LogFormat   string   `toml:"log_format"`
	StopTimeout Duration `toml:"stop_timeout"`
}

// Duration is a time.Duration in the form "30s".
type Duration struct{ time.Duration }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	var err error
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// Default is the configuration without a file.
func Default() Config {
	return Config{
		Root:              "/var/lib/cowshed",
		State:             "/run/cowshed",
		Driver:            autoDriver,
		Address:           "/run/cowshed/cowshed.sock",
		ContainerdAddress: "/run/containerd/containerd.sock",
		LimitScope:        quota.ScopeLayer.String(),
		RootStyle:         string(cowcommon.SnapshotRoot),
		NRISocket:         "/var/run/nri/nri.sock",
		KubeletAddress:    "127.0.0.1:10250",
		AlertPercents:     []int{80, 95},
		DockerSpecDir:     plugin.SpecDir,
		LogLevel:          "info",
		LogFormat:         "text",
		StopTimeout:       Duration{25 * time.Second},
	}
}

// ReadConfig reads a file over the defaults. Returns errdefs.ErrInvalidArgument, with the line, if a key is unknown
// or comes twice, or if a value has the wrong type. Returns fs.ErrNotExist if the file does not exist. Validate
// checks the meaning of the values.
func ReadConfig(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c, err := parseConfig(text)
	if err != nil {
		return Config{}, fault.New(errdefs.ErrInvalidArgument, "%s: %w", file, err)
	}
	return c, nil
}

func parseConfig(text []byte) (Config, error) {
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(&c)
	var unknown *toml.StrictMissingError
	var malformed *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var errs []error
		for i := range unknown.Errors {
			line, _ := unknown.Errors[i].Position()
			errs = append(errs, fmt.Errorf("line %d: unknown key %q", line, strings.Join(unknown.Errors[i].Key(), ".")))
		}
		return Config{}, errors.Join(errs...)
	case errors.As(err, &malformed):
		line, column := malformed.Position()
		return Config{}, fmt.Errorf("line %d, column %d: %w", line, column, err)
	case err != nil:
		return Config{}, err
	}
	return c, nil
}

// Validate reports all that is wrong with the values, as errdefs.ErrInvalidArgument.
func (c Config) Validate() error {
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	for _, dir := range []struct {
		key, path string
		optional  bool
	}{
		{"root", c.Root, false}, {"state", c.State, false}, {"address", c.Address, false},
		{"containerd_address", c.ContainerdAddress, false}, {"nri_socket", c.NRISocket, false}, {"docker_nri", c.DockerNRI, true}, {"docker_home", c.DockerHome, true},
		{"kubelet_ca", c.KubeletCA, !c.KubeletPods}, {"kubelet_credential", c.KubeletCredential, !c.KubeletPods},
		{"docker_socket", c.DockerSocket, true}, {"docker_spec_dir", c.DockerSpecDir, false},
		{"api", c.API, true}, {"api_token_file", c.APITokenFile, true},
	} {
		if !dir.optional || dir.path != "" {
			check(dir.key, checkAbsolute(dir.path))
		}
	}
	_, err := parseLimit(c.DefaultLimit)
	check("default_limit", err)
	_, err = parseLimit(c.BuildLimit)
	check("build_limit", err)
	_, err = parseLimit(c.MaxLimit)
	check("max_limit", err)
	if c.DockerAPI != "" {
		check("docker_api", dockerapi.CheckAddress(c.DockerAPI))
	}
	check("kubelet_address", kubelet.CheckAddress(c.KubeletAddress))
	if c.KubeletPods && !c.NRI {
		check("kubelet_pods", errors.New("needs nri = true"))
	}
	check("alert_percents", limitalert.CheckLevels(c.AlertPercents))
	check("alert_command", limitalert.CheckCommand(c.AlertCommand))
	if c.AlertWebhook != "" {
		check("alert_webhook", limitalert.CheckWebhook(c.AlertWebhook))
	}
	check("api_namespaces", checkNamespaces(c.APINamespaces))
	if c.ContainerMetrics < 0 || c.ContainerMetrics > maxContainerMetrics {
		check("container_metrics", fmt.Errorf("%d must be from 0 to %d", c.ContainerMetrics, maxContainerMetrics))
	}
	_, err = quota.ParseScope(c.LimitScope)
	check("limit_scope", err)
	_, err = cowcommon.ParseRootStyle(c.RootStyle)
	check("root_style", err)
	check("driver", c.checkDriver())
	check("storage_options", c.checkStorageOptions())
	if c.DockerPlugin != "" {
		check("docker_plugin", plugin.CheckName(c.DockerPlugin))
	}
	_, _, err = metricsAddress(c.Metrics)
	check("metrics", err)
	_, err = c.Handler(nil)
	check("log", err)
	if c.StopTimeout.Duration <= 0 {
		check("stop_timeout", fmt.Errorf("%s must be more than 0", c.StopTimeout.Duration))
	}
	if len(errs) == 0 {
		return nil
	}
	return fault.New(errdefs.ErrInvalidArgument, "configuration: %w", errors.Join(errs...))
}

func checkAbsolute(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%q must be an absolute path", path)
	}
	return nil
}

func (c Config) checkDriver() error {
	if c.Driver != autoDriver && !graphdriver.IsRegistered(c.Driver) {
		return fmt.Errorf("%q: say %s", c.Driver, strings.Join(append(graphdriver.Drivers(), autoDriver), ", "))
	}
	return nil
}

// checkStorageOptions checks the options of each driver, so that a misspelled option is not taken for another
// driver's.
func (c Config) checkStorageOptions() error {
	var drivers []string
	for _, option := range c.StorageOptions {
		driver, name := splitOption(option)
		switch {
		case name == "size":
			return fmt.Errorf("%q: say default_limit or build_limit", option)
		case name == "quota_scope":
			return fmt.Errorf("%q: say limit_scope", option)
		case name == "root_style":
			return fmt.Errorf("%q: say root_style", option)
		case isPlace(option) && c.Driver != driver:
			return fmt.Errorf("%q needs driver = %q", option, driver)
		}
		drivers = append(drivers, driver)
	}
	if c.Driver != autoDriver {
		drivers = append(drivers, c.Driver)
	}
	for _, driver := range drivers {
		for _, limit := range []struct{ key, size string }{{"default_limit", c.DefaultLimit}, {"build_limit", c.BuildLimit}} {
			if _, err := cowdriver.ParseOptions(driver, c.limitedOptions(driver, limit.size)); err != nil {
				return fmt.Errorf("with %s = %q: %w", limit.key, limit.size, err)
			}
		}
	}
	return nil
}

// isPlace reports whether an option says where its driver keeps volumes.
func isPlace(option string) bool {
	driver, _ := splitOption(option)
	r, ok := cowdriver.Lookup(driver)
	return ok && r.NamesPlace(option)
}

// splitOption splits "driver.name=value" as quota.Setters do.
func splitOption(option string) (driver, name string) {
	key, _, _ := strings.Cut(option, "=")
	driver, name, _ = strings.Cut(strings.ToLower(strings.TrimSpace(key)), ".")
	return driver, name
}

// parseLimit is a limit in bytes, 0 for none.
func parseLimit(limit string) (uint64, error) {
	if limit == "" {
		return 0, nil
	}
	return quota.ParseSize(limit)
}

// driverOptions are the storage options, with the daemon's limits and root style as options of the driver.
func (c Config) driverOptions(driver string) []string {
	return c.limitedOptions(driver, c.DefaultLimit)
}

// limitedOptions are driverOptions with another default limit.
func (c Config) limitedOptions(driver, limit string) []string {
	var options []string
	for _, option := range c.StorageOptions {
		if of, _ := splitOption(option); of == driver {
			options = append(options, option)
		}
	}
	options = append(options, driver+".quota_scope="+c.LimitScope, driver+".root_style="+c.RootStyle)
	if limit != "" {
		options = append(options, driver+".size="+limit)
	}
	return options
}

// LiveDirs are the directories with the records of containers' snapshots and forks.
func (c Config) LiveDirs() []string {
	dirs, _ := filepath.Glob(filepath.Join(live.DirsIn(filepath.Join(c.Root, containerdDir)), "*")) // "*" is a good pattern
	return dirs
}

// VolumeNames lists the daemon's volumes for completion, without opening their home.
func (c Config) VolumeNames(ctx context.Context) (names []string) {
	for _, driver := range cowdriver.Registered() {
		list, _ := driver.Names(ctx, filepath.Join(c.Root, containerdDir, driver.Name), c.StorageOptions) // "" has none
		names = append(names, list...)
	}
	return names
}

// dockerSocket is the path of the plugin's socket.
func (c Config) dockerSocket() (string, error) {
	if c.DockerSocket != "" {
		return c.DockerSocket, nil
	}
	return plugin.SocketPath(c.DockerPlugin)
}

// metricsAddress splits an address into network and address. "" is none.
func metricsAddress(address string) (network, addr string, err error) {
	if address == "" {
		return "", "", nil
	}
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		return "unix", path, checkAbsolute(path)
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return "", "", fmt.Errorf("%q must be HOST:PORT or unix:///PATH: %w", address, err)
	}
	return "tcp", address, nil
}

// Handler makes the log that the configuration asks for, written to w.
func (c Config) Handler(w io.Writer) (slog.Handler, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("log_level %q: say debug, info, warn or error", c.LogLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch c.LogFormat {
	case "text":
		return slog.NewTextHandler(w, opts), nil
	case "json":
		return slog.NewJSONHandler(w, opts), nil
	}
	return nil, fmt.Errorf("log_format %q: say text or json", c.LogFormat)
}
