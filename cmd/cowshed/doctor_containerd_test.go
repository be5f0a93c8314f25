package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	apitypes "github.com/containerd/containerd/api/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthapi "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/cowshed/cowshed/internal/setup"
	"github.com/cowshed/cowshed/internal/testfs"
)

// introspection is a containerd that has loaded the given snapshotters.
type introspection struct {
	introspectionapi.UnimplementedIntrospectionServer
	loaded []string
}

func (i *introspection) Plugins(_ context.Context, request *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	response := &introspectionapi.PluginsResponse{}
	for _, name := range i.loaded {
		if strings.HasSuffix(request.GetFilters()[0], ",id=="+name) {
			response.Plugins = append(response.Plugins, &introspectionapi.Plugin{ID: name, Platforms: []*apitypes.Platform{}})
		}
	}
	return response, nil
}

// serveFake serves the services of register on a socket until the test ends.
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
		if err := testfs.Result(ended); !errors.Is(err, grpc.ErrServerStopped) {
			require.NoError(t, err)
		}
	})
}

// doctored is a host that is set up well, as far as it can be without a filesystem.
type doctored struct {
	t          *testing.T
	dir        string
	containerd *introspection
}

func newDoctored(t *testing.T) doctored {
	t.Helper()
	d := doctored{t, t.TempDir(), &introspection{loaded: []string{"cowshed"}}}
	t.Setenv("PATH", "") // neither containerd nor dockerd is there to be asked
	serveFake(t, d.path("cowshed.sock"), func(s *grpc.Server) { healthapi.RegisterHealthServer(s, health.NewServer()) })
	serveFake(t, d.path("containerd.sock"), func(s *grpc.Server) {
		introspectionapi.RegisterIntrospectionServer(s, d.containerd)
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

// sample is the file that setup makes containerd import on this host.
func (d doctored) sample() string {
	d.t.Helper()
	plan, err := setup.New(setup.Containerd, setup.Host{
		Socket: d.path("cowshed.sock"), Root: d.path("containerd"), ContainerdConfig: filepath.Join(d.t.TempDir(), "config.toml"),
	})
	require.NoError(d.t, err)
	require.NotEmpty(d.t, plan.Changes)
	return string(plan.Changes[0].After)
}

// findings runs doctor and returns its findings of the set-up, without those that depend on the machine.
func (d doctored) findings(args ...string) []finding {
	d.t.Helper()
	r := at{root: d.dir}.run(d.t, append([]string{"doctor", "--containerd", "--json", "--config", d.path("cowshed.toml"),
		"--containerd-config", d.path("containerd.toml"), "--docker-config", d.path("daemon.json")}, args...)...)
	var all, found []finding
	require.NoError(d.t, json.Unmarshal([]byte(r.out), &all), "%s%s", r.out, r.err)
	ofMachine := []string{"filesystem", "privileges", "processes", "kernel", "platform"}
	for _, f := range all {
		if !slices.Contains(ofMachine, f.Check) {
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
	// The content of imported files counts as well.
	d.write("10-cowshed.toml", d.sample())
	d.write("containerd.toml", "version = 3\nimports = ['*-cowshed.toml', 'containerd.toml']\n")
	for _, f := range d.findings() {
		assert.Equal(t, ok, f.Verdict, "%v", f)
	}
}

// replace changes a file by hand.
func (d doctored) replace(file, old, new string) {
	d.t.Helper()
	text, err := os.ReadFile(d.path(file))
	require.NoError(d.t, err)
	require.Contains(d.t, string(text), old)
	d.write(file, strings.ReplaceAll(string(text), old, new))
}

// follow follows the advice of a finding: it runs the command, or does by hand what to do according to the text.
func (d doctored) follow(f finding, byHand func(d doctored)) {
	d.t.Helper()
	_, command, isCommand := strings.Cut(f.Advice, "run: cowshed ")
	if isCommand {
		require.Nil(d.t, byHand)
		at{root: d.dir}.ok(d.t, strings.Fields(command)...)
		return
	}
	require.NotNil(d.t, byHand, f.Advice)
	byHand(d)
}

// TestDoctorContainerdFinds: doctor finds each fault, and does not find it after its advice has been followed.
func TestDoctorContainerdFinds(t *testing.T) {
	by := func(file, old, new string) func(doctored) {
		return func(d doctored) { d.t.Helper(); d.replace(file, old, new) }
	}
	for name, c := range map[string]struct {
		file     string
		old, new string // the text to replace in it; old "": all of it
		verdict  verdict
		says     string
		advice   string
		byHand   func(d doctored) // nil: the advice is a command
	}{
		"no proxy": {"containerd.toml", "", "version = 3\n",
			fail, "no proxy plugin of the type snapshot", " setup containerd", nil},
		"no file": {"containerd.toml", "gone", "", fail, "containerd.toml: no such file", " setup containerd", nil},
		"another socket": {"containerd.toml", "cowshed.sock", "other.sock",
			fail, "no proxy plugin of the type snapshot", "say in [proxy_plugins.cowshed]", by("containerd.toml", "other.sock", "cowshed.sock")},
		"no TOML": {"containerd.toml", "version = 3", "[[", fail, "containerd.toml", "put that right", by("containerd.toml", "[[\n", "\n")},
		"name of containerd's own": {"containerd.toml", "proxy_plugins.cowshed", "proxy_plugins.btrfs",
			fail, "btrfs is a snapshotter of containerd itself", "another name", by("containerd.toml", "proxy_plugins.btrfs", "proxy_plugins.cowshed")},
		"no exports": {"containerd.toml", "    root = ", "    toor = ", warn, "exports no root", "exports", by("containerd.toml", "    toor = ", "    root = ")},
		"other root": {"containerd.toml", "/containerd\"", "/volumes\"", warn, "its volumes are in", "exports", by("containerd.toml", "/volumes\"", "/containerd\"")},
		"no remap": {"containerd.toml", `capabilities = ["remap-ids"]`, "", warn, "remap-ids", "capabilities",
			by("containerd.toml", `type = "snapshot"`, "type = \"snapshot\"\ncapabilities = [\"remap-ids\"]")},
		"no differ": {"containerd.toml", "[proxy_plugins.cowshed-diff]\n  type = \"diff\"", "[proxy_plugins.other]\n  type = \"content\"",
			fail, "no proxy plugin of the type diff", " setup containerd", nil},
		"differ of another type": {"containerd.toml", `type = "diff"`, `type = "sandbox"`,
			fail, "no proxy plugin of the type diff", "type = \"diff\"", by("containerd.toml", `type = "sandbox"`, `type = "diff"`)},
		"walking first": {"containerd.toml", `["cowshed-diff", "walking"]`, `["walking", "cowshed-diff"]`,
			fail, "asks walking before cowshed-diff", " setup containerd", nil},
		"walking only": {"containerd.toml", `["cowshed-diff", "walking"]`, `["walking"]`,
			fail, "does not ask cowshed-diff", " setup containerd", nil},
		"not walking": {"containerd.toml", `["cowshed-diff", "walking"]`, `["cowshed-diff"]`,
			warn, "does not ask walking", " setup containerd", nil},
		"walking first, imported later": {"conf.d/z.toml", "", "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['walking']\n",
			fail, "does not ask cowshed-diff", `["cowshed-diff", "walking"]`, by("conf.d/z.toml", "'walking'", "'cowshed-diff', 'walking'")},
		"no unpacking": {"containerd.toml", `snapshotter = "cowshed"`, `snapshotter = "native"`, fail, "cannot unpack images for cowshed", " setup containerd", nil},
		"unpacking by walking": {"containerd.toml", `differ = "cowshed-diff"`, `differ = "walking"`,
			warn, "with \"walking\"", " setup containerd", nil},
		"other containerd": {"containerd.toml", "version = 3", "version = 2\n[grpc]\naddress = '/run/k3s/containerd.sock'",
			fail, "containerd listens on /run/k3s/containerd.sock", "containerd_address", func(d doctored) {
				d.replace("cowshed.toml", d.path("containerd.sock"), "/run/k3s/containerd.sock")
			}},
		"daemon is gone": {"cowshed.toml", "cowshed.sock", "gone.sock", fail, "stat ", "systemctl enable", func(d doctored) {
			serveFake(d.t, d.path("gone.sock"), func(s *grpc.Server) { healthapi.RegisterHealthServer(s, health.NewServer()) })
		}},
		"not loaded": {"containerd.toml", "[proxy_plugins.cowshed]", "[proxy_plugins.shed]",
			fail, "has not loaded shed", "restart", func(d doctored) { d.containerd.loaded = []string{"shed"} }},
		"wrong limit": {"cowshed.toml", "root = ", "build_limit = 'much'\nroot = ", fail, "build_limit: ", "packaging/cowshed.toml", by("cowshed.toml", "much", "1G")},
		"docker, no feature": {"daemon.json", "", `{"storage-driver": "cowshed"}`,
			fail, "does not use the containerd image store", " setup docker", nil},
		"docker, no feature, options": {"daemon.json", "", `{"storage-driver": "cowshed", "storage-opts": ["a.b=c"]}`,
			fail, "does not use the containerd image store", "\"containerd-snapshotter\": true", by("daemon.json", "{", `{"features": {"containerd-snapshotter": true}, `)},
		"docker, other containerd": {"daemon.json", "", `{"storage-driver": "cowshed", "features": {"containerd-snapshotter": true}, "containerd": "/x"}`,
			fail, "its containerd is on /x", "containerd_address", func(d doctored) { d.replace("cowshed.toml", d.path("containerd.sock"), "/x") }},
		"docker, no JSON": {"daemon.json", "", `{`, fail, "daemon.json", "put that right", by("daemon.json", "{", "{}")},
		"Kubernetes":      {"containerd.toml", "", "", ok, "Kubernetes (CRI) uses containerd's own snapshotter", " setup kubernetes", nil},
		"configuration":   {"cowshed.toml", "root = ", "roots = ", fail, `unknown key "roots"`, "packaging/cowshed.toml", by("cowshed.toml", "roots", "root")},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDoctored(t)
			require.NoError(t, os.Mkdir(d.path("conf.d"), 0o755))
			d.replace("containerd.toml", "version = 3\n", "version = 3\nimports = ['conf.d/*.toml']\n")
			switch {
			case c.old == "gone":
				require.NoError(t, os.Remove(d.path(c.file)))
			case c.old != "":
				d.replace(c.file, c.old, c.new)
			case c.new != "":
				d.write(c.file, c.new)
			}
			found := d.finds(c.verdict, c.says)
			require.Len(t, found, 1, "%v", d.findings())
			assert.Contains(t, found[0].Advice, c.advice)
			d.follow(found[0], c.byHand)
			assert.Empty(t, d.finds(c.verdict, c.says), "the advice was followed")
		})
	}
}

// finds runs doctor and returns its findings of one thing.
func (d doctored) finds(v verdict, says string) (found []finding) {
	d.t.Helper()
	for _, f := range d.findings() {
		if f.Verdict == v && strings.Contains(f.Detail, says) {
			found = append(found, f)
		}
	}
	return found
}

// TestDoctorLimits: doctor lists the limits.
func TestDoctorLimits(t *testing.T) {
	d := newDoctored(t)
	assert.Len(t, d.finds(ok, "containers: none (default_limit); builds and layers that are unpacked: none (build_limit)"), 1)
	d.replace("cowshed.toml", "root = ", "default_limit = '20G'\nbuild_limit = '100G'\nroot = ")
	assert.Len(t, d.finds(ok, "containers: 20G (default_limit); builds and layers that are unpacked: 100G (build_limit)"), 1)
}

// TestDoctorEngines: doctor says whether the daemon learns limits from an engine. A daemon that was killed is not connected,
// although its report says so.
func TestDoctorEngines(t *testing.T) {
	const connected = "nri is connected since"
	d := newDoctored(t)
	d.replace("cowshed.toml", "root = ", fmt.Sprintf("nri = true\nstate = %q\nroot = ", d.dir))
	assert.Len(t, d.finds(fail, "the daemon has not tried to connect to an engine"), 1)
	d.write("engines.json", `{"engines": [{"name": "nri", "connected": true, "since": "2026-01-02T03:04:05Z"}],
		"refused": [{"engine": "nri", "namespace": "k8s.io", "id": "abc", "name": "default/web/app", "error": "much"}]}`)
	const refused = "container default/web/app of nri is without the limit that it asks for: much"
	assert.Len(t, d.finds(ok, connected), 1)
	assert.Len(t, d.finds(fail, refused), 1)

	d.replace("cowshed.toml", "cowshed.sock", "gone.sock")
	assert.Empty(t, d.finds(ok, connected))
	assert.Len(t, d.finds(fail, "nri is not connected, since the daemon does not answer"), 1)
	assert.Len(t, d.finds(fail, refused), 1)
}

// TestDoctorSaysWhatToSee: where only a person can find out, doctor says where to look.
func TestDoctorSaysWhatToSee(t *testing.T) {
	d := newDoctored(t)
	d.replace("cowshed.toml", "containerd.sock", "gone.sock")
	found := d.finds(fail, "gone.sock")
	require.Len(t, found, 1)
	assert.Equal(t, "see: systemctl status containerd", found[0].Advice)
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
	assert.Equal(t, finding{Verdict: ok, Check: "Docker", Detail: "it uses the graph driver plugin cows"}, last())
	d.write("daemon.json", `{"storage-driver": "cows"}`)
	assert.Equal(t, fail, last().Verdict)
	d.follow(last(), nil)
	assert.Equal(t, finding{Verdict: ok, Check: "Docker", Detail: "it uses the graph driver plugin cows"}, last())

	// With the other existing drivers, it is offered, and done as well.
	d = newDoctored(t)
	d.write("daemon.json", `{"storage-driver": "overlay2"}`)
	assert.Equal(t, ok, last().Verdict)
	assert.Contains(t, last().Detail, "overlay2, not Cowshed")
	advised := last()
	advised.Advice = strings.Replace(advised.Advice, "--apply", "--engine 29.0 --apply", 1) // there is no dockerd to be asked
	d.follow(advised, nil)
	assert.Equal(t, finding{Verdict: ok, Check: "Docker", Detail: "it uses the snapshotter cowshed through the containerd image store"}, last())
}
