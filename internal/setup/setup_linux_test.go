package setup

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/containerdconf"
	"github.com/cowshed/cowshed/internal/testfs"
)

// testHost is a host whose configurations are in a directory of the test.
type testHost struct {
	Host
	t   testing.TB
	dir string
}

func newTestHost(t testing.TB, dir string) testHost {
	t.Helper()
	t.Setenv("PATH", "") // neither containerd nor dockerd is there to be asked
	return testHost{Host{
		Socket: "/run/cowshed/cowshed.sock", Root: "/var/lib/cowshed/containerd", ContainerdAddress: defaultContainerd, Engine: "29.1.2",
		CowshedConfig: filepath.Join(dir, "cowshed", "config.toml"), ContainerdConfig: filepath.Join(dir, "containerd", "config.toml"),
		DockerConfig: filepath.Join(dir, "docker", "daemon.json"), NerdctlConfig: filepath.Join(dir, "nerdctl", "nerdctl.toml"),
		BuildKitConfig: filepath.Join(dir, "buildkit", "buildkitd.toml"),
	}, t, dir}
}

// write makes a file below the directory; DIR stands for that.
func (h testHost) write(name, text string) string {
	h.t.Helper()
	file := filepath.Join(h.dir, name)
	require.NoError(h.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(h.t, os.WriteFile(file, []byte(strings.ReplaceAll(text, "DIR", h.dir)), 0o640))
	return file
}

func (h testHost) read(file string) string {
	h.t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(h.t, err)
	return strings.ReplaceAll(string(text), h.dir, "DIR")
}

// apply sets up a target, and checks that there is nothing to be done then.
func (h testHost) apply(target Target) *Plan {
	h.t.Helper()
	p, err := New(target, h.Host)
	require.NoError(h.t, err)
	require.NotEmpty(h.t, p.Changes)
	require.NoError(h.t, p.Apply(h.t.Context()))
	again, err := New(target, h.Host)
	require.NoError(h.t, err)
	require.Empty(h.t, again.Changes)
	return p
}

func (h testHost) undo(target Target) *Plan {
	h.t.Helper()
	p, err := Undo(target, h.Host)
	require.NoError(h.t, err)
	require.NotEmpty(h.t, p.Changes)
	require.NoError(h.t, p.Apply(h.t.Context()))
	again, err := Undo(target, h.Host)
	require.NoError(h.t, err)
	require.Empty(h.t, again.Changes)
	return p
}

// tree lists all files: names, modes, owners and contents.
func (h testHost) tree() string {
	h.t.Helper()
	var b strings.Builder
	require.NoError(h.t, filepath.WalkDir(h.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d", strings.TrimPrefix(path, h.dir), info.Mode(), stat.Uid, stat.Gid)
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", text)
		}
		b.WriteByte('\n')
		return nil
	}))
	return b.String()
}

// refuses checks that a target is not set up, that the error says something, and that nothing was changed.
func (h testHost) refuses(target Target, says ...string) {
	h.t.Helper()
	before := h.tree()
	p, err := New(target, h.Host)
	if err == nil {
		err = p.Apply(h.t.Context())
	}
	require.ErrorIs(h.t, err, errdefs.ErrFailedPrecondition)
	for _, text := range says {
		assert.ErrorContains(h.t, err, text)
	}
	assert.Equal(h.t, before, h.tree())
}

const (
	debianContainerd = "#   Licensed under the Apache License\n\ndisabled_plugins = [\"cri\"]\n\n#root = \"/var/lib/containerd\"\n#[grpc]\n#  address = \"/x\"\n"
	fullVersion2     = "disabled_plugins = []\nimports = []\nversion = 2 # two\n\n[plugins]\n\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n" +
		"    [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n      snapshotter = \"overlayfs\"\n" +
		"      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n        snapshotter = \"devmapper\"\n" +
		"  [plugins.\"io.containerd.service.v1.diff-service\"]\n    default = [\"walking\"]\n"
)

// TestContainerd: with any configuration, containerd reads Cowshed's entries afterwards, and the file is changed by
// no more than one import; undoing restores the former files.
func TestContainerd(t *testing.T) {
	for name, c := range map[string]struct {
		before   string // "": there is none
		main     string // afterwards; "": as before
		imported string // where our file is
		version  string
	}{
		"none": {"", "version = 3\nimports = [\"DIR/containerd/conf.d/cowshed*.toml\"]\n", "conf.d", "version = 3\n"},
		"version only": {"version = 3\n", "version = 3\nimports = [\"DIR/containerd/conf.d/cowshed*.toml\"]\n",
			"conf.d", "version = 3\n"},
		"Docker's": {debianContainerd, strings.Replace(debianContainerd, "[\"cri\"]\n", "[\"cri\"]\nimports = [\"DIR/containerd/conf.d/cowshed*.toml\"]\n", 1), "conf.d", ""},
		"version 2": {fullVersion2, strings.Replace(fullVersion2, "imports = []", "imports = [\"DIR/containerd/conf.d/cowshed*.toml\"]", 1),
			"conf.d", "version = 2\n"},
		"imports":          {"version = 4\nimports = ['DIR/containerd/conf.d/*.toml']\n[debug]\n", "", "conf.d", "version = 4\n"},
		"relative imports": {"version = 3\nimports = ['other.d/*.toml', 'conf.d/*.toml']\n", "", "other.d", "version = 3\n"},
		"other imports": {"version = 3\nimports = [\n  'one.toml', # mine\n]\n",
			"version = 3\nimports = [\n  'one.toml', # mine\n  \"DIR/containerd/conf.d/cowshed*.toml\",\n]\n", "conf.d", "version = 3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			if c.before != "" {
				h.write("containerd/config.toml", c.before)
				h.write("containerd/one.toml", "version = 3\n")
			}
			before := h.tree()
			h.apply(Containerd)
			want := c.main
			if want == "" {
				want = c.before
			}
			assert.Equal(t, want, h.read(h.ContainerdConfig))
			text := h.read(filepath.Join(filepath.Dir(h.ContainerdConfig), c.imported, "cowshed.toml"))
			if c.version == "" {
				assert.NotContains(t, text, "version")
			} else {
				assert.Contains(t, text, c.version)
			}
			config, err := containerdconf.Read(h.ContainerdConfig, nil)
			require.NoError(t, err)
			assert.Equal(t, []string{"cowshed"}, config.ProxiesTo(h.Socket, "snapshot"))
			assert.Equal(t, []string{"cowshed-diff", "walking"}, config.DiffOrder)
			differ, _ := config.UnpacksWith("overlayfs")
			assert.Equal(t, "walking", differ, "what containerd could do before")

			h.undo(Containerd)
			assert.Equal(t, before, h.tree())
		})
	}
}

// TestReference: docs/reference/setup.md shows all that setup writes.
func TestReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/setup.md")
	require.NoError(t, err)
	h := newTestHost(t, t.TempDir())
	h.DockerConfig = filepath.Join(h.dir, "etc", "docker", "daemon.json")
	h.ContainerdConfig = filepath.Join(h.dir, "etc", "containerd", "config.toml")
	shown := func(format, file, shortened string) {
		t.Helper()
		want := strings.ReplaceAll(strings.TrimPrefix(h.read(file), shortened), "DIR", "")
		assert.Contains(t, string(text), "```"+format+"\n"+want+"```\n", file)
	}
	for _, target := range []Target{Containerd, Kubernetes, Nerdctl, BuildKit, Docker} {
		h.apply(target)
	}
	shown("toml", h.ContainerdConfig, "version = 3\n")
	shown("toml", filepath.Join(h.dir, "etc", "containerd", "conf.d", importedName), "")
	shown("toml", filepath.Join(h.dir, "etc", "containerd", "conf.d", importedCRIName), "")
	shown("toml", h.NerdctlConfig, "")
	shown("toml", h.BuildKitConfig, "")
	shown("json", h.DockerConfig, "")
	h.undo(Docker)
	h.Engine = "20.10"
	p, err := New(Docker, h.Host)
	require.NoError(t, err)
	require.NoError(t, p.Apply(t.Context()))
	shown("json", h.DockerConfig, "")
	shown("toml", h.CowshedConfig, "")
}

// TestContainerdLists: lists that containerd replaces as a whole keep their entries.
func TestContainerdLists(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("containerd/config.toml", `version = 3
[plugins.'io.containerd.service.v1.diff-service']
default = ['erofs', 'walking']
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/amd64'
snapshotter = 'stargz'
layer_types = ['a', 'b"c']
optional = true
`)
	h.apply(Containerd)
	config, err := containerdconf.Read(h.ContainerdConfig, nil)
	require.NoError(t, err)
	assert.Equal(t, []string{"cowshed-diff", "erofs", "walking"}, config.DiffOrder)
	require.Len(t, config.Unpack, 2)
	assert.Equal(t, map[string]any{"platform": "linux/amd64", "snapshotter": "stargz", "layer_types": []any{"a", `b"c`}, "optional": true}, config.Unpack[1].Keys)
}

// TestContainerdByHand: entries that somebody has made are left alone, and only missing ones are added.
func TestContainerdByHand(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	config, err := containerdconf.Read("none", map[string][]byte{"none": {}})
	require.NoError(t, err)
	sample, err := h.containerdText(anyVersion, config)
	require.NoError(t, err)
	h.write("containerd/config.toml", "version = 3\nimports = ['conf.d/*.toml']\n")
	h.write("containerd/conf.d/cowshed.toml", string(sample))
	p, err := New(Containerd, h.Host)
	require.NoError(t, err)
	assert.Empty(t, p.Changes)
	undo, err := Undo(Containerd, h.Host)
	require.NoError(t, err)
	assert.Empty(t, undo.Changes, "setup has not made it")

	part, _, _ := strings.Cut(string(sample), "# Snapshots of other")
	h.write("containerd/conf.d/cowshed.toml", strings.ReplaceAll(part, "proxy_plugins.cowshed", "proxy_plugins.shed"))
	require.NoError(t, os.Rename(filepath.Join(h.dir, "containerd", "conf.d", "cowshed.toml"), filepath.Join(h.dir, "containerd", "conf.d", "mine.toml")))
	h.apply(Containerd)
	text := h.read(filepath.Join(h.dir, "containerd", "conf.d", "cowshed.toml"))
	assert.NotContains(t, text, "proxy_plugins")
	assert.Contains(t, text, `default = ["shed-diff", "walking"]`)
	h.undo(Containerd)
}

// TestContainerdAgain: when Cowshed is moved, the file follows, and undoing restores the first state.
func TestContainerdAgain(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("containerd/config.toml", fullVersion2)
	before := h.tree()
	h.apply(Containerd)
	h.Root = "/srv/containerd"
	p := h.apply(Containerd)
	require.Len(t, p.Changes, 1)
	assert.Contains(t, p.Changes[0].Diff(), "+    root = \"/srv/containerd\"")
	h.undo(Containerd)
	assert.Equal(t, before, h.tree())
}

func TestContainerdRefuses(t *testing.T) {
	proxy := func(text string) string { return "version = 3\n[proxy_plugins.cowshed]\n" + text }
	for name, c := range map[string]struct {
		files map[string]string
		says  []string
	}{
		"no TOML":       {map[string]string{"config.toml": "version = 3\n[plugins\n"}, []string{"config.toml", "line 2"}},
		"twice":         {map[string]string{"config.toml": "version = 3\nversion = 3\n"}, []string{"config.toml", "line 2"}},
		"not UTF-8":     {map[string]string{"config.toml": "version = 3 # \xff\n"}, []string{"config.toml", "UTF-8"}},
		"of k3s":        {map[string]string{"config.toml": "# File generated by k3s. DO NOT EDIT. Use config.toml.tmpl instead.\nversion = 3\n"}, []string{"generated", "Put this there", "imports = ["}},
		"other socket":  {map[string]string{"config.toml": proxy("type = 'snapshot'\naddress = '/run/other.sock'\n")}, []string{"proxy_plugins.cowshed", "something else", "address = \"/run/cowshed/cowshed.sock\""}},
		"other type":    {map[string]string{"config.toml": proxy("type = 'content'\naddress = '/run/cowshed/cowshed.sock'\n")}, []string{"proxy_plugins.cowshed", "something else"}},
		"no exports":    {map[string]string{"config.toml": proxy("type = 'snapshot'\naddress = '/run/cowshed/cowshed.sock'\n")}, []string{"root = \"/var/lib/cowshed/containerd\""}},
		"other differ":  {map[string]string{"config.toml": "version = 3\n[proxy_plugins.cowshed-diff]\ntype = 'snapshot'\naddress = '/x'\n"}, []string{"proxy_plugins.cowshed-diff", "type = \"diff\""}},
		"builtin name":  {map[string]string{"config.toml": "version = 3\n[proxy_plugins.btrfs]\ntype = 'snapshot'\naddress = '/run/cowshed/cowshed.sock'\n"}, []string{"proxy_plugins.btrfs", "[proxy_plugins.cowshed]"}},
		"not of setup":  {map[string]string{"config.toml": "imports = ['conf.d/*.toml']", "conf.d/cowshed.toml": "version = 3\n"}, []string{"conf.d/cowshed.toml", "[proxy_plugins.cowshed]"}},
		"overridden":    {map[string]string{"config.toml": "imports = ['conf.d/*.toml']", "conf.d/z.toml": "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['walking']\n"}, []string{"imported later", "z.toml", "diff service"}},
		"broken import": {map[string]string{"config.toml": "imports = ['conf.d/*.toml']", "conf.d/z.toml": "[["}, []string{"z.toml", "line 1"}},
		"gone import":   {map[string]string{"config.toml": "imports = ['/nonexistent/one.toml']"}, []string{"/nonexistent/one.toml"}},
		"imports":       {map[string]string{"config.toml": "imports = 'one'"}, []string{"config.toml", "imports"}},
		"odd unpack": {map[string]string{"config.toml": "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'a'\nx = 1.5\n"},
			[]string{"unpack_config", "x: its value", "differ = \"cowshed-diff\""}},
		"directory": {map[string]string{"config.toml/x": ""}, []string{"no regular file"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			for name, text := range c.files {
				h.write("containerd/"+name, text)
			}
			h.refuses(Containerd, c.says...)
		})
	}
}

// TestOthersNeedContainerd: nothing names a snapshotter that containerd does not have, and it is not taken away before.
func TestOthersNeedContainerd(t *testing.T) {
	for _, target := range []Target{Docker, Nerdctl, BuildKit, Kubernetes} {
		t.Run(string(target), func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			before := h.tree()
			h.refuses(target, "first run: cowshed setup containerd")
			h.apply(Containerd)
			between := h.tree()
			h.apply(target)
			_, err := Undo(Containerd, h.Host)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			assert.ErrorContains(t, err, fmt.Sprintf("cowshed setup %s --config", target))
			h.undo(target)
			assert.Equal(t, between, h.tree())
			h.undo(Containerd)
			assert.Equal(t, before, h.tree())
		})
	}
}

func TestKubernetes(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("containerd/config.toml", fullVersion2)
	h.apply(Containerd)
	p := h.apply(Kubernetes)
	require.Len(t, p.Changes, 1)
	assert.Contains(t, string(p.Changes[0].After), `[plugins."io.containerd.cri.v1.images"]`)
	assert.Contains(t, strings.Join(p.Notes, "\n"), "overlayfs")
	assert.Contains(t, strings.Join(p.Notes, "\n"), "kata goes on using devmapper")
	h.undo(Kubernetes)

	h.write("containerd/conf.d/cowshed-kubernetes.toml", "version = 2\n")
	h.refuses(Kubernetes, "cowshed-kubernetes.toml", "snapshotter = \"cowshed\"")
	require.NoError(t, os.Remove(filepath.Join(h.dir, "containerd", "conf.d", "cowshed-kubernetes.toml")))
	h.write("containerd/config.toml", "imports = ['conf.d/*.toml']\n"+debianContainerd)
	h.refuses(Kubernetes, "disabled_plugins")
	h.write("containerd/config.toml", "version = 3\nimports = ['conf.d/*.toml']\n")
	h.write("containerd/conf.d/z.toml", "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'stargz'\n")
	h.refuses(Kubernetes, "imported later", "stargz")
}

func TestDocker(t *testing.T) {
	for name, c := range map[string]struct{ engine, before, want, cowshed string }{
		"none":          {"29.0.0", "", "{\n  \"features\": {\n    \"containerd-snapshotter\": true\n  },\n  \"storage-driver\": \"cowshed\"\n}\n", ""},
		"empty":         {"29", " \n", "{\n  \"features\": {\n    \"containerd-snapshotter\": true\n  },\n  \"storage-driver\": \"cowshed\"\n}\n", ""},
		"other driver":  {"30.1", "{\n\t\"z\": [1],\n\t\"storage-driver\": \"overlay2\",\n\t\"a\": 1e3\n}", "{\n\t\"z\": [1],\n\t\"storage-driver\": \"cowshed\",\n\t\"a\": 1e3,\n\t\"features\": {\n\t\t\"containerd-snapshotter\": true\n\t}\n}", ""},
		"feature off":   {"29.0.0", `{"features":{"containerd-snapshotter":false,"buildkit":true}}`, `{"features":{"containerd-snapshotter":true,"buildkit":true}, "storage-driver":"cowshed"}`, ""},
		"plugin":        {"20.10.24", "{\n    \"debug\": true\n}\n", "{\n    \"debug\": true,\n    \"experimental\": true,\n    \"storage-driver\": \"cowshed\"\n}\n", "root = '/srv'\ndocker_plugin = \"cowshed\"\n"},
		"plugin, named": {"26.1", "{}", "{\n  \"experimental\": true,\n  \"storage-driver\": \"cows\"\n}", "docker_plugin = 'cows'\n"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			h.apply(Containerd)
			h.Engine = c.engine
			if c.before != "" {
				h.write("docker/daemon.json", c.before)
			}
			switch name {
			case "plugin":
				h.write("cowshed/config.toml", "root = '/srv'\n")
			case "plugin, named":
				h.write("cowshed/config.toml", c.cowshed)
				h.DockerPlugin = "cows"
			}
			before := h.tree()
			p, err := New(Docker, h.Host)
			require.NoError(t, err)
			require.NoError(t, p.Apply(t.Context()))
			assert.Equal(t, c.want, h.read(h.DockerConfig))
			if c.cowshed != "" {
				assert.Equal(t, c.cowshed, h.read(h.CowshedConfig))
			}
			assert.Contains(t, p.Units, dockerUnit)
			assert.Equal(t, name == "plugin", p.Units[0] == cowshedUnit)
			assert.Contains(t, strings.Join(p.Notes, ""), "docker save")
			again, err := New(Docker, h.Host)
			require.NoError(t, err)
			assert.Empty(t, again.Changes)
			assert.Empty(t, again.Notes)
			undone := h.undo(Docker)
			assert.Equal(t, before, h.tree())
			assert.ElementsMatch(t, p.Units, undone.Units)
			assert.Equal(t, dockerUnit, undone.Units[0], "it uses the plugin until it is restarted")
		})
	}
}

func TestDockerRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		engine, before string
		says           []string
	}{
		"no JSON":          {"29.0", "{\n  \"a\": 1,\n}\n", []string{"daemon.json", "line 3", `"storage-driver": "cowshed"`}},
		"twice":            {"29.0", `{"a": 1, "a": 2}`, []string{"twice"}},
		"list":             {"29.0", `[]`, []string{"object"}},
		"other letters":    {"29.0", `{"Storage-Driver": "x"}`, []string{"Storage-Driver", "upper and lower case"}},
		"options":          {"29.0", `{"storage-opts": ["overlay2.size=1G"]}`, []string{"storage-opts"}},
		"options, plugin":  {"24.0", `{"storage-opts": ["btrfs.quota=simple", "overlay2.size=1G"]}`, []string{"overlay2.size"}},
		"other containerd": {"29.0", `{"containerd": "/run/x.sock"}`, []string{"/run/x.sock", "containerd_address"}},
		"27":               {"27.3.1", `{}`, []string{"Docker Engine 27", "29"}},
		"28":               {"28.0.0", `{}`, []string{"Docker Engine 28"}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			h.apply(Containerd)
			h.Engine = c.engine
			h.write("docker/daemon.json", c.before)
			h.refuses(Docker, c.says...)
		})
	}
	h := newTestHost(t, t.TempDir())
	for _, version := range []string{"", "new", "0"} {
		h.Engine = version
		_, err := New(Docker, h.Host)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		assert.ErrorContains(t, err, "--engine")
	}
}

func TestClients(t *testing.T) {
	for name, c := range map[string]struct {
		target       Target
		before, want string
		note         string
	}{
		"nerdctl, none":   {Nerdctl, "", "snapshotter = \"cowshed\"\n", ""},
		"nerdctl":         {Nerdctl, "# mine\ndebug = false\nsnapshotter = 'stargz' # once\n[x]\n", "# mine\ndebug = false\nsnapshotter = \"cowshed\" # once\n[x]\n", "stargz"},
		"BuildKit, none":  {BuildKit, "", "[worker.oci]\n  enabled = false\n\n[worker.containerd]\n  enabled = true\n  snapshotter = \"cowshed\"\n", "--oci-worker"},
		"BuildKit, there": {BuildKit, "debug = true\n[worker.containerd]\n  namespace = \"x\"\n[worker.oci]\n  enabled = true\n", "debug = true\n[worker.containerd]\n  namespace = \"x\"\n  enabled = true\n  snapshotter = \"cowshed\"\n[worker.oci]\n  enabled = false\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			h.apply(Containerd)
			file := map[Target]string{Nerdctl: h.NerdctlConfig, BuildKit: h.BuildKitConfig}[c.target]
			if c.before != "" {
				h.write(strings.TrimPrefix(file, h.dir), c.before)
			}
			before := h.tree()
			p := h.apply(c.target)
			assert.Equal(t, c.want, h.read(file))
			assert.Contains(t, strings.Join(p.Notes, ""), c.note)
			h.undo(c.target)
			assert.Equal(t, before, h.tree())
		})
	}
	h := newTestHost(t, t.TempDir())
	h.ContainerdAddress = "/run/k3s.sock"
	h.apply(Containerd)
	h.apply(BuildKit)
	assert.Contains(t, h.read(h.BuildKitConfig), "address = \"/run/k3s.sock\"")
	h.undo(BuildKit)
	for name, text := range map[string]string{
		"nerdctl/nerdctl.toml": "[snapshotter]\n", "buildkit/buildkitd.toml": "worker = {}\n",
	} {
		h.write(name, text)
	}
	h.refuses(Nerdctl, "nerdctl.toml", "snapshotter = \"cowshed\"")
	h.refuses(BuildKit, "buildkitd.toml", "[worker.oci]\n  enabled = false\n[worker.containerd]\n  enabled = true\n  snapshotter = \"cowshed\"\n")
	h.write("buildkit/buildkitd.toml", "[worker.containerd]\naddress = '/run/containerd/containerd.sock'\n")
	h.refuses(BuildKit, "/run/k3s.sock")
}

// TestPaste: a file with the text of a refusal needs no change.
func TestPaste(t *testing.T) {
	for name, c := range map[string]struct {
		target     Target
		file, text string
		engine     string
	}{
		"containerd":     {Containerd, "containerd/conf.d/cowshed.toml", "version = 3\n", ""},
		"Kubernetes":     {Kubernetes, "containerd/conf.d/cowshed-kubernetes.toml", "version = 3\n", ""},
		"nerdctl":        {Nerdctl, "nerdctl/nerdctl.toml", "[snapshotter]\n", ""},
		"BuildKit":       {BuildKit, "buildkit/buildkitd.toml", "worker = {}\n", ""},
		"Docker":         {Docker, "docker/daemon.json", "{", "29.0"},
		"Docker, plugin": {Docker, "docker/daemon.json", "[]", "20.10"},
		"Cowshed":        {Docker, "cowshed/config.toml", "docker_plugin = [\n", "20.10"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newTestHost(t, t.TempDir())
			h.Engine = c.engine
			h.write("containerd/config.toml", "version = 3\nimports = ['conf.d/*.toml']\n")
			if c.target != Containerd {
				h.apply(Containerd)
			}
			file := h.write(c.file, c.text)
			_, err := New(c.target, h.Host)
			var refused *RefusedError
			require.ErrorAs(t, err, &refused)
			require.Equal(t, file, refused.File)
			require.NotEmpty(t, refused.Paste)
			h.write(c.file, refused.Paste)
			p, err := New(c.target, h.Host)
			require.NoError(t, err)
			for _, change := range p.Changes {
				assert.NotEqual(t, file, change.File, change.Diff())
			}
		})
	}
}

// TestUndoRefuses: later changes of others are not lost.
func TestUndoRefuses(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("nerdctl/nerdctl.toml", "debug = true\n")
	h.apply(Containerd)
	h.apply(Nerdctl)
	h.write("nerdctl/nerdctl.toml", h.read(h.NerdctlConfig)+"namespace = 'mine'\n")
	before := h.tree()
	_, err := Undo(Nerdctl, h.Host)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	for _, text := range []string{"+namespace = 'mine'", "-snapshotter = \"cowshed\"", "nerdctl.toml.cowshed-undo"} {
		assert.ErrorContains(t, err, text)
	}
	p, err := New(Nerdctl, h.Host)
	require.NoError(t, err)
	assert.Empty(t, p.Changes, "it is still set up")
	assert.Equal(t, before, h.tree())

	// The advice is followed.
	h.write("nerdctl/nerdctl.toml", "debug = true\nnamespace = 'mine'\n")
	require.NoError(t, os.Remove(h.NerdctlConfig+recordSuffix))
	h.apply(Nerdctl)
	h.undo(Nerdctl)
	assert.Equal(t, "debug = true\nnamespace = 'mine'\n", h.read(h.NerdctlConfig))

	// Somebody has put it back by hand: only the record goes.
	h.apply(Nerdctl)
	h.write("nerdctl/nerdctl.toml", "debug = true\nnamespace = 'mine'\n")
	h.undo(Nerdctl)
	assert.NoFileExists(t, h.NerdctlConfig+recordSuffix)

	// It was set up, changed so that it is not, and is set up again: undo takes back the last.
	h.apply(Nerdctl)
	h.write("nerdctl/nerdctl.toml", "snapshotter = 'native'\n")
	h.apply(Nerdctl)
	h.undo(Nerdctl)
	assert.Equal(t, "snapshotter = 'native'\n", h.read(h.NerdctlConfig))

	require.NoError(t, os.WriteFile(h.NerdctlConfig+recordSuffix, []byte("{}"), 0o600))
	_, err = Undo(Nerdctl, h.Host)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.ErrorContains(t, err, recordSuffix)
}

// TestUndoBesideBroken: files that others have broken do not keep setup from taking back its changes.
func TestUndoBesideBroken(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("containerd/config.toml", "version = 3\nimports = ['other.d/*.toml']\n")
	h.apply(Containerd)
	h.apply(Nerdctl)
	broken := h.write("containerd/other.d/z.toml", "[[")
	h.refuses(Nerdctl, "z.toml", "line 1")
	h.undo(Nerdctl)
	h.undo(Containerd)
	assert.NoFileExists(t, filepath.Join(h.dir, "containerd", "other.d", "cowshed.toml"))
	assert.FileExists(t, broken)
}

// TestAttributes: the file keeps its owner, mode, attributes and the links to it.
func TestAttributes(t *testing.T) {
	testfs.Root(t)
	h := newTestHost(t, t.TempDir())
	h.apply(Containerd)
	real := h.write("elsewhere/nerdctl.toml", "debug = true\n")
	require.NoError(t, os.Chown(real, 1234, 4321))
	require.NoError(t, os.Chmod(real, 0o604))
	require.NoError(t, unix.Setxattr(real, "user.note", []byte("kept"), 0))
	require.NoError(t, os.MkdirAll(filepath.Dir(h.NerdctlConfig), 0o755))
	require.NoError(t, os.Symlink("../elsewhere/nerdctl.toml", h.NerdctlConfig))
	before := h.tree()
	h.apply(Nerdctl)
	for range 2 {
		info, err := os.Lstat(real)
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o604), info.Mode())
		assert.Equal(t, uint32(1234), info.Sys().(*syscall.Stat_t).Uid)
		assert.Equal(t, uint32(4321), info.Sys().(*syscall.Stat_t).Gid)
		value := make([]byte, 10)
		n, err := unix.Getxattr(real, "user.note", value)
		require.NoError(t, err)
		assert.Equal(t, "kept", string(value[:n]))
		to, err := os.Readlink(h.NerdctlConfig)
		require.NoError(t, err)
		assert.Equal(t, "../elsewhere/nerdctl.toml", to)
		if _, err := os.Lstat(real + recordSuffix); err == nil {
			h.undo(Nerdctl)
		}
	}
	assert.Equal(t, before, h.tree())

	require.NoError(t, os.Remove(real))
	h.refuses(Nerdctl, "symbolic link", "which is not there")
}

// TestLinkedAndMounted: a file that cannot be replaced is left alone.
func TestLinkedAndMounted(t *testing.T) {
	testfs.Root(t)
	h := newTestHost(t, t.TempDir())
	h.apply(Containerd)
	file := h.write("nerdctl/nerdctl.toml", "debug = true\n")
	other := filepath.Join(h.dir, "other.toml")
	require.NoError(t, os.Link(file, other))
	h.refuses(Nerdctl, "hard links")
	require.NoError(t, os.Remove(other))

	other = h.write("other.toml", "debug = false\n")
	require.NoError(t, unix.Mount(other, file, "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(file, 0)) })
	h.refuses(Nerdctl, "something is mounted on it")
}

// TestReadOnly: if nothing can be written, the error says so, and files stay.
func TestReadOnly(t *testing.T) {
	testfs.Root(t)
	mnt := testfs.Btrfs(t)
	h := newTestHost(t, mnt)
	h.write("containerd/config.toml", fullVersion2)
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	h.refuses(Containerd, "read-only filesystem", "conf.d/cowshed.toml")
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT, ""))
	h.apply(Containerd)
	require.NoError(t, unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	before := h.tree()
	p, err := Undo(Containerd, h.Host)
	require.NoError(t, err)
	require.ErrorIs(t, p.Apply(t.Context()), errdefs.ErrFailedPrecondition)
	assert.Equal(t, before, h.tree())
}

// TestChangedMeanwhile: a plan is not carried out on another file than it was made for.
func TestChangedMeanwhile(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("containerd/config.toml", fullVersion2)
	p, err := New(Containerd, h.Host)
	require.NoError(t, err)
	h.write("containerd/config.toml", fullVersion2+"#\n")
	before := h.tree()
	require.ErrorIs(t, p.Apply(t.Context()), errdefs.ErrAborted)
	assert.Equal(t, before, h.tree())
}

// TestAtOnce: many processes at once have the effect of a single one.
func TestAtOnce(t *testing.T) {
	h := newTestHost(t, t.TempDir())
	h.write("containerd/config.toml", fullVersion2)
	before := h.tree()
	done := make(chan error, 16)
	for i := range 16 {
		go func() {
			p, err := New(Containerd, h.Host)
			if i%4 == 3 {
				p, err = Undo(Containerd, h.Host)
			}
			if err == nil {
				err = p.Apply(t.Context())
			}
			done <- err
		}()
	}
	for range 16 {
		if err := testfs.Receive(t, done); err != nil {
			assert.True(t, errdefs.IsAborted(err) || errdefs.IsFailedPrecondition(err), "%v", err)
		}
	}
	p, err := New(Containerd, h.Host)
	require.NoError(t, err)
	require.NoError(t, p.Apply(t.Context()))
	h.undo(Containerd)
	assert.Equal(t, before, h.tree())
}

// FuzzSetup: whatever is in the files, each target is set up or refused, and undoing gives the same bytes.
func FuzzSetup(f *testing.F) {
	f.Add([]byte(fullVersion2), []byte(`{"a": 1}`))
	f.Add([]byte(debianContainerd), []byte("debug = true\n[worker.oci]\nenabled = true\n"))
	f.Add([]byte("imports = ['conf.d/*.toml', '*']\nversion = 4\r\n"), []byte("snapshotter = 'x'"))
	f.Add([]byte("[proxy_plugins.cowshed]\ntype='snapshot'\naddress='/x'\n"), []byte("\xef\xbb\xbf{}"))
	f.Fuzz(func(t *testing.T, main, other []byte) {
		h := newTestHost(t, t.TempDir())
		h.write("containerd/config.toml", string(bytes.ReplaceAll(main, []byte("DIR"), nil)))
		for _, file := range []string{h.DockerConfig, h.NerdctlConfig, h.BuildKitConfig} {
			h.write(strings.TrimPrefix(file, h.dir), string(other))
		}
		before := h.tree()
		var done []Target
		for _, target := range []Target{Containerd, Kubernetes, Docker, Nerdctl, BuildKit} {
			p, err := New(target, h.Host)
			if err != nil {
				require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
				continue
			}
			require.NoError(t, p.Apply(t.Context()))
			again, err := New(target, h.Host)
			require.NoError(t, err)
			require.Empty(t, again.Changes)
			done = append([]Target{target}, done...)
		}
		for _, target := range done {
			p, err := Undo(target, h.Host)
			require.NoError(t, err)
			require.NoError(t, p.Apply(t.Context()))
		}
		require.Equal(t, before, h.tree())
	})
}
