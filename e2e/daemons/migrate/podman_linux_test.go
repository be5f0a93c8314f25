package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// podman is Debian's podman with a store of its own.
type podman struct {
	t    *testing.T
	host *harness.Host
	// root is the graph root.
	root   string
	driver string
	env    []string
}

// newPodman makes an empty store with the driver.
func newPodman(t *testing.T, h *harness.Host, driver string) podman {
	t.Helper()
	for _, dir := range []string{"/var/lib/containers", "/var/cache/containers"} {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			// podman has a cache of digests and a lock at fixed paths.
			t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
		}
	}
	dir := filepath.Join(h.Dir, "podman")
	config := filepath.Join(dir, ".config", "containers")
	require.NoError(t, os.MkdirAll(config, 0o755))
	root := filepath.Join(h.Data, "storage")
	write := func(file, text string) string {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
		return file
	}
	write(filepath.Join(config, "policy.json"), `{"default": [{"type": "insecureAcceptAnything"}]}`)
	registries := write(filepath.Join(config, "registries.conf"), "unqualified-search-registries = []\n")
	storage := write(filepath.Join(dir, "storage.conf"), fmt.Sprintf(`[storage]
driver = %q
graphroot = %q
runroot = %q
`, driver, root, filepath.Join(dir, "run")))
	engine := write(filepath.Join(dir, "containers.conf"), fmt.Sprintf(`[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
conmon_path = [%q]
static_dir = %q
tmp_dir = %q
volume_path = %q
[engine.runtimes]
runc = [%q]
[network]
network_config_dir = %q
`, filepath.Join(h.Programs.Debian, "usr/bin/conmon"), filepath.Join(root, "libpod"), filepath.Join(dir, "tmp"),
		filepath.Join(root, "volumes"), filepath.Join(h.Programs.Debian, "usr/sbin/runc"), filepath.Join(dir, "networks")))
	p := podman{t, h, root, driver, append(os.Environ(),
		"HOME="+dir, "CONTAINERS_REGISTRIES_CONF="+registries, "CONTAINERS_STORAGE_CONF="+storage, "CONTAINERS_CONF="+engine,
		"PATH="+filepath.Join(h.Programs.Debian, "usr/bin")+":"+os.Getenv("PATH"))}
	t.Cleanup(func() { p.run(context.WithoutCancel(t.Context()), "rm", "--all", "--force", "--time=0") })
	return p
}

// run runs a command of podman and returns its output.
func (p podman) run(ctx context.Context, args ...string) string {
	p.t.Helper()
	cmd := exec.CommandContext(ctx, filepath.Join(p.host.Programs.Debian, "usr/bin/podman"), args...)
	cmd.Env, cmd.Dir = p.env, p.host.Dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(p.t, err, "podman %q: %s", args, stderr.String())
	return strings.TrimSpace(string(out))
}

// inspect reads the output of podman inspect, with a template that prints JSON.
func (p podman) inspect(ctx context.Context, what, template, id string, value any) {
	p.t.Helper()
	require.NoError(p.t, json.Unmarshal([]byte(p.run(ctx, what, "inspect", "--format", template, id)), value))
}

// podmanLayers is how many layers the deepest image has.
const podmanLayers = 200

// deepest tells whether podman has an image of podmanLayers layers, in short runs only with one driver.
func (p podman) deepest() bool { return p.driver == "overlay" || testfs.Long() }

// recipes are the containers that podman makes.
func (p podman) recipes() []recipe {
	var list []recipe
	for _, r := range recipes("", false) {
		switch r.name {
		case "changed", "created", "replaced", "special", "writer":
			list = append(list, r)
		}
	}
	if p.deepest() {
		// The overlay driver cannot mount so many layers, so this container never runs with it.
		list = append(list, recipe{
			name: "deepest", image: "cowtest/deepest:1", script: "echo more >>/deep/last; rm /deep/199", created: p.driver == "overlay",
		})
	}
	return list
}

// podmanRecord is all that a migration of podman's storage must keep.
type podmanRecord struct {
	images     map[digest.Digest]podmanImage // by ID, which is the digest of the config
	containers map[string]treecmp.Tree       // of those that have run, by ID
	names      map[string]string             // of all containers, by ID
}

type podmanImage struct {
	names   []string
	diffIDs []digest.Digest
}

// makePodman makes images and containers with podman.
func makePodman(t *testing.T, ctx context.Context, p podman) podmanRecord {
	t.Helper()
	loaded := filepath.Join(p.host.Dir, "images.tar")
	images := slices.DeleteFunc(loadedImages(t, p.host.Programs), func(img image) bool {
		return slices.Contains(img.tags, "cowtest/deep:1")
	})
	base := harness.BusyboxImage(t, p.host.Programs)
	if p.deepest() {
		images = append(images, image{tags("deepest:1"), deep(t, base, podmanLayers)})
	}
	saveImages(t, loaded, images)
	p.run(ctx, "load", "--quiet", "--input", loaded)
	require.NoError(t, os.Remove(loaded))

	for _, r := range p.recipes() {
		p.create(ctx, r)
	}
	p.run(ctx, "stop", "--all", "--time=60")

	r := podmanRecord{images: map[digest.Digest]podmanImage{}, containers: map[string]treecmp.Tree{}, names: map[string]string{}}
	for _, id := range strings.Fields(p.run(ctx, "images", "--quiet", "--no-trunc")) {
		var img podmanImage
		p.inspect(ctx, "image", "{{json .RepoTags}}", id, &img.names)
		p.inspect(ctx, "image", "{{json .RootFS.Layers}}", id, &img.diffIDs)
		slices.Sort(img.names)
		if len(img.names) == 0 {
			img.names = nil
		}
		r.images[digest.Digest(id)] = img
	}
	for _, c := range p.recipes() {
		var id string
		p.inspect(ctx, "container", "{{json .ID}}", c.name, &id)
		r.names[id] = c.name
		if c.created {
			continue
		}
		pid := p.start(ctx, c.name, false)
		inContainer(t, pid, func(root string) {
			tree, err := treecmp.Read(root, options)
			require.NoError(t, err)
			r.containers[id] = tree
		})
	}
	p.run(ctx, "stop", "--all", "--time=60")
	return r
}

// create makes a container, and starts it unless it is never to run.
func (p podman) create(ctx context.Context, r recipe) {
	p.t.Helper()
	p.run(ctx, "create", "--network=none", "--cgroups=no-conmon", "--cgroup-parent=/"+p.host.Cgroup,
		"--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--name="+r.name, r.image, "/bin/sh", "-c", r.command())
	if !r.created {
		p.start(ctx, r.name, r.writing)
	}
}

// start starts a container, waits until it is ready, and returns its process.
func (p podman) start(ctx context.Context, name string, writing bool) (pid int) {
	p.t.Helper()
	p.run(ctx, "start", name)
	p.inspect(ctx, "container", "{{.State.Pid}}", name, &pid)
	sign := "/dev/shm/ready"
	if writing {
		sign = "/written/latest"
	}
	require.Eventually(p.t, func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", pid, sign))
		return err == nil
	}, startTimeout, 10*time.Millisecond, "%s: %s", name, logs{p, ctx, name})
	return pid
}

// logs are the output of a container at the time when they are printed.
type logs struct {
	podman podman
	ctx    context.Context //nolint:containedctx // of the test
	name   string
}

func (l logs) String() string {
	cmd := exec.CommandContext(l.ctx, filepath.Join(l.podman.host.Programs.Debian, "usr/bin/podman"), "logs", l.name)
	cmd.Env = l.podman.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s: %v", out, err)
	}
	return string(out)
}

// TestPodman takes podman's storage to containerd. In short runs, it exports the images and finishes with one driver.
func TestPodman(t *testing.T) {
	drivers := []string{"overlay", "btrfs"}
	if testfs.Long() {
		drivers = append(drivers, "vfs")
	}
	for _, driver := range drivers {
		t.Run(driver, func(t *testing.T) {
			h := harness.NewHost(t, testfs.Btrfs(t))
			ctx := testContext(t)
			p := newPodman(t, h, driver)
			before := makePodman(t, ctx, p)

			cowshed := h.StartCowshed("containerd")
			containerd := h.StartContainerd("containerd", cowshed.Options())
			store := containerd.Store("default", harness.CowshedSnapshotter)
			m := migration{h.CowshedProgram(), []string{
				"--root", cowshed.Root, "--from", p.root, "--to", "containerd", "--containerd-address", containerd.Address, "--namespace", "default",
			}}
			m.run(t, ctx, "plan")
			m.run(t, ctx, "run")
			m.run(t, ctx, "verify")
			p.requireIn(ctx, store, before)
			exports := driver == "btrfs" || testfs.Long()
			if exports {
				p.requireExports(ctx, store, before)
			}
			m.run(t, ctx, "undo")
			requireNothing(t, ctx, store)
			requireNoBlobs(t, ctx, store)
			if !exports {
				return
			}
			m.run(t, ctx, "run", "--no-verify")
			m.run(t, ctx, "finish", "--yes")
			assert.NoDirExists(t, filepath.Join(p.root, driver))
			p.requireIn(ctx, store, before)
		})
	}
}

// requireExports exports the images of containerd to an archive, and pushes them to a registry. Both have the configs and
// layers that podman had.
func (p podman) requireExports(ctx context.Context, store *harness.Store, want podmanRecord) {
	t := p.t
	t.Helper()
	ctx = store.Context(ctx)
	list, err := store.ListImages(ctx)
	require.NoError(t, err)
	registry := p.host.StartRegistry()
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	var manifests []archive.ExportOpt
	known := map[v1.Hash]digest.Digest{}
	pushed := map[digest.Digest]bool{}
	for _, img := range list {
		config, err := img.Config(ctx)
		require.NoError(t, err)
		if pushed[config.Digest] {
			continue
		}
		pushed[config.Digest] = true
		manifests = append(manifests, archive.WithManifest(img.Target()))
		reference := fmt.Sprintf("%s/pushed/%s:1", registry, config.Digest.Encoded()[:12])
		require.NoError(t, store.PushImage(ctx, img, reference))
		requirePushed(t, ctx, transport, reference, config.Digest, want.images[config.Digest].diffIDs, known)
	}
	file, err := os.Create(filepath.Join(p.host.Dir, "exported.tar"))
	require.NoError(t, err)
	defer func() { require.NoError(t, errors.Join(file.Close(), os.Remove(file.Name()))) }()
	require.NoError(t, store.Export(ctx, file, manifests...))
	_, err = file.Seek(0, io.SeekStart)
	require.NoError(t, err)
	exported := readSaved(t, file)
	assert.Len(t, exported, len(want.images))
	for config, img := range want.images {
		var diffIDs []digest.Digest
		for _, diffID := range exported[config].diffIDs {
			diffIDs = append(diffIDs, digest.Digest(diffID))
		}
		assert.Equal(t, img.diffIDs, diffIDs, "exported layers of %v", img.names)
	}
}

// requireIn checks that containerd has podman's images and the files of its containers, and runs some.
func (p podman) requireIn(ctx context.Context, store *harness.Store, want podmanRecord) {
	t := p.t
	t.Helper()
	ctx = store.Context(ctx)
	list, err := store.ListImages(ctx)
	require.NoError(t, err)
	got := map[digest.Digest]podmanImage{}
	for _, img := range list {
		config, err := img.Config(ctx)
		require.NoError(t, err)
		entry := got[config.Digest]
		if _, err := digest.Parse(img.Name()); err != nil { // that is the name of an image without a name
			entry.names = append(entry.names, img.Name())
		}
		entry.diffIDs, err = img.RootFS(ctx)
		require.NoError(t, err)
		got[config.Digest] = entry
		unpacked, err := img.IsUnpacked(ctx, store.Snapshotter)
		require.NoError(t, err)
		assert.True(t, unpacked, "%s is unpacked", img.Name())
	}
	for _, img := range got {
		slices.Sort(img.names)
	}
	assert.Equal(t, want.images, got)

	runs := map[string]string{"hardlinks:1": "one file\none file\n"}
	scripts := map[string]string{"hardlinks:1": "cat /links/a /links/sub/c", "deepest:1": "cat /deep/last; ls /deep"}
	if p.deepest() {
		runs["deepest:1"] = "200\n199\n200\nlast\n"
	}
	for name, output := range runs {
		img, err := store.GetImage(ctx, "localhost/cowtest/"+name)
		require.NoError(t, err)
		result, err := store.Run(ctx, "new", img, scripts[name])
		require.NoError(t, err)
		assert.Equal(t, harness.Result{Output: output}, result)
		require.NoError(t, store.RemoveContainer(ctx, "new"))
	}

	for id, name := range want.names {
		info, err := store.Snapshots().Stat(ctx, id)
		require.NoError(t, err, name)
		assert.Equal(t, name, info.Labels["cowshed.dev/migrate.name"])
		require.NoError(t, store.SnapshotTree(ctx, id, func(dir string) error {
			now, err := treecmp.Read(dir, options)
			require.NoError(t, err)
			if tree, ok := want.containers[id]; ok {
				assert.Empty(t, tree.Diff(now, options), "files of %s, before and after", name)
			}
			return nil
		}))
	}
}

// requireNothing checks that containerd has nothing in the namespace.
func requireNothing(t *testing.T, ctx context.Context, store *harness.Store) {
	t.Helper()
	ctx = store.Context(ctx)
	images, err := store.ListImages(ctx)
	require.NoError(t, err)
	assert.Empty(t, images)
	require.NoError(t, store.CollectGarbage(ctx))
	keys, err := store.Keys(ctx)
	require.NoError(t, err)
	assert.Empty(t, keys)
}

// requireNoBlobs checks that containerd has no blob in the namespace. A Docker Engine that has committed a container holds one.
func requireNoBlobs(t *testing.T, ctx context.Context, store *harness.Store) {
	t.Helper()
	ctx = store.Context(ctx)
	require.NoError(t, store.ContentStore().Walk(ctx, func(info content.Info) error {
		assert.Fail(t, "a blob is left", "%s %v", info.Digest, info.Labels)
		return nil
	}))
}
