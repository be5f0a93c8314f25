package setup

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cowshed/cowshed/internal/configedit"
	"github.com/cowshed/cowshed/internal/containerdconf"
)

// kubernetes plans the changes that make containerd's CRI plugin use containerd's snapshotter.
func (h Host) kubernetes() (*Plan, error) {
	p := &Plan{Target: Kubernetes, Units: []string{containerdUnit}, lockDir: h.ContainerdConfig}
	name, config, err := h.snapshotter(Kubernetes)
	if err != nil {
		return nil, err
	}
	if config.Disables("cri", "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images") {
		return nil, &RefusedError{File: h.ContainerdConfig, Reason: "disabled_plugins has CRI, which Kubernetes needs; take it out"}
	}
	if config.CRISnapshotter == name {
		return p, nil
	}
	main, err := h.mainConfig()
	if err != nil {
		return nil, err
	}
	imported := main.imported(importedCRIName)
	_, current, err := readConfig(imported)
	if err != nil {
		return nil, err
	}
	wanted := criText(main.version(), name)
	if owned, err := ownedBySetup(imported, current); err != nil || !owned {
		if err == nil {
			err = &RefusedError{File: imported, Reason: "cowshed setup has not written it, or not so; delete it, or change it", Paste: string(wanted)}
		}
		return nil, err
	}
	if err := p.addImported(main, imported, wanted, "images and containers of Kubernetes are on "+name); err != nil {
		return nil, err
	}
	after, err := containerdconf.Read(h.ContainerdConfig, p.planned())
	if err != nil {
		return nil, &RefusedError{File: h.ContainerdConfig, Reason: "it could not be read with the new entries", Cause: err, Paste: string(wanted)}
	}
	if after.CRISnapshotter != name {
		return nil, &RefusedError{File: imported, Paste: string(wanted), Reason: fmt.Sprintf("it would have no effect, since a file that is imported later says %q", after.CRISnapshotter)}
	}
	p.Notes = append(p.Notes, h.kubernetesNotes(config, name)...)
	return p, nil
}

// criText makes CRI use a snapshotter. The section has this name in all versions. Version 2 has another section for
// it, which containerd 2 loses in an imported file when it migrates that.
func criText(version int64, name string) []byte {
	return fmt.Appendf(nil, "%s\n[plugins.\"io.containerd.cri.v1.images\"]\n  snapshotter = %s\n", header(version, Kubernetes), configedit.QuoteTOML(name))
}

func (h Host) kubernetesNotes(config *containerdconf.Config, name string) []string {
	was := config.CRISnapshotter
	if was == "" {
		was = "containerd's own snapshotter"
	}
	notes := []string{
		fmt.Sprintf("Kubernetes uses %s until now. Its pods keep that: drain the node before containerd is restarted.", was),
		fmt.Sprintf("The kubelet's image filesystem (imagefs) becomes the one of %s. Check that the thresholds imagefs.available and imageGCHighThresholdPercent suit it.", h.Root),
		"The kubelet enforces no limit of a container there: default_limit in " + h.CowshedConfig + " does.",
	}
	for _, runtime := range slices.Sorted(maps.Keys(config.Runtimes)) {
		if other := config.Runtimes[runtime]; other != name {
			notes = append(notes, fmt.Sprintf("The runtime %s goes on using %s, which its own section names.", runtime, other))
		}
	}
	return notes
}
