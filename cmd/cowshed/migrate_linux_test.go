package main

import (
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/faulttest"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
)

// noUsualRoots keeps roots of this host out of messages.
func noUsualRoots(t *testing.T, dirs ...string) {
	t.Helper()
	before := usualRoots
	usualRoots = dirs
	t.Cleanup(func() { usualRoots = before })
}

// newOldRoot makes a store, and an old root of Docker on the same filesystem.
func newOldRoot(t *testing.T, driver string) (a at, old *testroot.Sample) {
	t.Helper()
	noUsualRoots(t)
	a = newStore(t)
	return a, testroot.NewSample(t, filepath.Join(filepath.Dir(a.root), "docker"), driver)
}

// listing is every name below a directory with its size and time.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b.WriteString(path + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
		return nil
	}))
	return b.String()
}

func TestMigrateToStore(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	before := listing(t, old.Dir)
	migrate := func(args ...string) []string {
		return append([]string{"migrate"}, append(args, "--from", old.Dir, "--to", "store")...)
	}

	out := a.ok(t, migrate("plan")...)
	for _, text := range []string{
		"store " + a.root, "7, 7 reflinked", "docker.io/library/debian:12", "localhost:5000/team/web:latest", "shop", old.Dir + " (docker, overlay2)",
	} {
		assert.Contains(t, out, text)
	}
	var plan plannedInfo
	a.json(t, &plan, migrate("plan")...)
	assert.Len(t, plan.Layers, 7)
	assert.Len(t, plan.Images, 3)
	assert.Len(t, plan.Containers, 2)
	assert.Zero(t, plan.Bytes)
	assert.Empty(t, plan.Problems)
	assert.Empty(t, plan.Refusals)
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))

	r := a.run(t, migrate("undo")...)
	assert.Equal(t, exitNotFound, r.code, r.err)
	r = a.run(t, migrate("finish", "--yes")...)
	assert.Equal(t, exitNotFound, r.code, r.err)
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))

	r = a.run(t, migrate("run")...)
	require.Zero(t, r.code, r.err)
	assert.Equal(t, "moved 7 layers, 3 images, 2 containers\n", r.out)
	assert.Contains(t, r.err, "cowshed migrate finish --from "+old.Dir+" --to store --root="+a.root+"\n")
	assert.Contains(t, a.ok(t, "images"), "localhost:5000/team/web:1")
	assert.Contains(t, a.ok(t, "ls"), "shop")
	a.with(t, "blog", func(dir string) {
		data, err := os.ReadFile(filepath.Join(dir, "usr/app"))
		require.NoError(t, err)
		assert.Equal(t, "changed", string(data))
	})
	assert.Contains(t, a.ok(t, "changes", "shop"), "etc/shop")
	a.json(t, &plan, migrate("plan")...)
	for _, layer := range plan.Layers {
		assert.True(t, layer.There)
	}

	assert.Equal(t, "equal: 12\n", a.ok(t, migrate("verify")...))
	assert.Equal(t, "removed: 12\n", a.ok(t, migrate("undo")...))
	assert.NotContains(t, a.ok(t, "ls"), "shop")
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))
	assert.Equal(t, before, listing(t, old.Dir), "the old root is as it was")

	a.ok(t, migrate("run", "--no-verify")...)
	assert.Equal(t, before, listing(t, old.Dir), "the old root is as it was")
	r = a.run(t, migrate("finish")...)
	assert.Equal(t, exitUsage, r.code)
	assert.Contains(t, r.err, "--yes")
	assert.Equal(t, before, listing(t, old.Dir))
	assert.Contains(t, a.ok(t, migrate("finish", "--yes")...), "removed "+old.Dir)
	assert.NoDirExists(t, filepath.Join(old.Dir, "overlay2"))
	assert.NoDirExists(t, filepath.Join(old.Dir, "image/overlay2"))
	assert.DirExists(t, filepath.Join(old.Dir, "volumes"))
	assert.Contains(t, a.ok(t, "ls"), "shop")
	a.ok(t, "export", "debian:12", "oci:"+t.TempDir()+"/out", "--exact")
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))
	a.ok(t, "doctor")
}

// TestMigrateFinishAsks: on a terminal, finish asks, and removes nothing unless the answer is yes.
func TestMigrateFinishAsks(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	args := []string{"--from", old.Dir, "--to", "store"}
	a.ok(t, append([]string{"migrate", "run"}, args...)...)
	finish := func(answer string) result {
		t.Helper()
		control, terminal := openTerminal(t)
		_, err := control.WriteString(answer)
		require.NoError(t, err)
		asked := a
		asked.stdin = terminal
		r := asked.run(t, append([]string{"migrate", "finish"}, args...)...)
		assert.Contains(t, r.err, old.Dir+" (Docker with driver overlay2) for good. Go on? [y/N] ")
		return r
	}
	for _, answer := range []string{"\n", "no\n", "\x04", "yesterday\n"} { // \x04 is the end of the input
		r := finish(answer)
		assert.Equal(t, exitFailure, r.code, r.err)
		assert.Contains(t, r.err, "nothing was removed")
		require.DirExists(t, filepath.Join(old.Dir, "overlay2"))
	}
	assert.Zero(t, finish("Yes\n").code)
	assert.NoDirExists(t, filepath.Join(old.Dir, "overlay2"))
}

// TestMigrateFinishStopped: a signal ends the question.
func TestMigrateFinishStopped(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	args := []string{"--root", a.root, "migrate", "finish", "--from", old.Dir, "--to", "store"}
	a.ok(t, "migrate", "run", "--from", old.Dir, "--to", "store")
	_, tty := openTerminal(t)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), asProgramEnv+"=1")
	cmd.Stdin = tty
	said, err := cmd.StderrPipe()
	require.NoError(t, err)
	testfs.Start(t, cmd)
	question := make([]byte, len("This removes"))
	_, err = io.ReadFull(said, question)
	require.NoError(t, err)
	require.Equal(t, "This removes", string(question))
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	_, err = io.ReadAll(said)
	require.NoError(t, err)
	var exit *exec.ExitError
	require.ErrorAs(t, testfs.Wait(t, cmd), &exit)
	assert.Equal(t, exitSignal+int(syscall.SIGTERM), exit.ExitCode())
	assert.DirExists(t, filepath.Join(old.Dir, "overlay2"))
}

// TestMigratePartly: a broken image is left out, and the exit code says so.
func TestMigratePartly(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	require.NoError(t, os.WriteFile(filepath.Join(old.Tree(old.App.ID), "etc/app"), []byte("evil"), 0o640))
	args := []string{"--from", old.Dir, "--to", "store"}
	r := a.run(t, append([]string{"migrate", "run"}, args...)...)
	assert.Equal(t, exitPartial, r.code)
	assert.Equal(t, "moved 3 layers, 1 image, 1 container\n", r.out)
	assert.Contains(t, r.err, "localhost:5000/team/web:1")
	assert.Contains(t, r.err, "7 things could not be moved")
	r = a.run(t, append([]string{"migrate", "finish", "--yes"}, args...)...)
	assert.Equal(t, exitPartial, r.code)
	assert.DirExists(t, filepath.Join(old.Dir, "overlay2"))
	a.ok(t, append([]string{"migrate", "finish", "--yes", "--partial"}, args...)...)
	assert.NoDirExists(t, filepath.Join(old.Dir, "overlay2"))
}

// TestMigrateEndsByJournal: undo and finish know the root and its driver, also if it has another one meanwhile, and undo
// needs no root at all.
func TestMigrateEndsByJournal(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	before := a.ok(t, "ls", "--names")
	a.ok(t, "migrate", "run", "--from", old.Dir, "--to", "store", "--no-verify")
	other := testroot.New(t, old.Dir, "vfs")
	other.Image(other.Layer(nil, testroot.Entry{Name: "file", Data: "x"}), "other:1")
	a.ok(t, "migrate", "undo", "--to", "store")
	assert.Equal(t, before, a.ok(t, "ls", "--names"))

	a.ok(t, "migrate", "run", "--from", old.Dir, "--driver", "overlay2", "--to", "store", "--no-verify")
	require.NoError(t, os.Rename(old.Dir, old.Dir+".away"))
	r := a.run(t, "migrate", "finish", "--to", "store", "--yes")
	assert.Equal(t, exitNotFound, r.code, r.err)
	a.ok(t, "migrate", "undo", "--to", "store")
	assert.Equal(t, before, a.ok(t, "ls", "--names"))
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))
	require.NoError(t, os.Rename(old.Dir+".away", old.Dir))

	r = a.run(t, "migrate", "undo", "--to", "store")
	assert.Equal(t, exitUsage, r.code, "without a journal, --from has to say it")
	a.ok(t, "migrate", "run", "--from", old.Dir, "--driver", "overlay2", "--to", "store", "--no-verify")
	a.ok(t, "migrate", "finish", "--to", "store", "--yes")
	assert.NoDirExists(t, filepath.Join(old.Dir, "image/overlay2"))
	assert.DirExists(t, filepath.Join(old.Dir, "image/vfs"))
}

// TestMigrateFinishNewer: a container that ran in the old root after the move keeps finish away.
func TestMigrateFinishNewer(t *testing.T) {
	for _, driver := range []string{"overlay2", "btrfs"} {
		t.Run(driver, func(t *testing.T) {
			a, old := newOldRoot(t, driver)
			args := []string{"--from", old.Dir, "--to", "store"}
			a.ok(t, append([]string{"migrate", "run", "--no-verify"}, args...)...)
			time.Sleep(20 * time.Millisecond)
			path := filepath.Join(old.Tree(old.ShopLayer), "etc/shop")
			require.NoError(t, os.WriteFile(path, []byte("an order"), 0o600))
			for _, flag := range []string{"--yes", "--partial"} {
				r := a.run(t, append([]string{"migrate", "finish", "--yes", flag}, args...)...)
				assert.NotZero(t, r.code)
				assert.Contains(t, r.err, old.ShopLayer)
				assert.FileExists(t, path)
			}
			a.ok(t, append([]string{"migrate", "undo"}, args...)...)
			a.ok(t, append([]string{"migrate", "run", "--no-verify"}, args...)...)
			a.ok(t, append([]string{"migrate", "finish", "--yes"}, args...)...)
			assert.NoFileExists(t, path)
			a.with(t, "shop", func(dir string) {
				data, err := os.ReadFile(filepath.Join(dir, "etc/shop"))
				require.NoError(t, err)
				assert.Equal(t, "an order", string(data))
			})
		})
	}
}

// TestMigrateSaysFlags: the commands that run proposes are complete.
func TestMigrateSaysFlags(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	state := filepath.Join(t.TempDir(), "a state")
	r := a.run(t, "migrate", "run", "--from", old.Dir, "--to", "store", "--driver", "overlay2", "--state", state, "--no-verify")
	require.Zero(t, r.code, r.err)
	assert.Contains(t, r.err, "cowshed migrate undo --from "+old.Dir+" --to store --driver=overlay2 --root="+a.root+" --state='"+state+"'\n")
}

// TestMigrateNamesContainerd: a journal belongs to all that says where things are in containerd.
func TestMigrateNamesContainerd(t *testing.T) {
	f := migrateFlags{address: "/run/c.sock", namespace: "moby", snapshotter: "cowshed"}
	names := map[string]bool{f.containerdName("/var/lib/docker"): true, f.containerdName(""): true, f.containerdName("/srv/docker"): true}
	f.snapshotter = "other"
	names[f.containerdName("")] = true
	assert.Len(t, names, 4)
}

// TestMigrateRefuses: a reason to refuse is said before anything is changed.
func TestMigrateRefuses(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	a.ok(t, "create", "base")
	lock := filepath.Join(old.Dir, "containerd/daemon/io.containerd.metadata.v1.bolt") // of no concern
	require.NoError(t, os.MkdirAll(lock, 0o755))
	// A layer that is mounted is in use.
	lower, merged := old.Tree(old.Base.ID), filepath.Join(old.Dir, "overlay2", old.ShopLayer, "merged")
	require.NoError(t, os.Mkdir(merged, 0o755))
	work := filepath.Join(old.Dir, "overlay2", old.ShopLayer, "work")
	require.NoError(t, unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+old.Tree(old.ShopLayer)+",workdir="+work))
	args := []string{"--from", old.Dir, "--to", "store"}
	for _, what := range []string{"run", "plan"} {
		r := a.run(t, append([]string{"migrate", what}, args...)...)
		assert.Equal(t, exitPrecondition, r.code, r.err)
		faulttest.SaidOnce(t, r.err)
	}
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))
	require.NoError(t, unix.Unmount(merged, 0))
	// A process that has made itself a mount namespace meanwhile may still have the overlay there.
	require.Eventually(t, func() bool {
		return a.run(t, append([]string{"migrate", "run"}, args...)...).code == exitOK
	}, testfs.Patience, 100*time.Millisecond)
	r := a.run(t, append([]string{"migrate", "undo"}, append(args, "--state", filepath.Join(a.root, "elsewhere"))...)...)
	assert.Equal(t, exitNotFound, r.code)
}

// TestMigrateFinds: roots are known by their files, and messages name those that are near.
func TestMigrateFinds(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	other := testroot.New(t, old.Dir, "vfs")
	other.Image(other.Layer(nil, testroot.Entry{Name: "file", Data: "x"}), "other:1")
	empty := t.TempDir()
	podman := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(podman, "storage/overlay-layers"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(podman, "storage/overlay-layers/layers.json"), []byte(`[{"id":"`+strings.Repeat("a", 64)+`"}]`), 0o600))
	docker29 := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(docker29, "containerd/daemon"), 0o755))
	for name, c := range map[string]struct {
		args string
		code int
		text string
	}{
		"no from":       {"plan --to store", exitUsage, "say with --from"},
		"no to":         {"plan --from " + old.Dir + " --driver vfs", exitUsage, "say with --to"},
		"a wrong to":    {"plan --driver vfs --to docker --from " + old.Dir, exitUsage, "store, plugin or containerd"},
		"absent":        {"plan --to store --from /no/such/place", exitNotFound, "there is no directory"},
		"several":       {"plan --to store --from " + old.Dir, exitUsage, "--driver overlay2, or --driver vfs"},
		"no driver":     {"plan --to store --driver btrfs --from " + old.Dir, exitNotFound, "of overlay2, vfs"},
		"a part":        {"plan --to store --from " + old.Dir + "/overlay2", exitNotFound, old.Dir + " is one, of Docker with driver"},
		"above":         {"plan --to store --from " + podman, exitNotFound, podman + "/storage is one, of containers/storage"},
		"nothing":       {"plan --to store --from " + empty, exitNotFound, "has no layers"},
		"docker 29":     {"plan --to store --from " + docker29, exitNotFound, "containerd's"},
		"chosen":        {"plan --to store --driver vfs --from " + old.Dir, exitOK, ""},
		"an odd driver": {"plan --to store --driver ../x --from " + empty, exitNotFound, "has no layers"},
	} {
		t.Run(name, func(t *testing.T) {
			r := a.run(t, append([]string{"migrate"}, strings.Fields(c.args)...)...)
			assert.Equal(t, c.code, r.code)
			assert.Contains(t, r.err, c.text)
			if r.code != exitOK {
				faulttest.SaidOnce(t, r.err)
			}
		})
	}
	noUsualRoots(t, old.Dir, "/no/such/place")
	r := a.run(t, "migrate", "plan", "--to", "store")
	assert.Contains(t, r.err, old.Dir+" (Docker with driver overlay2)")
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))

	bare := at{root: filepath.Join(t.TempDir(), "none")}
	r = bare.run(t, "migrate", "plan", "--to", "store", "--driver", "vfs", "--from", old.Dir)
	assert.Equal(t, exitNotFound, r.code)
	assert.Contains(t, r.err, "cowshed init")
	_, err := os.Stat(bare.root)
	assert.ErrorIs(t, err, fs.ErrNotExist)
}

// TestMigrateToPlugin: Docker's root becomes the plugin's, and back.
func TestMigrateToPlugin(t *testing.T) {
	a, old := newOldRoot(t, "btrfs")
	containers := func() (text string) {
		for _, id := range []string{old.Shop, old.Blog} {
			data, err := os.ReadFile(filepath.Join(old.Dir, "containers", id, "config.v2.json"))
			require.NoError(t, err)
			text += string(data)
		}
		return text
	}
	before := containers()
	args := []string{"--from", old.Dir, "--to", "plugin"}
	migrate := func(what ...string) []string { return append(append([]string{"migrate"}, what...), args...) }
	out := a.ok(t, migrate("plan")...)
	assert.Contains(t, out, "7, 7 cloned")
	assert.NoDirExists(t, filepath.Join(old.Dir, "cowshed"), "a plan changes nothing")

	r := a.run(t, migrate("run")...)
	require.Zero(t, r.code, r.err)
	assert.Equal(t, "moved 7 layers, 3 images, 2 containers\n", r.out)
	assert.Contains(t, r.err, "cowshed setup docker")
	assert.DirExists(t, filepath.Join(old.Dir, "image/cowshed/layerdb/sha256"))
	plugin := at{root: filepath.Join(old.Dir, "cowshed")}
	assert.Contains(t, plugin.ok(t, "ls", "--names"), old.ShopLayer)
	assert.Contains(t, plugin.ok(t, "changes", old.ShopLayer), "etc/shop")
	assert.Equal(t, "equal: 12\n", a.ok(t, migrate("verify")...))
	a.ok(t, migrate("undo")...)
	assert.NoDirExists(t, filepath.Join(old.Dir, "image/cowshed"))
	assert.Equal(t, before, containers())

	a.ok(t, migrate("run")...)
	a.ok(t, migrate("finish", "--yes")...)
	assert.NoDirExists(t, filepath.Join(old.Dir, "image/btrfs"))
	assert.FileExists(t, filepath.Join(old.Dir, "containers", old.Shop, "config.v2.json"))
	assert.Contains(t, plugin.ok(t, "ls", "--names"), old.BlogLayer)

	r = a.run(t, migrate("plan")...)
	assert.Equal(t, exitNotFound, r.code, r.err)
	r = a.run(t, "migrate", "plan", "--from", old.Dir, "--to", "plugin", "--driver", "cowshed")
	assert.Equal(t, exitUnsupported, r.code, r.err)
}

// TestDriverFor: an option that names the place of the volumes chooses the driver, whichever filesystem the engine's root is on.
func TestDriverFor(t *testing.T) {
	dir := testfs.Btrfs(t)
	for option, want := range map[string]string{"": "btrfs", "zfs.fsname=tank/cowshed": "zfs", "ZFS.FSName = tank": "zfs", "zfs.size=1G": "btrfs"} {
		driver, err := driverFor(t.Context(), dir, []string{"btrfs.size=1G", option})
		require.NoError(t, err)
		assert.Equal(t, want, driver, option)
	}
	_, err := driverFor(t.Context(), "/proc", nil)
	assert.ErrorIs(t, err, errdefs.ErrNotImplemented)
}

// TestMigrateKilled kills runs and undos of another process at some moment, again and again. In the end all is there, or
// nothing.
func TestMigrateKilled(t *testing.T) {
	a, old := newOldRoot(t, "overlay2")
	program, err := os.Executable()
	require.NoError(t, err)
	before := a.ok(t, "ls", "--names")
	args := func(what string) []string { return []string{"migrate", what, "--from", old.Dir, "--to", "store"} }
	killed := 0
	for i := range 36 {
		what := "run"
		if i%3 == 2 {
			what = "undo"
		}
		cmd := exec.Command(program, append([]string{"--root", a.root}, args(what)...)...)
		cmd.Env = append(os.Environ(), asProgramEnv+"=1")
		testfs.Start(t, cmd)
		time.Sleep(time.Duration(20+rand.IntN(200)) * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		var exit *exec.ExitError
		if errors.As(testfs.Wait(t, cmd), &exit) && !exit.Exited() {
			killed++
		}
	}
	assert.Greater(t, killed, 5)
	a.ok(t, args("run")...)
	a.ok(t, args("verify")...)
	assert.Contains(t, a.ok(t, "ls", "--names"), "shop")
	a.ok(t, args("undo")...)
	assert.Equal(t, before, a.ok(t, "ls", "--names"))
	assert.NoDirExists(t, filepath.Join(a.root, "migration"))
	left, err := os.ReadDir(filepath.Join(a.root, "images/tarsplit"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

// TestMigrateFinishCutOff: if nothing is left of the root, a finish that was cut off is done when it is called again.
func TestMigrateFinishCutOff(t *testing.T) {
	for _, to := range []string{"store", "plugin"} {
		t.Run(to, func(t *testing.T) {
			driver := map[string]string{"store": "overlay2", "plugin": "btrfs"}[to]
			a, old := newOldRoot(t, driver)
			migrate := func(args ...string) []string {
				return append([]string{"migrate"}, append(args, "--from", old.Dir, "--to", to)...)
			}
			a.ok(t, migrate("run", "--no-verify")...)
			state := filepath.Join(map[string]string{"store": a.root, "plugin": filepath.Join(old.Dir, "cowshed")}[to], "migration")
			journal, err := os.ReadFile(filepath.Join(state, "journal.json"))
			require.NoError(t, err)
			a.ok(t, migrate("finish", "--yes")...)
			assert.NoDirExists(t, state)
			r := a.run(t, migrate("finish", "--yes")...)
			assert.Equal(t, exitNotFound, r.code)

			// The root was removed before the journal tells that it was begun.
			require.NoError(t, os.MkdirAll(state, 0o700))
			require.NoError(t, os.WriteFile(filepath.Join(state, "journal.json"), journal, 0o600))
			r = a.run(t, migrate("finish", "--yes")...)
			assert.Equal(t, exitNotFound, r.code)
			assert.Regexp(t, "has (no )?layers of", r.err)
			assert.FileExists(t, filepath.Join(state, "journal.json"))

			for _, step := range []string{"intent", "done"} {
				require.NoError(t, os.MkdirAll(state, 0o700))
				begun := append(journal[:len(journal):len(journal)], `{"step":"`+step+`","item":{},"phase":"finish"}`+"\n"...)
				require.NoError(t, os.WriteFile(filepath.Join(state, "journal.json"), begun, 0o600))
				assert.Equal(t, "removed "+old.Dir+"\n", a.ok(t, migrate("finish", "--yes")...))
				assert.NoDirExists(t, state)
			}
		})
	}
}
