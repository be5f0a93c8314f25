package setup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cowshed/cowshed/internal/configedit"
	"github.com/cowshed/cowshed/internal/containerdconf"
)

// Names that set-up gives.
const (
	snapshotterName = "cowshed"
	differName      = "cowshed-diff" // containerd keeps all proxy plugins under one namespace of names
	importedName    = "cowshed.toml"
	importedCRIName = "cowshed-kubernetes.toml"
	// importPattern imports both, and does not mind if they are gone.
	importPattern = "cowshed*.toml"
	// remapCapability makes containerd ask for id-mapped mounts.
	remapCapability = "remap-ids"

	containerdUnit = "containerd.service"
)

// anyVersion is read by every containerd 2.x.
const anyVersion = 3

// containerd plans a file that containerd imports.
func (h Host) containerd() (*Plan, error) {
	p := &Plan{Target: Containerd, Units: []string{containerdUnit}, lockDir: h.ContainerdConfig}
	if version := installedContainerd(); strings.HasPrefix(version, "1.") {
		return nil, &RefusedError{File: h.ContainerdConfig, Reason: fmt.Sprintf("containerd %s cannot load differs of other programs; Cowshed needs containerd 2", version)}
	}
	main, err := h.mainConfig()
	if err != nil {
		return nil, err
	}
	imported := main.imported(importedName)
	_, current, err := readConfig(imported)
	if err != nil {
		return nil, err
	}
	owned, err := ownedBySetup(imported, current)
	if err != nil {
		return nil, err
	}
	// The configuration without the file to be made.
	planned := map[string][]byte{h.ContainerdConfig: main.text}
	if owned {
		planned[imported] = nil
	}
	config, err := containerdconf.Read(h.ContainerdConfig, planned)
	if err != nil {
		return nil, &RefusedError{File: h.ContainerdConfig, Reason: "it cannot be read", Cause: err}
	}
	wanted, err := h.containerdText(main.version(), config)
	if err != nil {
		return nil, err
	}
	if wanted == nil {
		if owned {
			p.Notes = append(p.Notes, fmt.Sprintf("%s is no longer needed; cowshed setup containerd --undo takes it away", imported))
		}
		return p, nil
	}
	if current != nil && !owned {
		return nil, &RefusedError{File: imported, Reason: "cowshed setup has not written it, or not so, and it lacks entries for Cowshed; delete it, or change it", Paste: string(wanted)}
	}
	if err := p.addImported(main, imported, wanted, "the snapshotter and the differ of Cowshed"); err != nil {
		return nil, err
	}
	return p, h.checkContainerd(p, imported, wanted)
}

// ownedBySetup reports whether a file is as a set-up has left it, or is not there.
func ownedBySetup(file string, current []byte) (bool, error) {
	real, err := resolve(file)
	if err != nil {
		return false, err
	}
	r, err := readRecord(real)
	return err == nil && (current == nil || r.applied(current)), err
}

// checkContainerd checks that containerd will see the plan's changes.
func (h Host) checkContainerd(p *Plan, imported string, wanted []byte) error {
	config, err := containerdconf.Read(h.ContainerdConfig, p.planned())
	if err != nil {
		return &RefusedError{File: h.ContainerdConfig, Reason: "it could not be read with the new entries", Cause: err, Paste: string(wanted)}
	}
	if missing := h.missing(config); len(missing) > 0 {
		return &RefusedError{File: imported, Paste: string(wanted), Reason: fmt.Sprintf("it would have no effect, since a file that is imported later says something else of %s: %s",
			strings.Join(missing, ", "), strings.Join(config.Files, ", "))}
	}
	return nil
}

// planned is containerd's configuration after the plan. Records and directories are no TOML, which an import must not
// match.
func (p *Plan) planned() map[string][]byte {
	planned := make(map[string][]byte)
	for _, c := range p.Changes {
		planned[c.File] = c.After
		planned[c.File+recordSuffix] = []byte("{")
		for _, dir := range missingDirs(filepath.Dir(c.File)) {
			planned[dir] = []byte("{")
		}
	}
	return planned
}

// missing names the parts of a configuration that do not fit Cowshed.
func (h Host) missing(config *containerdconf.Config) []string {
	var missing []string
	add := func(is bool, what string) {
		if !is {
			missing = append(missing, what)
		}
	}
	snapshotter, differ := h.names(config)
	p, ok := config.Proxies[snapshotter]
	add(ok && h.snapshots(p), "proxy_plugins."+snapshotter)
	differs := config.ProxiesTo(h.Socket, "diff")
	add(slices.Contains(differs, differ), "proxy_plugins."+differ)
	own, walking := config.Asks(differs)
	add(own >= 0 && walking > own, "the diff service's default")
	with, unpacks := config.UnpacksWith(snapshotter)
	add(unpacks && slices.Contains(differs, with), "the transfer service's unpack_config")
	return missing
}

// snapshots reports whether a proxy plugin is Cowshed's snapshotter, with all that belongs to it.
func (h Host) snapshots(p containerdconf.Proxy) bool {
	root := h.Root
	if real, err := filepath.EvalSymlinks(root); err == nil && p.Exports["root"] == real {
		root = real
	}
	return p.Type == "snapshot" && p.Socket() == h.Socket && p.Exports["root"] == root && slices.Contains(p.Capabilities, remapCapability)
}

// names are those of Cowshed's proxy plugins: their present names, or else the usual ones.
func (h Host) names(config *containerdconf.Config) (snapshotter, differ string) {
	snapshotter, differ = snapshotterName, differName
	if names := config.ProxiesTo(h.Socket, "snapshot"); len(names) > 0 {
		snapshotter = names[0]
	}
	if names := config.ProxiesTo(h.Socket, "diff"); len(names) > 0 {
		differ = names[0]
	}
	return snapshotter, differ
}

// containerdText has the missing parts of a configuration, nil if it lacks nothing.
func (h Host) containerdText(version int64, config *containerdconf.Config) ([]byte, error) {
	snapshotter, differ := h.names(config)
	var b strings.Builder
	if p, there := config.Proxies[snapshotter]; !there {
		fmt.Fprintf(&b, `
# The snapshotter. Clients choose it by this name.
[proxy_plugins.%s]
  type = "snapshot"
  address = %s
  capabilities = [%q]
  # CRI measures the filesystem of this directory for imagefs statistics.
  [proxy_plugins.%s.exports]
    root = %s
`, snapshotter, configedit.QuoteTOML(h.Socket), remapCapability, snapshotter, configedit.QuoteTOML(h.Root))
	} else if !h.snapshots(p) || slices.Contains(containerdconf.BuiltinSnapshotters, snapshotter) {
		return nil, h.otherProxy(config, snapshotter, fmt.Sprintf(
			"[proxy_plugins.%s]\n  type = \"snapshot\"\n  address = %s\n  capabilities = [%q]\n  [proxy_plugins.%s.exports]\n    root = %s\n",
			snapshotterName, configedit.QuoteTOML(h.Socket), remapCapability, snapshotterName, configedit.QuoteTOML(h.Root)))
	}
	if p, there := config.Proxies[differ]; !there {
		fmt.Fprintf(&b, `
# The differ. containerd keeps all proxy plugins under one namespace of names, so it needs another one.
[proxy_plugins.%s]
  type = "diff"
  address = %s
`, differ, configedit.QuoteTOML(h.Socket))
	} else if p.Type != "diff" || p.Socket() != h.Socket {
		return nil, h.otherProxy(config, differ, fmt.Sprintf("[proxy_plugins.%s]\n  type = \"diff\"\n  address = %s\n", differName, configedit.QuoteTOML(h.Socket)))
	}
	if own, walking := config.Asks([]string{differ}); own < 0 || walking < own {
		fmt.Fprintf(&b, `
# Snapshots of other snapshotters are for containerd's own differ: Cowshed passes on the snapshots that it does not know.
[plugins."io.containerd.service.v1.diff-service"]
  default = [%s]
`, strings.Join(diffOrder(config, differ), ", "))
	}
	if with, unpacks := config.UnpacksWith(snapshotter); !unpacks || with != differ {
		entries, err := unpackEntries(config, snapshotter, differ)
		if err != nil {
			return nil, &RefusedError{File: strings.Join(config.Files, ", "), Reason: "unpack_config of the transfer service has to have Cowshed too", Cause: err,
				Paste: unpackEntry([]keyValue{{"platform", `"linux"`}, {"snapshotter", strconv.Quote(snapshotter)}, {"differ", strconv.Quote(differ)}})}
		}
		b.WriteString("\n# The pairs that the transfer service unpacks images with (ctr, nerdctl, CRI). This replaces all other lists.\n")
		b.WriteString(entries)
	}
	if b.Len() == 0 {
		return nil, nil
	}
	return []byte(header(version, Containerd) + b.String()), nil
}

func header(version int64, target Target) string {
	text := fmt.Sprintf("# Written by: cowshed setup %s --apply. To take it back: cowshed setup %s --undo\n", target, target)
	if version > 0 {
		text += fmt.Sprintf("version = %d\n", version)
	}
	return text
}

// otherProxy refuses to take a name that has something else.
func (h Host) otherProxy(config *containerdconf.Config, name, paste string) error {
	return &RefusedError{File: strings.Join(config.Files, ", "), Paste: paste,
		Reason: fmt.Sprintf("proxy_plugins.%s is there and is something else than Cowshed on %s needs; change it by hand", name, h.Socket)}
}

// diffOrder is the list of the diff service with the differ before containerd's own.
func diffOrder(config *containerdconf.Config, differ string) []string {
	order := []string{strconv.Quote(differ)}
	others := config.DiffOrder
	if !slices.Contains(others, containerdconf.WalkingDiffer) {
		others = append(slices.Clone(others), containerdconf.WalkingDiffer)
	}
	for _, other := range others {
		if other != differ {
			order = append(order, configedit.QuoteTOML(other))
		}
	}
	return order
}

type keyValue struct{ key, literal string }

// unpackEntries is the list of the transfer service with Cowshed in it. containerd replaces the whole list.
func unpackEntries(config *containerdconf.Config, snapshotter, differ string) (string, error) {
	var b strings.Builder
	cowshed := []keyValue{{"platform", `"linux"`}, {"snapshotter", configedit.QuoteTOML(snapshotter)}, {"differ", configedit.QuoteTOML(differ)}}
	b.WriteString(unpackEntry(cowshed))
	others := config.Unpack
	if !config.UnpackSet {
		others = []containerdconf.Unpack{{Keys: map[string]any{"platform": "linux", "snapshotter": "overlayfs", "differ": containerdconf.WalkingDiffer}}}
	}
	for _, other := range others {
		if other.Snapshotter == snapshotter {
			continue
		}
		var pairs []keyValue
		keys := slices.SortedFunc(maps.Keys(other.Keys), func(a, b string) int {
			place := func(key string) int {
				return slices.Index([]string{"differ", "snapshotter", "platform"}, key)
			}
			if d := place(b) - place(a); d != 0 {
				return d
			}
			return strings.Compare(a, b)
		})
		for _, key := range keys {
			literal, err := literalOf(other.Keys[key])
			if err != nil {
				return "", fmt.Errorf("%s: %w", key, err)
			}
			pairs = append(pairs, keyValue{key, literal})
		}
		b.WriteString(unpackEntry(pairs))
	}
	return b.String(), nil
}

func unpackEntry(pairs []keyValue) string {
	var b strings.Builder
	b.WriteString("[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n")
	for _, pair := range pairs {
		fmt.Fprintf(&b, "  %s = %s\n", pair.key, pair.literal)
	}
	return b.String()
}

// literalOf writes a value that an entry of unpack_config has.
func literalOf(value any) (string, error) {
	switch v := value.(type) {
	case string:
		return configedit.QuoteTOML(v), nil
	case bool:
		return strconv.FormatBool(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case []any:
		literals := make([]string, len(v))
		for i := range v {
			var err error
			if literals[i], err = literalOf(v[i]); err != nil {
				return "", err
			}
		}
		return "[" + strings.Join(literals, ", ") + "]", nil
	}
	return "", fmt.Errorf("its value cannot be copied")
}

// mainConfig is containerd's first file.
type mainConfig struct {
	file   string
	there  bool
	text   []byte // not nil
	config *containerdconf.Config
}

func (h Host) mainConfig() (*mainConfig, error) {
	_, text, err := readConfig(h.ContainerdConfig)
	if err != nil {
		return nil, err
	}
	m := &mainConfig{file: h.ContainerdConfig, there: text != nil, text: text}
	if text == nil {
		m.text = []byte{}
	}
	m.config, err = containerdconf.Read(m.file, map[string][]byte{m.file: m.text})
	if err != nil {
		return nil, &RefusedError{File: m.file, Reason: "it cannot be read", Cause: err}
	}
	return m, nil
}

// version is the version for Cowshed's files, which is the first file's: programs that read that file read them.
func (m *mainConfig) version() int64 {
	if !m.there {
		return installedVersion()
	}
	return m.config.Version
}

// installedContainerd is the version of the installed containerd, "" if none can be asked.
func installedContainerd() string {
	out, err := exec.Command("containerd", "--version").Output()
	if err != nil {
		return ""
	}
	return versionPattern.FindString(string(out))
}

// installedVersion is the version of the configurations that the installed containerd writes.
func installedVersion() int64 {
	out, err := exec.Command("containerd", "config", "default").Output()
	if err != nil {
		return anyVersion
	}
	parsed, err := configedit.ParseTOML(out)
	if version, ok := parsed["version"].(int64); err == nil && ok && version > 1 {
		return version
	}
	return anyVersion
}

// imported is the name of a file where it is imported from, or will be.
func (m *mainConfig) imported(name string) string {
	for _, pattern := range m.config.Imports {
		file := filepath.Join(filepath.Dir(pattern), name)
		if matches, err := filepath.Match(pattern, file); err == nil && matches {
			return file
		}
	}
	return filepath.Join(filepath.Dir(m.file), "conf.d", name)
}

// addImported plans a file, and that it is imported.
func (p *Plan) addImported(main *mainConfig, file string, text []byte, why string) error {
	real, current, err := readConfig(file)
	if err != nil {
		return err
	}
	if !bytes.Equal(current, text) {
		p.Changes = append(p.Changes, Change{File: file, Before: current, After: text, Why: why, real: real})
	}
	if main.config.ImportsFile(file) {
		return nil
	}
	pattern := filepath.Join(filepath.Dir(file), importPattern)
	paste := fmt.Sprintf("imports = [%s]\n", configedit.QuoteTOML(pattern))
	return p.edit(main.file, "it has to import that file", paste, func(before []byte) ([]byte, error) {
		if before == nil {
			before = fmt.Appendf(nil, "version = %d\n", main.version())
		}
		return configedit.AppendTOML(before, []string{"imports"}, pattern)
	})
}

// files are the files that a set-up of the target may have changed, in the order of putting them back. units are the
// units that read them.
func (h Host) files(target Target) (files, units []string, err error) {
	name := importedName
	switch target {
	case Docker:
		return []string{h.DockerConfig, h.CowshedConfig}, []string{dockerUnit}, nil
	case Nerdctl:
		return []string{h.NerdctlConfig}, nil, nil
	case BuildKit:
		return []string{h.BuildKitConfig}, []string{buildkitUnit}, nil
	case Kubernetes:
		name = importedCRIName
	case Containerd:
	}
	files = []string{h.ContainerdConfig, filepath.Join(filepath.Dir(h.ContainerdConfig), "conf.d", name)}
	// Other files that containerd imports may be broken: that is no reason not to take back ours.
	_, text, err := readConfig(h.ContainerdConfig)
	if err != nil {
		return nil, nil, err
	}
	for _, pattern := range containerdconf.Imports(h.ContainerdConfig, text) {
		if file := filepath.Join(filepath.Dir(pattern), name); !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files, []string{containerdUnit}, nil
}

// stillUsed refuses to take away containerd's snapshotter while others name it.
func (h Host) stillUsed(target Target) error {
	if target != Containerd {
		return nil
	}
	name, config, err := h.snapshotter(target)
	if err != nil {
		return nil //nolint:nilerr // then nobody can use it
	}
	refuse := func(user Target, file string) error {
		return &RefusedError{File: file, Reason: fmt.Sprintf("it still names the snapshotter %s; first run: %s, or take it out by hand", name, h.command(user, "--undo"))}
	}
	if config.CRISnapshotter == name {
		return refuse(Kubernetes, strings.Join(config.Files, ", "))
	}
	for _, user := range []struct {
		target Target
		file   string
		names  func(text []byte) any
	}{
		{Docker, h.DockerConfig, func(text []byte) any { return dockerSnapshotter(text) }},
		{Nerdctl, h.NerdctlConfig, func(text []byte) any { return tomlValue(text, "snapshotter") }},
		{BuildKit, h.BuildKitConfig, func(text []byte) any { return tomlValue(text, "worker", "containerd", "snapshotter") }},
	} {
		text, err := os.ReadFile(user.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if user.names(text) == name {
			return refuse(user.target, user.file)
		}
	}
	return nil
}

// tomlValue returns a value of a text, nil if there is none.
func tomlValue(text []byte, path ...string) any {
	var at any
	at, err := configedit.ParseTOML(text)
	if err != nil {
		return nil
	}
	for _, key := range path {
		table, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = table[key]
	}
	return at
}
