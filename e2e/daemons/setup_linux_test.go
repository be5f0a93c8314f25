package daemons

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// setUp is the effect of cowshed setup on configurations of a host.
type setUp struct {
	t    *testing.T
	c    *harness.Cowshed
	args []string // which configurations
}

func (s setUp) run(target, what string) {
	s.t.Helper()
	require.NoError(s.t, s.c.Command(testContext(s.t), append([]string{"setup", target, what, "--config", s.c.Config}, s.args...)...))
}

func requireText(t *testing.T, file, want string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, want, string(text))
}

// TestSetupContainerd: a containerd whose configuration was written by setup unpacks an image and runs a container on
// Cowshed; undone, it is as it was.
func TestSetupContainerd(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	s := setUp{t: t, c: c}
	var file, before string
	containerd := h.StartContainerd("containerd", harness.ContainerdOptions{Configure: func(config string) {
		text, err := os.ReadFile(config)
		require.NoError(t, err)
		file, before = config, string(text)
		s.args = []string{"--containerd-config", config}
		s.run("containerd", "--apply")
	}})
	assert.NotContains(t, containerd.Log(), "migrated")
	store := containerd.Store("e2e", harness.CowshedSnapshotter)
	ctx := store.Context(testContext(t))
	img, err := store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
	require.NoError(t, err)
	result, err := store.Run(ctx, "one", img, harness.ChangeScript)
	require.NoError(t, err)
	assert.Equal(t, "changed\n", result.Output)
	assert.NotEmpty(t, volumes(t, h))
	require.NoError(t, c.Command(ctx, "doctor", "--containerd", "--config", c.Config, "--containerd-config", file, "--docker-config", filepath.Join(h.Dir, "none")))
	requireCleared(t, ctx, store)

	s.run("containerd", "--undo")
	requireText(t, file, before)
	containerd.Restart()
	_, err = containerd.Store("e2e", harness.CowshedSnapshotter).Keys(ctx)
	require.Error(t, err, "it no longer knows the snapshotter")
	keys, err := containerd.Store("e2e", "overlayfs").Keys(ctx)
	require.NoError(t, err)
	assert.Empty(t, keys)
}

// TestSetupKubernetes: CRI uses Cowshed, and tells the kubelet that its images are on Cowshed's filesystem.
func TestSetupKubernetes(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	s := setUp{t: t, c: c}
	containerd := h.StartContainerd("containerd", harness.ContainerdOptions{CRI: noCNI(t), Snapshotter: "overlayfs", Configure: func(config string) {
		s.args = []string{"--containerd-config", config}
		s.run("containerd", "--apply")
		s.run("kubernetes", "--apply")
	}})
	imageFilesystem := func() string {
		conn, err := grpc.NewClient("unix://"+containerd.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer func() { require.NoError(t, conn.Close()) }()
		answer, err := criapi.NewImageServiceClient(conn).ImageFsInfo(testContext(t), &criapi.ImageFsInfoRequest{})
		require.NoError(t, err, containerd.Log())
		require.Len(t, answer.GetImageFilesystems(), 1)
		return answer.GetImageFilesystems()[0].GetFsId().GetMountpoint()
	}
	assert.Equal(t, filepath.Join(c.Root, "containerd"), imageFilesystem())

	s.run("kubernetes", "--undo")
	containerd.Restart()
	assert.Equal(t, filepath.Join(containerd.Root, "io.containerd.snapshotter.v1.overlayfs"), imageFilesystem())
}

// TestSetupConfigurations: containerd reads setup's entries in configurations of all versions, with all else as
// before. After undoing, all is as before.
func TestSetupConfigurations(t *testing.T) {
	testfs.CheckLeaks(t)
	h := harness.NewHost(t, testfs.Btrfs(t))
	c := h.StartCowshed("containerd")
	debianPrograms := filepath.Join(h.Programs.Debian, "usr", "bin")
	path := os.Getenv("PATH")
	output := func(t *testing.T, dir string, args ...string) (out, errOut string) {
		t.Helper()
		var stderr strings.Builder
		cmd := exec.CommandContext(testContext(t), filepath.Join(dir, "containerd"), args...)
		cmd.Stderr = &stderr
		text, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		return string(text), stderr.String()
	}
	now, _ := output(t, h.Programs.Built, "config", "default")
	debian, _ := output(t, debianPrograms, "config", "default")
	for name, test := range map[string]struct {
		config   string
		noCRI    bool
		migrated bool // by containerd, at each start
	}{
		"none":            {"", false, false},
		"default":         {strings.ReplaceAll(now, "/etc/containerd/conf.d", filepath.Join(h.Dir, "conf.d")), false, false},
		"Debian's":        {debian, false, true},
		"Docker's":        {"disabled_plugins = [\"cri\"]\n", true, true},
		"version 2":       {"version = 2\nimports = [ ]\n", false, true},
		"version 3":       {"version = 3\n", false, true},
		"version 4":       {"version = 4\n\n[debug]\n  level = 'info' # as ever\n", false, false},
		"the same tables": {"version = 3\n[proxy_plugins]\n[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['walking']\n", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", h.Programs.Built+":"+path)
			file := filepath.Join(h.Dir, "config.toml")
			if test.config != "" {
				require.NoError(t, os.WriteFile(file, []byte(test.config), 0o600))
			}
			s := setUp{t: t, c: c, args: []string{"--containerd-config", file}}
			dump := func() (out, warnings string) { return output(t, h.Programs.Built, "--config", file, "config", "dump") }
			var before string
			if test.config != "" {
				before, _ = dump()
			}
			s.run("containerd", "--apply")
			if !test.noCRI {
				s.run("kubernetes", "--apply")
			}
			out, warnings := dump()
			require.Contains(t, out, "[proxy_plugins.cowshed-diff]")
			require.Contains(t, out, c.Address)
			require.Contains(t, out, "default = ['cowshed-diff', 'walking']")
			require.Regexp(t, `snapshotter = 'cowshed'\s+differ = 'cowshed-diff'`, out)
			require.Regexp(t, `snapshotter = 'overlayfs'\s+differ = 'walking'`, out)
			_, cri, _ := strings.Cut(out, "[plugins.'io.containerd.cri.v1.images']\n")
			require.Equal(t, !test.noCRI, strings.HasPrefix(strings.TrimSpace(cri), "snapshotter = 'cowshed'"), cri)
			require.Equal(t, test.migrated, strings.Contains(warnings, "migrated"), warnings)

			if !test.noCRI {
				s.run("kubernetes", "--undo")
			}
			s.run("containerd", "--undo")
			if test.config == "" {
				require.NoFileExists(t, file)
				return
			}
			requireText(t, file, test.config)
			after, _ := dump()
			require.Equal(t, before, after)
			require.NoError(t, os.Remove(file))
		})
	}

	// Debian's is too old: it would not start any more.
	file := filepath.Join(h.Dir, "config.toml")
	require.NoError(t, os.WriteFile(file, []byte(debian), 0o600))
	t.Setenv("PATH", debianPrograms+":"+path)
	err := c.Command(testContext(t), "setup", "containerd", "--apply", "--config", c.Config, "--containerd-config", file)
	require.ErrorContains(t, err, "needs containerd 2")
	requireText(t, file, debian)
}

// TestSetupDocker: engines whose daemon.json was written by setup run a container on Cowshed: that of today, and
// Debian's with the plugin. Undone, they start with their former images and containers.
func TestSetupDocker(t *testing.T) {
	for name, test := range map[string]struct {
		engine string
		start  func(h *harness.Host, containerd *harness.Containerd, configure func(string)) *harness.Engine
		former string
	}{
		"today": {"29.0", func(h *harness.Host, containerd *harness.Containerd, configure func(string)) *harness.Engine {
			return h.StartDocker(harness.EngineOptions{Driver: harness.CowshedSnapshotter, Containerd: containerd, Configure: configure})
		}, "overlayfs"},
		"Debian": {"20.10.24", func(h *harness.Host, _ *harness.Containerd, configure func(string)) *harness.Engine {
			return h.StartDebianDocker(harness.EngineOptions{Driver: h.PluginName(), Configure: configure})
		}, "btrfs"},
	} {
		t.Run(name, func(t *testing.T) {
			testfs.CheckLeaks(t)
			h := harness.NewHost(t, testfs.Btrfs(t))
			c := h.StartCowshed("containerd")
			s := setUp{t: t, c: c}
			var containerd *harness.Containerd
			driver := c.Plugin
			if name == "today" {
				driver = harness.CowshedSnapshotter
				containerd = h.StartContainerd("containerd", harness.ContainerdOptions{Configure: func(config string) {
					s.args = []string{"--containerd-config", config}
					s.run("containerd", "--apply")
				}})
			}
			file := ""
			s.args = append(s.args, "--engine", test.engine)
			e := test.start(h, containerd, func(config string) {
				file = config
				s.args = append(s.args, "--docker-config", config)
				s.run("docker", "--apply")
			})
			ctx := testContext(t)
			info, err := e.Info(ctx, client.InfoOptions{})
			require.NoError(t, err)
			assert.Equal(t, driver, info.Info.Driver)
			require.NoError(t, e.Load(ctx, h.SaveImage(harness.BusyboxImage(t, h.Programs), "cowshed/one:1")))
			result, err := e.RunContainer(ctx, "one", "cowshed/one:1", "echo here", nil)
			require.NoError(t, err)
			assert.Equal(t, "here\n", result.Output)
			assert.NotEmpty(t, volumes(t, h))
			require.NoError(t, e.RemoveAllContainers(ctx))
			require.NoError(t, e.Prune(ctx))
			e.Stop()

			s.run("docker", "--undo")
			requireText(t, file, "{}")
			require.NoError(t, os.RemoveAll(e.Root)) // it stays with a driver that it has found
			require.NoError(t, os.Mkdir(e.Root, 0o711))
			e.Daemon.Start()
			info, err = e.Info(ctx, client.InfoOptions{})
			require.NoError(t, err)
			assert.Equal(t, test.former, info.Info.Driver)
		})
	}
}
