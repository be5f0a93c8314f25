package setup

import (
	"fmt"

	"github.com/cowshed/cowshed/internal/configedit"
)

const buildkitUnit = "buildkit.service"

// defaultContainerd is where BuildKit looks for containerd.
const defaultContainerd = "/run/containerd/containerd.sock"

// nerdctl plans nerdctl's snapshotter.
func (h Host) nerdctl() (*Plan, error) {
	p := &Plan{Target: Nerdctl, lockDir: h.NerdctlConfig}
	name, _, err := h.snapshotter(Nerdctl)
	if err != nil {
		return nil, err
	}
	line := fmt.Sprintf("snapshotter = %q\n", name)
	var former any
	err = p.edit(h.NerdctlConfig, "nerdctl uses "+name+" where no other is named", line, func(text []byte) ([]byte, error) {
		former = tomlValue(text, "snapshotter")
		return configedit.SetTOML(text, []string{"snapshotter"}, name)
	})
	if err == nil && former != nil && former != name {
		p.Notes = append(p.Notes, fmt.Sprintf("Containers on %v stay; images have to be unpacked again, which nerdctl pull does.", former))
	}
	return p, err
}

// buildkit plans that builds are those of BuildKit's containerd worker.
func (h Host) buildkit() (*Plan, error) {
	p := &Plan{Target: BuildKit, Units: []string{buildkitUnit}, lockDir: h.BuildKitConfig}
	name, _, err := h.snapshotter(BuildKit)
	if err != nil {
		return nil, err
	}
	settings := []setting{
		{[]string{"worker", "oci", "enabled"}, false}, // else it goes before the other worker
		{[]string{"worker", "containerd", "enabled"}, true},
		{[]string{"worker", "containerd", "snapshotter"}, name},
	}
	if h.ContainerdAddress != defaultContainerd {
		settings = append(settings, setting{[]string{"worker", "containerd", "address"}, h.ContainerdAddress})
	}
	paste := ""
	for i, table := range []string{"[worker.oci]", "[worker.containerd]"} {
		paste += table + "\n"
		for _, s := range settings {
			if (s.path[1] == "containerd") == (i == 1) {
				paste += fmt.Sprintf("  %s = %#v\n", s.path[2], s.value)
			}
		}
	}
	err = p.edit(h.BuildKitConfig, "BuildKit builds on "+name+", in containerd", paste, func(text []byte) ([]byte, error) {
		if address, ok := tomlValue(text, "worker", "containerd", "address").(string); ok && address != "" && address != h.ContainerdAddress {
			return nil, fmt.Errorf("its containerd is on %s, and cowshed serve works for the one on %s", address, h.ContainerdAddress)
		}
		var err error
		for _, s := range settings {
			if text, err = configedit.SetTOML(text, s.path, s.value); err != nil {
				return nil, err
			}
		}
		return text, nil
	})
	if err == nil && len(p.Changes) > 0 {
		p.Notes = append(p.Notes, "Flags of buildkitd (--oci-worker, --containerd-worker…) go before the file. The cache of its other worker is not used any more.")
	}
	return p, err
}
