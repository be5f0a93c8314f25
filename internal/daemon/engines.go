package daemon

import (
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/layerref"
)

// Resolver finds the containers of the engines that a configuration names.
func Resolver(c Config) layerref.Resolver {
	return layerref.Resolver{DockerAPI: c.DockerAPI, Containerd: c.ContainerdAddress}
}

// ConnectContainerd connects to the containerd that the configuration names.
func (c Config) ConnectContainerd() (*containerdapi.Services, error) {
	return containerdapi.Connect(c.ContainerdAddress)
}
