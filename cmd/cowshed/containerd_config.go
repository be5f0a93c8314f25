package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// containerdConfig is what of containerd's configuration concerns Cowshed.
type containerdConfig struct {
	proxies     map[string]containerdProxy // by name
	diffOrder   []string                   // nil: containerd's own
	unpack      []containerdUnpack
	unpackSet   bool
	criSnapshot string // snapshotter for Kubernetes, "" for containerd's own
	grpcAddress string // "" for the default
	disabled    []string
	version     int64
	files       []string
}

// containerdProxy is an entry of proxy_plugins.
type containerdProxy struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Exports      map[string]string `toml:"exports"`
	Capabilities []string          `toml:"capabilities"`
}

// containerdUnpack is an entry of unpack_config of the transfer service.
type containerdUnpack struct{ snapshotter, differ string }

// readContainerdConfig reads containerd's configuration with the files that it imports, which go before it.
func readContainerdConfig(file string) (*containerdConfig, error) {
	c := &containerdConfig{proxies: make(map[string]containerdProxy)}
	plugins := make(map[string]any)
	loaded := make(map[string]bool)
	for pending := []string{file}; len(pending) > 0; pending = pending[1:] {
		path := pending[0]
		if loaded[path] {
			continue
		}
		loaded[path] = true
		imports, err := c.readFile(path, plugins)
		if err != nil {
			return nil, err
		}
		pending = append(pending, imports...)
	}
	c.readPlugins(plugins)
	return c, nil
}

// readFile reads one file, and returns those that it imports.
func (c *containerdConfig) readFile(path string, plugins map[string]any) (imports []string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var parsed struct {
		Version  int64                      `toml:"version"`
		Imports  []string                   `toml:"imports"`
		Disabled []string                   `toml:"disabled_plugins"`
		Proxies  map[string]containerdProxy `toml:"proxy_plugins"`
		Plugins  map[string]any             `toml:"plugins"`
		GRPC     struct {
			Address string `toml:"address"`
		} `toml:"grpc"`
	}
	if err := toml.Unmarshal(text, &parsed); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.files = append(c.files, path)
	c.version = max(c.version, parsed.Version)
	c.disabled = append(c.disabled, parsed.Disabled...)
	maps.Copy(c.proxies, parsed.Proxies)
	if parsed.GRPC.Address != "" {
		c.grpcAddress = parsed.GRPC.Address
	}
	mergeTables(plugins, parsed.Plugins)
	for _, name := range parsed.Imports {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		if !strings.Contains(name, "*") {
			imports = append(imports, filepath.Clean(name))
			continue
		}
		found, err := filepath.Glob(name)
		if err != nil {
			return nil, fmt.Errorf("%s: imports %q: %w", path, name, err)
		}
		imports = append(imports, found...)
	}
	return imports, nil
}

// mergeTables puts what is in from over what is in to.
func mergeTables(to, from map[string]any) {
	for key, value := range from {
		table, isTable := value.(map[string]any)
		if existing, ok := to[key].(map[string]any); ok && isTable {
			mergeTables(existing, table)
			continue
		}
		to[key] = value
	}
}

// readPlugins reads the sections of the plugins that matter, whose names are the same in versions 2 to 4 of the
// format unless there are several.
func (c *containerdConfig) readPlugins(plugins map[string]any) {
	if order, ok := lookUp(plugins, "io.containerd.service.v1.diff-service", "default").([]any); ok {
		c.diffOrder = textsOf(order)
	}
	entries, ok := lookUp(plugins, "io.containerd.transfer.v1.local", "unpack_config").([]any)
	c.unpackSet = ok
	for _, entry := range entries {
		table, _ := entry.(map[string]any)
		snapshotter, _ := table["snapshotter"].(string)
		differ, _ := table["differ"].(string)
		c.unpack = append(c.unpack, containerdUnpack{snapshotter, differ})
	}
	for _, place := range [][]string{
		{"io.containerd.grpc.v1.cri", "containerd", "snapshotter"}, // version 2
		{"io.containerd.cri.v1.images", "snapshotter"},
	} {
		if name, ok := lookUp(plugins, place...).(string); ok && name != "" {
			c.criSnapshot = name
		}
	}
	if address, ok := lookUp(plugins, "io.containerd.server.v1.grpc", "address").(string); ok && address != "" {
		c.grpcAddress = address // version 4
	}
}

// lookUp returns the value at a place in nested tables, nil if there is none.
func lookUp(table map[string]any, place ...string) any {
	for _, key := range place[:len(place)-1] {
		table, _ = table[key].(map[string]any)
	}
	return table[place[len(place)-1]]
}

func textsOf(list []any) []string {
	texts := make([]string, 0, len(list))
	for _, value := range list {
		text, _ := value.(string)
		texts = append(texts, text)
	}
	return texts
}

// proxiesTo returns the names of the proxy plugins of a type that are served on a socket, sorted.
func (c *containerdConfig) proxiesTo(socket, kind string) []string {
	var names []string
	for name, p := range c.proxies {
		if p.Type == kind && strings.TrimPrefix(p.Address, "unix://") == socket {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
