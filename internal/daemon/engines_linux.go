package daemon

import (
	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/enginelimits/dockerapi"
	"github.com/cowshed/cowshed/internal/enginelimits/kubelet"
	"github.com/cowshed/cowshed/internal/enginelimits/nri"
)

// openEngines makes the sources of limits that the configuration names.
func (d *daemon) openEngines(m *metrics) error {
	sources, err := d.config.limitSources()
	if err != nil {
		return err
	}
	if err := enginelimits.RemoveReport(d.config.State); err != nil {
		return err
	}
	d.engines = enginelimits.NewGroup(sources, d.snapshotter, m.engines, d.config.State, d.log)
	return nil
}

func (c Config) limitSources() ([]enginelimits.Source, error) {
	maxLimit, err := parseLimit(c.MaxLimit)
	if err != nil {
		return nil, err
	}
	// The author of a pod or an image is no operator of the host, and does not raise the limit of containers.
	most := maxLimit
	if most == 0 {
		if most, err = parseLimit(c.DefaultLimit); err != nil {
			return nil, err
		}
	}
	var sources []enginelimits.Source
	if c.NRI {
		pods := &nri.Source{Socket: c.NRISocket, Max: most}
		if c.KubeletPods {
			client := &kubelet.Client{Address: c.KubeletAddress, CA: c.KubeletCA, Credential: c.KubeletCredential}
			pods.Kubelet = kubelet.NewSource(client, most)
			sources = append(sources, pods.Kubelet)
		}
		sources = append(sources, pods)
	}
	if c.DockerNRI != "" {
		sources = append(sources, &nri.Source{Socket: c.DockerNRI, Max: most, Docker: true})
	}
	if c.DockerAPI != "" {
		client, err := dockerapi.NewClient(c.DockerAPI)
		if err != nil {
			return nil, err
		}
		sources = append(sources, &dockerapi.Source{Client: client, Max: maxLimit, MaxLabel: most})
	}
	return sources, nil
}
