package setup

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/configedit"
)

const (
	dockerUnit  = "docker.service"
	cowshedUnit = "cowshed.service"
)

// Versions of Docker Engine.
const (
	lastWithPlugins = 26
	firstWithStore  = 29
)

// docker plans the changes that make an engine use Cowshed: as snapshotter of its image store, or as graph driver
// plugin.
func (h Host) docker() (*Plan, error) {
	major, err := h.engineMajor()
	switch {
	case err != nil:
		return nil, err
	case major <= lastWithPlugins:
		return h.dockerPlugin()
	case major < firstWithStore:
		return nil, &RefusedError{File: h.DockerConfig, Reason: fmt.Sprintf("Docker Engine %d has no graph driver plugins any more, and Cowshed is for its image store from %d on; upgrade it",
			major, firstWithStore)}
	}
	return h.dockerStore()
}

var versionPattern = regexp.MustCompile(`[0-9]+\.[0-9]+(\.[0-9]+)?`)

// engineMajor is the first number of the engine's version.
func (h Host) engineMajor() (int, error) {
	version := h.Engine
	if version == "" {
		out, err := exec.Command("dockerd", "--version").Output()
		if err != nil {
			return 0, fault.New(errdefs.ErrInvalidArgument, "the version of the Docker Engine is unknown (dockerd --version: %w): say --engine VERSION", err)
		}
		version = versionPattern.FindString(string(out))
	}
	number, _, _ := strings.Cut(version, ".")
	major, err := strconv.Atoi(number)
	if err != nil || major <= 0 {
		return 0, fault.New(errdefs.ErrInvalidArgument, "the version of Docker Engine is %q; say --engine VERSION, such as 29.0", version)
	}
	return major, nil
}

// dockerStore is for engines that keep images in containerd.
func (h Host) dockerStore() (*Plan, error) {
	p := &Plan{Target: Docker, Units: []string{dockerUnit}, lockDir: h.DockerConfig}
	name, _, err := h.snapshotter(Docker)
	if err != nil {
		return nil, err
	}
	paste := fmt.Sprintf("{ \"features\": { \"containerd-snapshotter\": true }, \"storage-driver\": %q }\n", name)
	return p, p.editDocker(h, name, paste, func(config map[string]any) error {
		if options, ok := config["storage-opts"].([]any); ok && len(options) > 0 {
			return errors.New("storage-opts are those of another storage driver; take them out")
		}
		if address, ok := config["containerd"].(string); ok && address != "" && address != h.ContainerdAddress {
			return fmt.Errorf("its containerd is on %s, and cowshed serve works for the one on %s; say in %s: containerd_address = %q",
				address, h.ContainerdAddress, h.CowshedConfig, address)
		}
		return nil
	}, []setting{{[]string{"features", "containerd-snapshotter"}, true}, {[]string{"storage-driver"}, name}})
}

// dockerPlugin is for engines with graph driver plugins.
func (h Host) dockerPlugin() (*Plan, error) {
	p := &Plan{Target: Docker, Units: []string{dockerUnit}, lockDir: h.DockerConfig}
	name := h.DockerPlugin
	if name == "" {
		name = snapshotterName
		line := fmt.Sprintf("docker_plugin = %q\n", name)
		if err := p.edit(h.CowshedConfig, "Cowshed serves the plugin", line, func(text []byte) ([]byte, error) {
			return configedit.SetTOML(text, []string{"docker_plugin"}, name)
		}); err != nil {
			return nil, err
		}
		p.Units = []string{cowshedUnit, dockerUnit}
	}
	paste := fmt.Sprintf("{ \"experimental\": true, \"storage-driver\": %q }\n", name)
	return p, p.editDocker(h, name, paste, func(config map[string]any) error {
		options, _ := config["storage-opts"].([]any)
		for _, option := range options {
			if text, ok := option.(string); !ok || !strings.HasPrefix(text, "btrfs.") && !strings.HasPrefix(text, "zfs.") {
				return fmt.Errorf("storage-opts has %v, which is another storage driver's; take it out", option)
			}
		}
		return nil
	}, []setting{{[]string{"experimental"}, true}, {[]string{"storage-driver"}, name}})
}

// setting is a key with its value.
type setting struct {
	path  []string
	value any
}

// editDocker plans settings of daemon.json, if check has nothing against it.
func (p *Plan) editDocker(h Host, name, paste string, check func(map[string]any) error, settings []setting) error {
	former := ""
	err := p.edit(h.DockerConfig, "the engine uses "+name, paste, func(text []byte) ([]byte, error) {
		config, err := configedit.ParseJSON(text)
		if err != nil {
			return nil, err
		}
		if err := check(config); err != nil {
			return nil, err
		}
		former, _ = config["storage-driver"].(string)
		for _, s := range settings {
			if text, err = configedit.SetJSON(text, s.path, s.value); err != nil {
				return nil, err
			}
		}
		return text, nil
	})
	if err != nil || former == name {
		return err
	}
	if former == "" {
		former = "the storage driver that it has"
	}
	p.Notes = append(p.Notes, fmt.Sprintf("Images and containers of %s are neither shown nor deleted afterwards: docker save needed images first, docker load them then.", former))
	return nil
}

// dockerSnapshotter is the snapshotter that a daemon.json names, "" if none.
func dockerSnapshotter(text []byte) string {
	config, err := configedit.ParseJSON(text)
	if err != nil {
		return ""
	}
	features, _ := config["features"].(map[string]any)
	driver, _ := config["storage-driver"].(string)
	if features["containerd-snapshotter"] != true {
		return ""
	}
	return driver
}
