package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cowshed/cowshed/internal/daemon"
)

// serveFlags are the flags of serve that override keys of the configuration.
type serveFlags struct {
	configFile string
	config     daemon.Config // the values of the flags
	timeout    time.Duration
}

func newServeCommand(a *app) *cobra.Command {
	f := &serveFlags{config: daemon.Default()}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve containerd as snapshotter and differ, and Docker as graph driver plugin",
		Long: `Serves containerd, which uses Cowshed as proxy plugins of the types snapshot and diff, on a unix socket; and
with --docker-plugin a Docker Engine that has graph driver plugins. It runs until SIGTERM or SIGINT, and then ends
running requests.

The configuration is read from ` + daemon.DefaultConfigFile + `, if that exists, or from --config. Flags override
it. packaging/cowshed.toml describes each key; a flag has the name of its key with dashes.

Volumes for containerd are kept below ROOT/containerd, apart from the layers of the other commands, which may be
used meanwhile. A second daemon on the same root is refused.`,
		Example: `  cowshed serve --root /srv/cowshed --default-limit 20G
  cowshed serve --docker-plugin cowshed --metrics 127.0.0.1:9417`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.configFile, "config", daemon.DefaultConfigFile, "configuration `FILE`")
	flags.StringVar(&f.config.Address, "address", f.config.Address, "`SOCKET` for containerd")
	flags.StringVar(&f.config.State, "state", f.config.State, "`DIR` for state that a reboot may delete")
	flags.StringVar(&f.config.ContainerdAddress, "containerd-address", f.config.ContainerdAddress, "`SOCKET` of containerd, for its content store")
	flags.StringVar(&f.config.DefaultLimit, "default-limit", "", "most that a container may write, as `SIZE` such as 20G; none by default")
	flags.StringVar(&f.config.BuildLimit, "build-limit", "", "most that a snapshot of a build, or a layer that is unpacked, may hold, as `SIZE`; none by default")
	flags.StringVar(&f.config.MaxLimit, "max-limit", "", "largest `SIZE` that an engine, or a request of the API, may name for a container")
	flags.BoolVar(&f.config.NRI, "nri", false, "limit containers of Kubernetes by annotations of their pods, as a plugin of NRI")
	flags.StringVar(&f.config.NRISocket, "nri-socket", f.config.NRISocket, "`SOCKET` of containerd's NRI")
	flags.BoolVar(&f.config.KubeletPods, "kubelet-pods", false, "ask the kubelet for the limits of pods without such an annotation")
	flags.StringVar(&f.config.KubeletAddress, "kubelet-address", f.config.KubeletAddress, "`HOST:PORT` of the kubelet")
	flags.StringVar(&f.config.KubeletCA, "kubelet-ca", "", "`FILE` with the authority of the kubelet's certificate")
	flags.StringVar(&f.config.KubeletCredential, "kubelet-credential", "", "`FILE` with a token, or a certificate and its key, for the kubelet")
	flags.StringVar(&f.config.DockerNRI, "docker-nri", "", "limit containers of the Docker Engine with NRI at this `SOCKET` by their label cowshed.size")
	flags.StringVar(&f.config.DockerAPI, "docker-api", "", "limit containers of the Docker Engine at this `ADDRESS`, as unix:///run/docker.sock, by --storage-opt size")
	flags.IntSliceVar(&f.config.AlertPercents, "alert-percents", f.config.AlertPercents, "report containers at these parts of their limit, in percent")
	flags.StringArrayVar(&f.config.AlertCommand, "alert-command", nil, "absolute path or `ARGUMENT` of the command that gets these reports (repeatable)")
	flags.StringVar(&f.config.AlertWebhook, "alert-webhook", "", "`URL` to which these reports are posted")
	flags.IntVar(&f.config.ContainerMetrics, "container-metrics", 0, "how many containers have metrics of their own, the fullest first")
	flags.StringVar(&f.config.LimitScope, "limit-scope", f.config.LimitScope, "data that limits count: layer or total")
	flags.StringVar(&f.config.RootStyle, "root-style", f.config.RootStyle, "root of a container: "+rootStyles)
	must(cmd.RegisterFlagCompletionFunc("root-style", completeRootStyles))
	flags.BoolVar(&f.config.CountInodes, "count-inodes", false, "count inodes when usage is asked for, by comparing layers")
	flags.StringVar(&f.config.API, "api", "", "`SOCKET` of the HTTP API")
	flags.StringVar(&f.config.APIGroup, "api-group", "", "`GROUP` whose members may connect to the API, besides root")
	flags.StringVar(&f.config.APITokenFile, "api-token-file", "", "`FILE` with a token whose bearer may do everything by the API")
	flags.StringVar(&f.config.DockerPlugin, "docker-plugin", "", "serve Docker Engines that have graph driver plugins, under this `NAME`")
	flags.StringVar(&f.config.DockerHome, "docker-home", "", "`DIR` for that driver's layers, instead of the engine's data root")
	flags.StringVar(&f.config.DockerSocket, "docker-socket", "", "`SOCKET` of that plugin, if not in /run/docker/plugins")
	flags.StringVar(&f.config.DockerSpecDir, "docker-spec-dir", f.config.DockerSpecDir, "`DIR` for the file that names --docker-socket to the engine")
	flags.StringVar(&f.config.Metrics, "metrics", "", "serve Prometheus metrics on `ADDRESS`, HOST:PORT or unix:///PATH")
	flags.StringVar(&f.config.LogFormat, "log-format", f.config.LogFormat, "text or json")
	flags.DurationVar(&f.timeout, "stop-timeout", f.config.StopTimeout.Duration, "how long requests may go on after SIGTERM")
	return cmd
}

func (a *app) serve(cmd *cobra.Command, f *serveFlags) error {
	c, err := f.read(cmd.Flags())
	if err != nil {
		return err
	}
	a.override(cmd.Flags(), &c)
	if err := c.Validate(); err != nil {
		return err
	}
	handler, err := c.Handler(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	a.log = slog.New(handler)
	a.root = c.Root
	if err := a.mountEmbedded(cmd.Context()); err != nil {
		return err
	}
	return daemon.Run(cmd.Context(), c, daemon.Options{Version: versionString(), Logger: a.log})
}

// read reads the configuration file. Only a file that the user has named must exist.
func (f *serveFlags) read(flags *pflag.FlagSet) (daemon.Config, error) {
	c, err := daemon.ReadConfig(f.configFile)
	if errors.Is(err, fs.ErrNotExist) {
		if flags.Changed("config") {
			return daemon.Config{}, usageError{err}
		}
		c, err = daemon.Default(), nil
	}
	if err != nil {
		return daemon.Config{}, err
	}
	f.config.StopTimeout = daemon.Duration{Duration: f.timeout}
	for name, set := range map[string]func(){
		"address":            func() { c.Address = f.config.Address },
		"state":              func() { c.State = f.config.State },
		"containerd-address": func() { c.ContainerdAddress = f.config.ContainerdAddress },
		"default-limit":      func() { c.DefaultLimit = f.config.DefaultLimit },
		"build-limit":        func() { c.BuildLimit = f.config.BuildLimit },
		"max-limit":          func() { c.MaxLimit = f.config.MaxLimit },
		"nri":                func() { c.NRI = f.config.NRI },
		"nri-socket":         func() { c.NRISocket = f.config.NRISocket },
		"kubelet-pods":       func() { c.KubeletPods = f.config.KubeletPods },
		"kubelet-address":    func() { c.KubeletAddress = f.config.KubeletAddress },
		"kubelet-ca":         func() { c.KubeletCA = f.config.KubeletCA },
		"kubelet-credential": func() { c.KubeletCredential = f.config.KubeletCredential },
		"docker-nri":         func() { c.DockerNRI = f.config.DockerNRI },
		"docker-api":         func() { c.DockerAPI = f.config.DockerAPI },
		"alert-percents":     func() { c.AlertPercents = f.config.AlertPercents },
		"alert-command":      func() { c.AlertCommand = f.config.AlertCommand },
		"alert-webhook":      func() { c.AlertWebhook = f.config.AlertWebhook },
		"container-metrics":  func() { c.ContainerMetrics = f.config.ContainerMetrics },
		"limit-scope":        func() { c.LimitScope = f.config.LimitScope },
		"root-style":         func() { c.RootStyle = f.config.RootStyle },
		"count-inodes":       func() { c.CountInodes = f.config.CountInodes },
		"api":                func() { c.API = f.config.API },
		"api-group":          func() { c.APIGroup = f.config.APIGroup },
		"api-token-file":     func() { c.APITokenFile = f.config.APITokenFile },
		"docker-plugin":      func() { c.DockerPlugin = f.config.DockerPlugin },
		"docker-home":        func() { c.DockerHome = f.config.DockerHome },
		"docker-socket":      func() { c.DockerSocket = f.config.DockerSocket },
		"docker-spec-dir":    func() { c.DockerSpecDir = f.config.DockerSpecDir },
		"metrics":            func() { c.Metrics = f.config.Metrics },
		"log-format":         func() { c.LogFormat = f.config.LogFormat },
		"stop-timeout":       func() { c.StopTimeout = f.config.StopTimeout },
	} {
		if flags.Changed(name) {
			set()
		}
	}
	return c, nil
}

// override replaces values of the configuration with those of global flags, and of their environment variables.
func (a *app) override(flags *pflag.FlagSet, c *daemon.Config) {
	if flags.Changed("root") || os.Getenv(rootEnv) != "" {
		c.Root = a.root
	}
	if flags.Changed("driver") || os.Getenv(driverEnv) != "" {
		c.Driver = a.driverName
	}
	if flags.Changed("storage-opt") {
		c.StorageOptions = append(c.StorageOptions, a.storageOpts...)
	}
	if flags.Changed("log-level") {
		c.LogLevel = a.logLevel
	}
	if a.quiet {
		c.LogLevel = fmt.Sprint(slog.LevelError)
	}
}
