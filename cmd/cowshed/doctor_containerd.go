package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/containerdconf"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/setup"
	"github.com/cowshed/cowshed/live"
)

// answerTimeout is how long doctor waits for a daemon.
const answerTimeout = 5 * time.Second

// containerdFlags are the flags of doctor --containerd.
type containerdFlags struct {
	check             bool
	repair            bool
	configFile        string // of the daemon
	containerdConfig  string
	containerdAddress string // "": the address in the daemon's configuration
	dockerConfig      string
}

func addContainerdFlags(cmd *cobra.Command) *containerdFlags {
	f := &containerdFlags{}
	flags := cmd.Flags()
	flags.BoolVar(&f.check, "containerd", false, "check the set-up of containerd and Docker, instead of the store")
	flags.BoolVar(&f.repair, "repair", false, "with --containerd and while cowshed serve does not run: make its metadata anew if it is damaged")
	flags.StringVar(&f.configFile, "config", daemon.DefaultConfigFile, "configuration `FILE` of cowshed serve")
	flags.StringVar(&f.containerdConfig, "containerd-config", containerdconf.DefaultFile, "configuration `FILE` of containerd")
	flags.StringVar(&f.containerdAddress, "containerd-address", "", "`SOCKET` of containerd; by default that of the configuration of cowshed serve")
	flags.StringVar(&f.dockerConfig, "docker-config", setup.DefaultDockerConfig, "configuration `FILE` of Docker, if there is one")
	return f
}

// containerd checks the set-up of a host whose containerd is to use cowshed serve.
func (d *doctor) containerd(ctx context.Context, cmd *cobra.Command, f *containerdFlags) {
	d.privileges()
	c, err := daemon.ReadConfig(f.configFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config"):
		c = daemon.Default()
		d.add(ok, "configuration", "", "there is no %s, so defaults are used", f.configFile)
	case err != nil:
		d.add(fail, "configuration", "packaging/cowshed.toml has all keys", "%v", err)
		return
	}
	d.app.override(cmd.Flags(), &c)
	if f.containerdAddress != "" {
		c.ContainerdAddress = f.containerdAddress
	}
	if err := c.Validate(); err != nil {
		d.add(fail, "configuration", "packaging/cowshed.toml has all keys", "%v", err)
		return
	}
	d.add(ok, "limits", "", "%s", limitsOf(c))
	d.app.root = c.Root
	d.filesystem(ctx)
	h := hostCheck{d, c, f, d.app.globalFlags(cmd.Flags())}
	if f.repair {
		h.repairMetadata(cmd)
		return
	}
	answers := d.daemonAnswers(ctx, c)
	d.findings = append(d.findings, daemon.Examine(ctx, c, d.app.log)...)
	h.lost()
	h.doomed()
	h.moments(ctx)
	h.engines(answers)
	config, err := containerdconf.Read(f.containerdConfig, nil)
	if err != nil {
		d.add(fail, containerdCheck, h.advise(setup.Containerd, "", "put that right: containerd cannot read it either"), "%v", err)
		return
	}
	snapshotter := h.proxies(config)
	h.addresses(config)
	if snapshotter != "" {
		h.containerdAnswers(ctx, snapshotter)
	}
	h.docker(snapshotter)
}

// limitsOf says which limits the daemon sets by itself.
func limitsOf(c daemon.Config) string {
	orNone := func(size string) string {
		if size == "" {
			return "none"
		}
		return size
	}
	return fmt.Sprintf("containers: %s (default_limit); builds and layers that are unpacked: %s (build_limit)",
		orNone(c.DefaultLimit), orNone(c.BuildLimit))
}

// daemonAnswers asks the daemon whether it is well, and returns whether it says so.
func (d *doctor) daemonAnswers(ctx context.Context, c daemon.Config) bool {
	if _, err := os.Stat(c.Address); err != nil {
		d.add(fail, "daemon", "start it with: systemctl enable --now cowshed.service", "%v", err)
		return false
	}
	err := ask(ctx, c.Address, func(ctx context.Context, conn *grpc.ClientConn) error {
		answer, err := healthapi.NewHealthClient(conn).Check(ctx, &healthapi.HealthCheckRequest{})
		if err == nil && answer.GetStatus() != healthapi.HealthCheckResponse_SERVING {
			err = fmt.Errorf("it says %s", answer.GetStatus())
		}
		return err
	})
	if err != nil {
		d.add(fail, "daemon", "see: journalctl -u cowshed", "%s: %v", c.Address, err)
		return false
	}
	d.add(ok, "daemon", "", "it answers on %s", c.Address)
	return true
}

// moments looks at the snapshots, forks and schedules of containers. It opens the home beside the daemon, if there is any record.
func (h hostCheck) moments(ctx context.Context) {
	dirs := h.config.LiveDirs()
	if len(dirs) == 0 {
		return
	}
	dir, driver, err := daemon.OpenHome(ctx, h.config, h.app.log)
	if err != nil {
		h.add(warn, momentsCheck, "", "those of containers are not looked at: %v", err)
	} else {
		own := live.Dir(dir, driver.String(), driver.Backend())
		dirs = slices.DeleteFunc(dirs, func(dir string) bool { return dir == own })
		h.doctor.moments(ctx, live.New(driver.Backend(), own, h.app.log))
		if err := driver.Cleanup(); err != nil {
			h.add(warn, momentsCheck, "", "%v", err)
		}
	}
	for _, dir := range dirs { // of another driver or place, whose volumes nobody has open
		h.problems(live.New(nil, dir, h.app.log).CheckSchedules(time.Now()))
	}
}

// doomed reports volumes whose space is not free although their snapshots are removed.
func (h hostCheck) doomed() {
	const check = "removed volumes"
	reasons, err := daemon.ReportedDoomed(h.config)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		h.add(warn, check, "", "%v", err)
	case len(reasons) > 0:
		volume := slices.Min(slices.Collect(maps.Keys(reasons)))
		h.add(warn, check, "end the uses of them; the daemon tries again at least once a minute",
			"volumes of removed snapshots that could not be destroyed yet: %d, such as %s: %s", len(reasons), volume, reasons[volume])
	}
}

// ask connects to a daemon on a socket and asks it something.
func ask(ctx context.Context, socket string, question func(context.Context, *grpc.ClientConn) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := containerdapi.Dial(socket)
	if err != nil {
		return err
	}
	return errors.Join(question(ctx, conn), conn.Close())
}

// hostCheck checks the configuration of the daemon and of its clients.
type hostCheck struct {
	*doctor
	config daemon.Config
	files  *containerdFlags
	global []string // flags of the command line
}

const containerdCheck = "containerd's configuration"

// advise returns the command that sets up a target, or what to do by hand where that would not do it. engine is the
// version of Docker Engine, as far as it is known.
func (h hostCheck) advise(target setup.Target, engine, byHand string) string {
	host := hostOf(h.config, setup.Host{
		Engine: engine, Global: h.global,
		CowshedConfig: h.files.configFile, ContainerdConfig: h.files.containerdConfig, DockerConfig: h.files.dockerConfig,
	})
	plan, err := setup.New(target, host)
	if err != nil && !errdefs.IsInvalidArgument(err) || err == nil && len(plan.Changes) == 0 {
		return byHand
	}
	return "run: " + host.Command(target)
}

// otherwise returns how to have a target use Cowshed, which it does not, and need not.
func (h hostCheck) otherwise(target setup.Target) string {
	if advice := h.advise(target, "", ""); advice != "" {
		return "to change that, " + advice
	}
	return ""
}

// proxyAdvice says how a proxy plugin has to be.
func (h hostCheck) proxyAdvice(name, kind string) string {
	return fmt.Sprintf("say in [proxy_plugins.%s]: type = %q, address = %q", name, kind, h.config.Address)
}

// proxies checks the proxy plugins, and returns the name that containerd has for the snapshotter, "" if none.
func (h hostCheck) proxies(config *containerdconf.Config) string {
	snapshotters := config.ProxiesTo(h.config.Address, "snapshot")
	if len(snapshotters) == 0 {
		h.add(fail, containerdCheck, h.advise(setup.Containerd, "", h.proxyAdvice("cowshed", "snapshot")), "%s has no proxy plugin of the type snapshot with the address %s",
			strings.Join(config.Files, ", "), h.config.Address)
		return ""
	}
	name := snapshotters[0]
	if slices.Contains(containerdconf.BuiltinSnapshotters, name) {
		h.add(fail, containerdCheck, "give the proxy plugin another name", "%s is a snapshotter of containerd itself", name)
	}
	h.add(ok, containerdCheck, "", "the snapshotter %s is served by %s", name, h.config.Address)
	h.exports(name, config.Proxies[name])

	differs := config.ProxiesTo(h.config.Address, "diff")
	if len(differs) == 0 {
		h.add(fail, containerdCheck, h.advise(setup.Containerd, "", h.proxyAdvice("cowshed-diff", "diff")),
			"no proxy plugin of the type diff has the address %s, so that layers are made by walking", h.config.Address)
		return name
	}
	h.diffOrder(config, differs)
	h.unpack(config, name, differs)
	switch config.CRISnapshotter {
	case name:
		h.add(ok, containerdCheck, "", "Kubernetes (CRI) uses %s", name)
	case "":
		h.add(ok, containerdCheck, h.otherwise(setup.Kubernetes), "Kubernetes (CRI) uses containerd's own snapshotter")
	default:
		h.add(ok, containerdCheck, h.otherwise(setup.Kubernetes), "Kubernetes (CRI) uses %s, not %s", config.CRISnapshotter, name)
	}
	return name
}

// exports checks the facts that containerd is given about the snapshotter.
func (h hostCheck) exports(name string, p containerdconf.Proxy) {
	dir := filepath.Join(h.config.Root, "containerd")
	if real, err := filepath.EvalSymlinks(dir); err == nil && p.Exports["root"] == real {
		dir = real
	}
	switch root := p.Exports["root"]; root {
	case dir:
		h.add(ok, containerdCheck, "", "imagefs statistics are those of %s", dir)
	case "":
		h.add(warn, containerdCheck, h.advise(setup.Containerd, "", fmt.Sprintf("add to [proxy_plugins.%s.exports]: root = %q", name, dir)),
			"%s exports no root, which Kubernetes needs for imagefs statistics", name)
	default:
		h.add(warn, containerdCheck, h.advise(setup.Containerd, "", fmt.Sprintf("say in [proxy_plugins.%s.exports]: root = %q", name, dir)),
			"%s exports the root %s, and its volumes are in %s", name, root, dir)
	}
	if !slices.Contains(p.Capabilities, "remap-ids") {
		h.add(warn, containerdCheck, h.advise(setup.Containerd, "", fmt.Sprintf("add to [proxy_plugins.%s]: capabilities = [\"remap-ids\"]", name)),
			"%s has not the capability remap-ids, so that each start of a container in a user namespace copies and changes its image", name)
	}
}

// diffOrder checks that the differ is asked before containerd's own, which is asked as well.
func (h hostCheck) diffOrder(config *containerdconf.Config, differs []string) {
	own, walking := config.Asks(differs)
	advice := h.advise(setup.Containerd, "", fmt.Sprintf("say in [plugins.'io.containerd.service.v1.diff-service']: default = [%q, \"walking\"]", differs[0]))
	switch {
	case own < 0:
		h.add(fail, containerdCheck, advice, "the diff service does not ask %s, so that layers are made by walking", differs[0])
	case walking >= 0 && walking < own:
		h.add(fail, containerdCheck, advice, "the diff service asks walking before %s, so that layers are made by walking", config.DiffOrder[own])
	case walking < 0:
		h.add(warn, containerdCheck, advice, "the diff service does not ask walking, which snapshots of other snapshotters need")
	default:
		h.add(ok, containerdCheck, "", "the diff service asks %s first", config.DiffOrder[own])
	}
}

// unpack checks that images are unpacked with the pair.
func (h hostCheck) unpack(config *containerdconf.Config, snapshotter string, differs []string) {
	advice := h.advise(setup.Containerd, "", fmt.Sprintf("add [[plugins.'io.containerd.transfer.v1.local'.unpack_config]] with platform = \"linux\", snapshotter = %q, differ = %q", snapshotter, differs[0]))
	switch differ, unpacks := config.UnpacksWith(snapshotter); {
	case unpacks && slices.Contains(differs, differ):
		h.add(ok, containerdCheck, "", "the transfer service unpacks images for %s with %s", snapshotter, differ)
	case unpacks:
		h.add(warn, containerdCheck, advice, "the transfer service unpacks images for %s with %q, which has to mount each layer", snapshotter, differ)
	case !config.Disables("io.containerd.transfer.v1.local"):
		h.add(fail, containerdCheck, advice, "the transfer service cannot unpack images for %s", snapshotter)
	}
}

// addresses checks that the daemon reaches the containerd that it serves.
func (h hostCheck) addresses(config *containerdconf.Config) {
	address := config.GRPCAddress
	if address == "" || address == h.config.ContainerdAddress {
		return
	}
	h.add(fail, containerdCheck, fmt.Sprintf("say in %s: containerd_address = %q", h.files.configFile, address),
		"containerd listens on %s, and the differ looks for its content store on %s", address, h.config.ContainerdAddress)
}

// containerdAnswers asks containerd whether it has loaded the snapshotter.
func (h hostCheck) containerdAnswers(ctx context.Context, snapshotter string) {
	const check = "containerd"
	var answer *introspectionapi.PluginsResponse
	err := ask(ctx, h.config.ContainerdAddress, func(ctx context.Context, conn *grpc.ClientConn) (err error) {
		answer, err = introspectionapi.NewIntrospectionClient(conn).Plugins(ctx, &introspectionapi.PluginsRequest{
			Filters: []string{fmt.Sprintf("type==io.containerd.snapshotter.v1,id==%s", snapshotter)},
		})
		return err
	})
	if err != nil {
		h.add(fail, check, "see: systemctl status containerd", "%s: %v", h.config.ContainerdAddress, err)
		return
	}
	loaded := answer.GetPlugins()
	if len(loaded) == 0 {
		h.add(fail, check, "restart it: systemctl restart containerd", "it answers on %s, but has not loaded %s", h.config.ContainerdAddress, snapshotter)
		return
	}
	if problem := loaded[0].GetInitErr(); problem != nil {
		h.add(fail, check, "see: journalctl -u containerd", "it could not load %s: %s", snapshotter, problem.GetMessage())
		return
	}
	h.add(ok, check, "", "it answers on %s and has loaded %s", h.config.ContainerdAddress, snapshotter)
}

// docker checks the configuration of a Docker Engine, if there is one. snapshotter is containerd's name for Cowshed.
func (h hostCheck) docker(snapshotter string) {
	const check = "Docker"
	text, err := os.ReadFile(h.files.dockerConfig)
	if errors.Is(err, fs.ErrNotExist) {
		h.add(ok, check, "", "there is no %s", h.files.dockerConfig)
		return
	}
	var config struct {
		StorageDriver string          `json:"storage-driver"`
		Experimental  bool            `json:"experimental"`
		Features      map[string]bool `json:"features"`
		Containerd    string          `json:"containerd"`
	}
	if err == nil {
		err = json.Unmarshal(text, &config)
	}
	file := h.files.dockerConfig
	store := config.Features["containerd-snapshotter"]
	switch {
	case err != nil:
		h.add(fail, check, "put that right: the engine cannot read it either", "%s: %v", file, err)
	case config.StorageDriver == "":
		h.add(ok, check, h.otherwise(setup.Docker), "%s names no storage driver, so Docker does not use Cowshed", file)
	case store && config.StorageDriver == snapshotter:
		h.add(ok, check, "", "it uses the snapshotter %s through the containerd image store", snapshotter)
		if config.Containerd != "" && config.Containerd != h.config.ContainerdAddress {
			h.add(fail, check, fmt.Sprintf("say in %s: containerd_address = %q, and restart cowshed serve", h.files.configFile, config.Containerd),
				"%s says that its containerd is on %s, and Cowshed serves the one on %s", file, config.Containerd, h.config.ContainerdAddress)
		}
	case config.StorageDriver == h.config.DockerPlugin && !config.Experimental:
		h.add(fail, check, h.advise(setup.Docker, "26", fmt.Sprintf("say in %s: \"experimental\": true", file)),
			"graph driver plugins such as %s need an engine in experimental mode", config.StorageDriver)
	case config.StorageDriver == h.config.DockerPlugin:
		h.add(ok, check, "", "it uses the graph driver plugin %s", config.StorageDriver)
	case config.StorageDriver == snapshotter:
		h.add(fail, check, h.advise(setup.Docker, "29", fmt.Sprintf("say in %s: \"features\": {\"containerd-snapshotter\": true}", file)),
			"it does not use the containerd image store, in which alone it can use the snapshotter %s", snapshotter)
	default:
		h.add(ok, check, h.otherwise(setup.Docker), "it uses the storage driver %s, not Cowshed", config.StorageDriver)
	}
}
