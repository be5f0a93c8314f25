package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	apitypes "github.com/containerd/containerd/api/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"
)

// introspection is a containerd that has loaded the given snapshotters.
type introspection struct {
	introspectionapi.UnimplementedIntrospectionServer
	loaded []string
}

func (i introspection) Plugins(_ context.Context, request *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	response := &introspectionapi.PluginsResponse{}
	for _, name := range i.loaded {
		if strings.HasSuffix(request.GetFilters()[0], ",id=="+name) {
			response.Plugins = append(response.Plugins, &introspectionapi.Plugin{ID: name, Platforms: []*apitypes.Platform{}})
		}
	}
	return response, nil
}

// serveFake serves what register registers on a socket until the test ends.
func serveFake(t testing.TB, socket string, register func(*grpc.Server)) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	register(server)
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		// A test that asks for nothing may stop it before it has begun to serve.
		if err := <-ended; !errors.Is(err, grpc.ErrServerStopped) {
			require.NoError(t, err)
		}
	})
}

// doctored is a host that is set up well, as far as it can be without a filesystem.
type doctored struct {
	t   *testing.T
	dir string
}

func newDoctored(t *testing.T) doctored {
	t.Helper()
	d := doctored{t, t.TempDir()}
	serveFake(t, d.path("cowshed.sock"), func(s *grpc.Server) { healthapi.RegisterHealthServer(s, health.NewServer()) })
	serveFake(t, d.path("containerd.sock"), func(s *grpc.Server) {
		introspectionapi.RegisterIntrospectionServer(s, introspection{loaded: []string{"cowshed"}})
	})
	d.write("cowshed.toml", fmt.Sprintf("root = %q\naddress = %q\ncontainerd_address = %q\n", d.dir, d.path("cowshed.sock"), d.path("containerd.sock")))
	d.write("containerd.toml", d.sample())
	return d
}

func (d doctored) path(name string) string { return filepath.Join(d.dir, name) }

func (d doctored) write(name, text string) {
	d.t.Helper()
	require.NoError(d.t, os.WriteFile(d.path(name), []byte(text), 0o600))
}

// sample is the sample of containerd's configuration for this host.
func (d doctored) sample() string {
	d.t.Helper()
	text, err := os.ReadFile("../../packaging/containerd.toml")
	require.NoError(d.t, err)
	return strings.NewReplacer("/run/cowshed/cowshed.sock", d.path("cowshed.sock"), "/var/lib/cowshed", d.dir).Replace(string(text))
}

// findings runs doctor and returns what it found of the set-up, without what depends on the machine.
func (d doctored) findings(args ...string) []finding {
	d.t.Helper()
	r := at{root: d.dir}.run(d.t, append([]string{"doctor", "--containerd", "--json", "--config", d.path("cowshed.toml"),
		"--containerd-config", d.path("containerd.toml"), "--docker-config", d.path("daemon.json")}, args...)...)
	var all, found []finding
	require.NoError(d.t, json.Unmarshal([]byte(r.out), &all), "%s%s", r.out, r.err)
	for _, f := range all {
		if f.Check != "filesystem" && f.Check != "privileges" && f.Check != "kernel" && f.Check != "platform" {
			found = append(found, f)
		} else if f.Verdict == fail {
			assert.Equal(d.t, exitFailure, r.code)
		}
	}
	return found
}

func TestDoctorContainerdFindsNothing(t *testing.T) {
	d := newDoctored(t)
	for _, f := range d.findings() {
		assert.Equal(t, ok, f.Verdict, "%v", f)
	}
	d.write("daemon.json", `{"features": {"containerd-snapshotter": true}, "storage-driver": "cowshed"}`)
	for _, f := range d.findings() {
		assert.Equal(t, ok, f.Verdict, "%v", f)
	}
	// What stands in imported files counts as well.
	d.write("10-cowshed.toml", d.sample())
	d.write("containerd.toml", "version = 3\nimports = ['*-cowshed.toml', 'containerd.toml']\n")
	for _, f := range d.findings() {
		assert.Equal(t, ok, f.Verdict, "%v", f)
	}
}

func TestDoctorContainerdFinds(t *testing.T) {
	for name, c := range map[string]struct {
		file     string
		old, new string // what is replaced in it; old "": all of it
		verdict  verdict
		says     string
		advice   string
	}{
		"no proxy": {"containerd.toml", "", "version = 3\n",
			fail, "no proxy plugin of the type snapshot", "packaging/containerd.toml"},
		"another socket": {"containerd.toml", "cowshed.sock", "other.sock",
			fail, "no proxy plugin of the type snapshot", "packaging/containerd.toml"},
		"no TOML": {"containerd.toml", "", "[[", fail, "containerd.toml", "packaging/containerd.toml"},
		"name of containerd's own": {"containerd.toml", "[proxy_plugins.cowshed]", "[proxy_plugins.btrfs]",
			fail, "btrfs is a snapshotter of containerd itself", "another name"},
		"no exports": {"containerd.toml", "    root = ", "    toor = ", warn, "exports no root", "exports"},
		"other root": {"containerd.toml", "/containerd\"", "/volumes\"", warn, "its volumes are in", "exports"},
		"no remap":   {"containerd.toml", `capabilities = ["remap-ids"]`, "", warn, "remap-ids", "capabilities"},
		"no differ": {"containerd.toml", `type = "diff"`, `type = "sandbox"`,
			fail, "no proxy plugin of the type diff", "another"},
		"walking first": {"containerd.toml", `["cowshed-diff", "walking"]`, `["walking", "cowshed-diff"]`,
			fail, "asks walking before cowshed-diff", `["cowshed-diff", "walking"]`},
		"walking only": {"containerd.toml", `["cowshed-diff", "walking"]`, `["walking"]`,
			fail, "does not ask cowshed-diff", `["cowshed-diff", "walking"]`},
		"not walking": {"containerd.toml", `["cowshed-diff", "walking"]`, `["cowshed-diff"]`,
			warn, "does not ask walking", `["cowshed-diff", "walking"]`},
		"no unpacking": {"containerd.toml", `snapshotter = "cowshed"
  differ`, `snapshotter = "overlayfs"
  differ`, fail, "cannot unpack images for cowshed", "unpack_config"},
		"unpacking by walking": {"containerd.toml", `differ = "cowshed-diff"`, `differ = "walking"`,
			warn, "with \"walking\"", "unpack_config"},
		"other containerd": {"containerd.toml", "version = 3", "version = 2\n[grpc]\naddress = '/run/k3s/containerd.sock'",
			fail, "containerd listens on /run/k3s/containerd.sock", "containerd_address"},
		"containerd is gone": {"cowshed.toml", "containerd.sock", "gone.sock", fail, "gone.sock", "containerd"},
		"daemon is gone":     {"cowshed.toml", "cowshed.sock", "gone.sock", fail, "stat ", "systemctl enable"},
		"not loaded": {"containerd.toml", "[proxy_plugins.cowshed]", "[proxy_plugins.shed]",
			fail, "has not loaded shed", "restart"},
		"no limits": {"cowshed.toml", "root = ", "limit_scope = 'layer'\nroot = ",
			ok, "containers: none (default_limit); builds and layers that are unpacked: none (build_limit)", ""},
		"both limits": {"cowshed.toml", "root = ", "default_limit = '20G'\nbuild_limit = '100G'\nroot = ",
			ok, "containers: 20G (default_limit); builds and layers that are unpacked: 100G (build_limit)", ""},
		"wrong limit":   {"cowshed.toml", "root = ", "build_limit = 'much'\nroot = ", fail, "build_limit: ", "packaging/cowshed.toml"},
		"configuration": {"cowshed.toml", "root = ", "roots = ", fail, `unknown key "roots"`, "packaging/cowshed.toml"},
		"docker, no feature": {"daemon.json", "", `{"storage-driver": "cowshed"}`,
			fail, "does not use the containerd image store", "containerd-snapshotter"},
		"docker, other containerd": {"daemon.json", "", `{"storage-driver": "cowshed", "features": {"containerd-snapshotter": true}, "containerd": "/x"}`,
			fail, "its containerd is on /x", ""},
		"docker, no JSON": {"daemon.json", "", `{`, fail, "daemon.json", ""},
		"docker, other":   {"daemon.json", "", `{"storage-driver": "overlay2"}`, ok, "overlay2, not Cowshed", "daemon.json"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoctored(t)
			if c.old == "" {
				d.write(c.file, c.new)
			} else {
				text, err := os.ReadFile(d.path(c.file))
				require.NoError(t, err)
				require.Contains(t, string(text), c.old)
				d.write(c.file, strings.ReplaceAll(string(text), c.old, c.new))
			}
			var found []finding
			for _, f := range d.findings() {
				if f.Verdict == c.verdict && strings.Contains(f.Detail, c.says) {
					found = append(found, f)
				}
			}
			require.Len(t, found, 1, "%v", d.findings())
			assert.Contains(t, found[0].Advice, c.advice)
		})
	}
}

func TestDoctorDockerPlugin(t *testing.T) {
	d := newDoctored(t)
	text, err := os.ReadFile(d.path("cowshed.toml"))
	require.NoError(t, err)
	d.write("cowshed.toml", string(text)+"docker_plugin = \"cows\"\n")
	last := func() finding {
		findings := d.findings()
		return findings[len(findings)-1]
	}
	d.write("daemon.json", `{"experimental": true, "storage-driver": "cows"}`)
	assert.Equal(t, finding{ok, "Docker", "it uses the graph driver plugin cows", ""}, last())
	d.write("daemon.json", `{"storage-driver": "cows"}`)
	assert.Equal(t, fail, last().Verdict)
	assert.Contains(t, last().Advice, "experimental")
}
