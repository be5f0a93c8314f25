package daemon

import (
	"path/filepath"
	"slices"

	"github.com/cowshed/cowshed/plugin"
)

// pluginState is the file with the engine's last request to open a driver.
func (c Config) pluginState() string {
	return filepath.Join(c.State, "docker-"+c.DockerPlugin+".json")
}

// pluginHome is the directory of the plugin's home.
func (c Config) pluginHome(request plugin.InitRequest) string {
	if c.DockerHome != "" {
		return c.DockerHome
	}
	return request.Home
}

// pluginOptions returns the options of the plugin's drivers.
func (c Config) pluginOptions(request plugin.InitRequest) func(driver string) []string {
	return func(driver string) []string {
		own := slices.DeleteFunc(c.driverOptions(driver), isPlace) // where containerd's volumes are
		return append(own, request.Options...)
	}
}
