// Package containerdconf reads the parts of containerd's configuration that concern Cowshed.
package containerdconf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// DefaultFile is containerd's configuration where no other is named.
const DefaultFile = "/etc/containerd/config.toml"

// Config is a configuration of containerd with all files that it imports.
type Config struct {
	Proxies        map[string]Proxy // by name
	DiffOrder      []string         // differs as the diff service asks them; nil: containerd's own list
	Unpack         []Unpack         // of the transfer service
	UnpackSet      bool             // else Unpack is containerd's own list
	CRISnapshotter string           // for Kubernetes, "" for containerd's own
	Runtimes       map[string]string
	GRPCAddress    string // "" for the default
	Disabled       []string
	Files          []string // in the order in which they were read

	// Version and Imports are those of the first file. Version is 0 where it says none, which means 1.
	Version int64
	Imports []string // absolute
}

// Proxy is an entry of proxy_plugins.
type Proxy struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Exports      map[string]string `toml:"exports"`
	Capabilities []string          `toml:"capabilities"`
}

// Unpack is an entry of unpack_config of the transfer service.
type Unpack struct {
	Snapshotter, Differ string
	Keys                map[string]any // all that it says
}

// BuiltinSnapshotters are the names of containerd's own snapshotters.
var BuiltinSnapshotters = []string{"blockfile", "btrfs", "devmapper", "erofs", "native", "overlayfs", "zfs"}

// Read reads a configuration with the files that it imports, which go before it. It is read as it will be when the
// files in planned are as they are there; nil is a file that is gone.
func Read(file string, planned map[string][]byte) (*Config, error) {
	r := reader{planned: planned, plugins: make(map[string]any), config: &Config{Proxies: make(map[string]Proxy)}}
	loaded := make(map[string]bool)
	for pending := []string{file}; len(pending) > 0; pending = pending[1:] {
		path := pending[0]
		if loaded[path] {
			continue
		}
		loaded[path] = true
		imports, err := r.file(path)
		if err != nil {
			return nil, err
		}
		pending = append(pending, imports...)
	}
	r.readPlugins()
	return r.config, nil
}

type reader struct {
	planned map[string][]byte
	plugins map[string]any
	config  *Config
}

func (r *reader) text(path string) ([]byte, error) {
	text, ok := r.planned[path]
	if !ok {
		return os.ReadFile(path)
	}
	if text == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return text, nil
}

// file reads one file, and returns those that it imports.
func (r *reader) file(path string) (imports []string, err error) {
	text, err := r.text(path)
	if err != nil {
		return nil, err
	}
	var parsed struct {
		Version  int64            `toml:"version"`
		Imports  []string         `toml:"imports"`
		Disabled []string         `toml:"disabled_plugins"`
		Proxies  map[string]Proxy `toml:"proxy_plugins"`
		Plugins  map[string]any   `toml:"plugins"`
		GRPC     struct {
			Address string `toml:"address"`
		} `toml:"grpc"`
	}
	if err := toml.Unmarshal(text, &parsed); err != nil {
		return nil, inFile(path, err)
	}
	absolute := absoluteImports(path, parsed.Imports)
	c := r.config
	if len(c.Files) == 0 {
		c.Version, c.Imports = parsed.Version, absolute
	}
	c.Files = append(c.Files, path)
	c.Disabled = append(c.Disabled, parsed.Disabled...)
	maps.Copy(c.Proxies, parsed.Proxies)
	if parsed.GRPC.Address != "" {
		c.GRPCAddress = parsed.GRPC.Address
	}
	mergeTables(r.plugins, parsed.Plugins)
	for _, name := range absolute {
		if !strings.Contains(name, "*") {
			imports = append(imports, name)
			continue
		}
		found, err := r.glob(name)
		if err != nil {
			return nil, fmt.Errorf("%s: imports %q: %w", path, name, err)
		}
		imports = append(imports, found...)
	}
	return imports, nil
}

// Imports returns the imports of a file's text, as far as they can be read.
func Imports(path string, text []byte) []string {
	var parsed struct {
		Imports []string `toml:"imports"`
	}
	if toml.Unmarshal(text, &parsed) != nil {
		return nil
	}
	return absoluteImports(path, parsed.Imports)
}

func absoluteImports(path string, imports []string) []string {
	var absolute []string
	for _, name := range imports {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		absolute = append(absolute, filepath.Clean(name))
	}
	return absolute
}

// inFile says where in a file it cannot be read.
func inFile(path string, err error) error {
	var malformed *toml.DecodeError
	if errors.As(err, &malformed) {
		line, column := malformed.Position()
		return fmt.Errorf("%s: line %d, column %d: %w", path, line, column, err)
	}
	return fmt.Errorf("%s: %w", path, err)
}

func (r *reader) glob(pattern string) ([]string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	for path, text := range r.planned {
		found = slices.DeleteFunc(found, func(other string) bool { return other == path })
		if matches, err := filepath.Match(pattern, path); err == nil && matches && text != nil {
			found = append(found, path)
		}
	}
	slices.Sort(found)
	return found, nil
}

// mergeTables puts the content of from over that of to, as containerd does: lists are replaced.
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

// readPlugins reads the sections of the plugins that matter. Most have the same name in all versions of the format.
func (r *reader) readPlugins() {
	c := r.config
	if order, ok := lookUp(r.plugins, "io.containerd.service.v1.diff-service", "default").([]any); ok {
		c.DiffOrder = textsOf(order)
	}
	entries, ok := lookUp(r.plugins, "io.containerd.transfer.v1.local", "unpack_config").([]any)
	c.UnpackSet = ok
	for _, entry := range entries {
		table, _ := entry.(map[string]any)
		snapshotter, _ := table["snapshotter"].(string)
		differ, _ := table["differ"].(string)
		c.Unpack = append(c.Unpack, Unpack{snapshotter, differ, table})
	}
	for _, place := range [][]string{
		{"io.containerd.grpc.v1.cri", "containerd", "snapshotter"}, // version 2
		{"io.containerd.cri.v1.images", "snapshotter"},
	} {
		if name, ok := lookUp(r.plugins, place...).(string); ok && name != "" {
			c.CRISnapshotter = name
		}
	}
	c.Runtimes = make(map[string]string)
	for _, place := range [][]string{
		{"io.containerd.grpc.v1.cri", "containerd", "runtimes"}, // version 2
		{"io.containerd.cri.v1.runtime", "containerd", "runtimes"},
	} {
		runtimes, _ := lookUp(r.plugins, place...).(map[string]any)
		for name, runtime := range runtimes {
			table, _ := runtime.(map[string]any)
			if snapshotter, ok := table["snapshotter"].(string); ok && snapshotter != "" {
				c.Runtimes[name] = snapshotter
			}
		}
	}
	if address, ok := lookUp(r.plugins, "io.containerd.server.v1.grpc", "address").(string); ok && address != "" {
		c.GRPCAddress = address // version 4
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

// ProxiesTo returns the names of the proxy plugins of a type that are served on a socket, sorted.
func (c *Config) ProxiesTo(socket, kind string) []string {
	var names []string
	for name, p := range c.Proxies {
		if p.Type == kind && p.Socket() == socket {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Socket is the path of the socket that the plugin is served on.
func (p Proxy) Socket() string { return strings.TrimPrefix(p.Address, "unix://") }

// Asks tells where in the diff service's order the first of the differs stands, and containerd's own; -1: nowhere.
func (c *Config) Asks(differs []string) (own, walking int) {
	own = slices.IndexFunc(c.DiffOrder, func(name string) bool { return slices.Contains(differs, name) })
	return own, slices.Index(c.DiffOrder, WalkingDiffer)
}

// WalkingDiffer is containerd's own differ.
const WalkingDiffer = "walking"

// UnpacksWith returns the differ that the transfer service unpacks images with for a snapshotter.
func (c *Config) UnpacksWith(snapshotter string) (differ string, ok bool) {
	for _, entry := range c.Unpack {
		if entry.Snapshotter == snapshotter {
			return entry.Differ, true
		}
	}
	return "", false
}

// Disables reports whether one of the plugins is disabled.
func (c *Config) Disables(plugins ...string) bool {
	return slices.ContainsFunc(plugins, func(name string) bool { return slices.Contains(c.Disabled, name) })
}

// ImportsFile reports whether the first file imports another, or would if it were there.
func (c *Config) ImportsFile(path string) bool {
	return slices.ContainsFunc(c.Imports, func(pattern string) bool {
		matches, err := filepath.Match(pattern, path)
		return err == nil && matches || pattern == path
	})
}
