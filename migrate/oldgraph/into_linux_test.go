package oldgraph

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// plainDriver keeps whole trees in ordinary directories.
type plainDriver struct {
	graphdriver.ProtoDriver
	root string
	// fail is called before each change.
	fail func(method string) error
}

func newPlain(t testing.TB, root string) (graphdriver.Driver, *plainDriver) {
	require.NoError(t, os.MkdirAll(root, 0o755))
	d := &plainDriver{root: root, fail: func(string) error { return nil }}
	return graphdriver.NewNaiveDiffDriver(d, user.IdentityMapping{}), d
}

func (d *plainDriver) String() string      { return "plain" }
func (d *plainDriver) at(id string) string { return filepath.Join(d.root, id) }
func (d *plainDriver) Put(string) error    { return d.fail("Put") }
func (d *plainDriver) Cleanup() error      { return nil }
func (d *plainDriver) Status() [][2]string { return nil }
func (d *plainDriver) Remove(id string) error {
	return errors.Join(d.fail("Remove"), os.RemoveAll(d.at(id)))
}

func (d *plainDriver) Exists(id string) bool {
	_, err := os.Lstat(d.at(id))
	return err == nil
}

func (d *plainDriver) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return d.Create(id, parent, opts)
}

func (d *plainDriver) Create(id, parent string, _ *graphdriver.CreateOpts) error {
	if err := d.fail("Create"); err != nil {
		return err
	}
	if d.Exists(id) {
		return errdefs.ErrAlreadyExists
	}
	if parent == "" {
		return os.Mkdir(d.at(id), 0o755)
	}
	if !d.Exists(parent) {
		return errdefs.ErrNotFound
	}
	out, err := exec.Command("cp", "-a", d.at(parent), d.at(id)).CombinedOutput()
	return fault.Wrap(string(out), "", err)
}

func (d *plainDriver) Get(id, _ string) (string, error) {
	if !d.Exists(id) {
		return "", errdefs.ErrNotFound
	}
	return d.at(id), d.fail("Get")
}

func newBtrfs(t testing.TB, root string) graphdriver.Driver {
	d, err := graphdriver.New("btrfs", graphdriver.Options{Root: root})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Cleanup()) })
	return d
}

// target is a driver beside a sample of an old root, on one filesystem.
type target struct {
	t       testing.TB
	root    *oldRoot
	driver  graphdriver.Driver
	options IntoOptions
}

func setUpInit(path string) error {
	return os.WriteFile(filepath.Join(path, "init"), []byte("made"), 0o644)
}

var targets = map[string]func(t testing.TB, dir string) *target{
	"plain": func(t testing.TB, dir string) *target {
		driver, _ := newPlain(t, filepath.Join(dir, "driver"))
		return &target{t: t, driver: driver, options: IntoOptions{SetupInit: setUpInit}}
	},
	"btrfs": func(t testing.TB, dir string) *target {
		return &target{t: t, driver: newBtrfs(t, filepath.Join(dir, "driver")), options: IntoOptions{SetupInit: setUpInit}}
	},
}

// eachTarget runs a test with each driver, on a btrfs.
func eachTarget(t *testing.T, test func(t *testing.T, to *target)) {
	testfs.Root(t)
	mnt := testfs.Btrfs(t)
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp(mnt, "")
			require.NoError(t, err)
			to := targets[name](t, dir)
			to.root = newRoot(t, filepath.Join(dir, "docker"))
			to.root.sample()
			test(t, to)
		})
	}
}

func (to *target) into() error {
	return Into(context.Background(), to.driver, to.root.dir, to.options)
}

// assertMoved asserts that the driver has the trees, and the old root only records.
func (to *target) assertMoved(t testing.TB) {
	for layer, tree := range trees() {
		dir, err := to.driver.Get(layer, "")
		require.NoError(t, err, layer)
		assert.Equal(t, tree, readTree(t, dir), layer)
		require.NoError(t, to.driver.Put(layer))
	}
	assert.True(t, to.driver.Exists(id("running")+"-init"))
	assert.False(t, to.driver.Exists(statesID))
	for _, name := range []string{"a", "b", "c", "d"} {
		assert.NoDirExists(t, to.root.path("graph/"+id(name)+"/layer"))
		assert.FileExists(t, to.root.path("graph/"+id(name)+"/json"))
	}
	assert.NoDirExists(t, to.root.path("containers/"+id("running")+"/rw"))
	assert.FileExists(t, to.root.path("containers/"+id("running")+"/config.json"))
	assert.NoFileExists(t, to.root.path("repositories"))
	assert.FileExists(t, to.root.path("repositories-"+to.driver.String()))
}

func TestInto(t *testing.T) {
	eachTarget(t, func(t *testing.T, to *target) {
		var before, after unix.Stat_t
		require.NoError(t, unix.Lstat(to.root.path("graph/"+id("a")+"/layer/etc/group"), &before))
		require.NoError(t, to.into())
		to.assertMoved(t)
		require.NoError(t, to.into(), "again")
		to.assertMoved(t)

		dir, err := to.driver.Get(id("a"), "")
		require.NoError(t, err)
		require.NoError(t, unix.Lstat(filepath.Join(dir, "etc/group"), &after))
		if to.driver.String() == "plain" {
			assert.Equal(t, before.Ino, after.Ino, "the directory is renamed")
		}
		assert.Equal(t, before.Mtim, after.Mtim)
		note := make([]byte, 1)
		_, err = unix.Lgetxattr(filepath.Join(dir, "etc/group"), "user.note", note)
		require.NoError(t, err)
		var passwd, shadow unix.Stat_t
		require.NoError(t, unix.Lstat(filepath.Join(dir, "etc/passwd"), &passwd))
		require.NoError(t, unix.Lstat(filepath.Join(dir, "etc/shadow"), &shadow))
		assert.Equal(t, passwd.Ino, shadow.Ino, "a hard link")
		require.NoError(t, to.driver.Put(id("a")))
	})
}

// TestIntoNothing: there is nothing to move in a root of a later Docker.
func TestIntoNothing(t *testing.T) {
	driver, _ := newPlain(t, filepath.Join(t.TempDir(), "driver"))
	dir := t.TempDir()
	require.NoError(t, Into(context.Background(), driver, dir, IntoOptions{}))
	r := newRoot(t, dir)
	r.write("graph/"+id("a")+"/json", "{}")
	require.NoError(t, Into(context.Background(), driver, dir, IntoOptions{}))
	assert.False(t, driver.Exists(statesID))
	err := Into(context.Background(), driver, filepath.Join(dir, "none"), IntoOptions{})
	assert.ErrorIs(t, err, errdefs.ErrNotFound)
}

var errCrash = errors.New("crash")

// TestIntoCrash: after a crash behind any step, another call moves the rest.
func TestIntoCrash(t *testing.T) {
	for name := range targets {
		t.Run(name, func(t *testing.T) {
			testfs.Root(t)
			mnt := testfs.Btrfs(t)
			steps := map[string]bool{}
			for stop := 0; ; stop++ {
				dir := filepath.Join(mnt, fmt.Sprint(stop))
				to := targets[name](t, dir)
				to.root = newRoot(t, filepath.Join(dir, "docker"))
				to.root.sample()
				count, crashed := 0, false
				to.options.after = func(step string) error {
					steps[step] = true
					if crashed || count == stop {
						crashed = true
						return errCrash
					}
					count++
					return nil
				}
				err := to.into()
				to.options.after = nil
				if !crashed {
					require.NoError(t, err)
					to.assertMoved(t)
					break
				}
				require.ErrorIs(t, err, errCrash)
				require.NoError(t, to.into(), "after step %d", stop)
				to.assertMoved(t)
			}
			want := []string{"begun", "created", "discarded", "filled", "merged", "renamed names"}
			if name == "plain" {
				want = append(want, "renamed")
			}
			assert.ElementsMatch(t, want, slices.Collect(maps.Keys(steps)))
		})
	}
}

// TestIntoFails: after an error of any call of the driver, another call moves the rest.
func TestIntoFails(t *testing.T) {
	testfs.Root(t)
	for stop := 0; ; stop++ {
		dir := t.TempDir()
		driver, plain := newPlain(t, filepath.Join(dir, "driver"))
		to := &target{t: t, driver: driver, root: newRoot(t, filepath.Join(dir, "docker")), options: IntoOptions{SetupInit: setUpInit}}
		to.root.sample()
		calls := 0
		plain.fail = func(string) error {
			calls++
			if calls == stop+1 {
				return errCrash
			}
			return nil
		}
		err := to.into()
		if calls <= stop {
			require.NoError(t, err)
			break
		}
		require.ErrorIs(t, err, errCrash)
		plain.fail = func(string) error { return nil }
		require.NoError(t, to.into(), "after call %d", stop)
		to.assertMoved(t)
	}
}

// TestIntoMounted: files that are mounted are copied, and removed by a later call.
func TestIntoMounted(t *testing.T) {
	eachTarget(t, func(t *testing.T, to *target) {
		layer := to.root.path("graph/" + id("a") + "/layer")
		require.NoError(t, unix.Mount(layer, layer, "", unix.MS_BIND, ""))
		defer unix.Unmount(layer, unix.MNT_DETACH)
		require.NoError(t, to.into())
		assert.FileExists(t, layer+"/etc/passwd")
		assert.True(t, to.driver.Exists(statesID))
		dir, err := to.driver.Get(id("c"), "")
		require.NoError(t, err)
		assert.Equal(t, trees()[id("c")], readTree(t, dir))
		require.NoError(t, to.driver.Put(id("c")))
		require.NoError(t, to.into(), "again")
		assert.FileExists(t, layer+"/etc/passwd")

		require.NoError(t, unix.Unmount(layer, unix.MNT_DETACH))
		require.NoError(t, to.into())
		to.assertMoved(t)
	})
}

// aufsTarget is a target whose driver keeps the changes of layers in directories.
func aufsTarget(t testing.TB) (*target, *plainDriver) {
	testfs.Root(t)
	dir := t.TempDir()
	driver, plain := newPlain(t, filepath.Join(dir, "driver"))
	to := &target{t: t, driver: &changesDriver{driver, plain}, root: newRoot(t, filepath.Join(dir, "docker")), options: IntoOptions{Changes: plain.at}}
	to.root.sample()
	return to, plain
}

// changesDriver makes a child as an empty directory.
type changesDriver struct {
	graphdriver.Driver
	plain *plainDriver
}

func (d *changesDriver) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	if parent != "" && !d.Exists(parent) {
		return errdefs.ErrNotFound
	}
	return d.plain.Create(id, "", opts)
}

func (d *changesDriver) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return d.Create(id, parent, opts)
}

// TestIntoRelocates: a driver that keeps changes gets the directories themselves, also after a crash behind any step.
func TestIntoRelocates(t *testing.T) {
	for stop := 0; ; stop++ {
		to, plain := aufsTarget(t)
		before := readTree(t, to.root.path("graph/"+id("b")+"/layer"))
		count := 0
		to.options.after = func(string) error {
			if count++; count > stop {
				return errCrash
			}
			return nil
		}
		err := to.into()
		to.options.after = nil
		crashed := count > stop
		if crashed {
			require.ErrorIs(t, err, errCrash)
			require.NoError(t, to.into())
		} else {
			require.NoError(t, err)
		}
		assert.Equal(t, before, readTree(t, plain.at(id("b"))))
		assert.Equal(t, map[string]string{"/dir/.wh.new": "", "/written": "w"}, readTree(t, plain.at(id("running"))))
		assert.NoDirExists(t, to.root.path("graph/"+id("b")+"/layer"))
		assert.False(t, to.driver.Exists(statesID))
		if !crashed {
			break
		}
	}
}

// TestIntoLinks: if the directory is mounted, a symbolic link leads to it, until a later call can rename it.
func TestIntoLinks(t *testing.T) {
	for stop := 0; ; stop++ {
		to, plain := aufsTarget(t)
		layer := to.root.path("graph/" + id("b") + "/layer")
		require.NoError(t, unix.Mount(layer, layer, "", unix.MS_BIND, ""))
		count := 0
		to.options.after = func(string) error {
			if count++; count > stop {
				return errCrash
			}
			return nil
		}
		err := to.into()
		to.options.after = nil
		crashed := count > stop
		if crashed {
			require.ErrorIs(t, err, errCrash)
			require.NoError(t, to.into())
		} else {
			require.NoError(t, err)
		}
		for range 2 {
			leads, err := os.Readlink(plain.at(id("b")))
			require.NoError(t, err)
			assert.Equal(t, layer, leads)
			assert.FileExists(t, plain.at(id("b"))+"/dir/new")
			require.NoError(t, to.into())
		}
		require.NoError(t, unix.Unmount(layer, unix.MNT_DETACH))
		require.NoError(t, to.into())
		info, err := os.Lstat(plain.at(id("b")))
		require.NoError(t, err)
		assert.True(t, info.IsDir())
		assert.FileExists(t, plain.at(id("b"))+"/dir/new")
		assert.NoDirExists(t, layer)
		assert.False(t, to.driver.Exists(statesID))
		if !crashed {
			break
		}
	}
}

// TestIntoHostile: damaged entries are in the error, and the rest is moved. The driver loses nothing.
func TestIntoHostile(t *testing.T) {
	eachTarget(t, func(t *testing.T, to *target) {
		r := to.root
		canary := filepath.Join(filepath.Dir(r.dir), "canary")
		require.NoError(t, os.MkdirAll(canary, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(canary, "secret"), nil, 0o600))
		r.image("e1", "e2", nil)
		r.image("e2", "e1", nil) // a cycle
		r.image("e3", "", nil)
		require.NoError(t, os.RemoveAll(r.path("graph/"+id("e3")+"/layer")))
		require.NoError(t, os.Symlink(canary, r.path("graph/"+id("e3")+"/layer")))
		r.image("e4", "missing", nil)
		r.image("e5", "", nil)
		r.write("graph/"+id("e5")+"/json", `{"id":"../../x"}`)
		r.image("taken", "", map[string]string{"file": "of the old root"})
		r.container("e6", "e1", nil)
		r.container("e7", "a", nil)
		require.NoError(t, os.Remove(r.path("containers/"+id("e7")+"/config.json")))
		require.NoError(t, unix.Mkfifo(r.path("containers/"+id("e7")+"/config.json"), 0o600))

		require.NoError(t, to.driver.Create(id("taken"), "", nil))
		dir, err := to.driver.Get(id("taken"), "")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("of the driver"), 0o600))
		r.write("graph/"+id("taken")+"/graph-"+id("taken"), "begun") // a state is not believed

		err = to.into()
		assert.ErrorIs(t, err, errdefs.ErrAlreadyExists)
		assert.ErrorIs(t, err, errdefs.ErrDataLoss)
		assert.ErrorIs(t, err, errdefs.ErrNotFound)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		for _, name := range []string{"e1", "e2", "e3", "e4", "e5", "e6", "e7", "taken"} {
			assert.ErrorContains(t, err, id(name))
			assert.False(t, name != "taken" && to.driver.Exists(id(name)), name)
		}
		assert.Equal(t, map[string]string{"/file": "of the driver"}, readTree(t, dir))
		require.NoError(t, to.driver.Put(id("taken")))
		assert.FileExists(t, filepath.Join(canary, "secret"))
		to.assertMoved(t)
	})
}

func TestIntoNames(t *testing.T) {
	testfs.Root(t)
	to, _ := aufsTarget(t)
	to.root.write("repositories-plain", "earlier")
	require.ErrorIs(t, to.into(), errdefs.ErrAlreadyExists)
	assert.FileExists(t, to.root.path("repositories"))
	text, err := os.ReadFile(to.root.path("repositories-plain"))
	require.NoError(t, err)
	assert.Equal(t, "earlier", string(text))
	assert.True(t, to.driver.Exists(id("c")), "the rest is moved")
}

func TestIntoOnce(t *testing.T) {
	to, _ := aufsTarget(t)
	to.options.SetupInit = func(string) error {
		err := Into(context.Background(), to.driver, to.root.dir, IntoOptions{})
		require.ErrorIs(t, err, fault.ErrInUse)
		return nil
	}
	require.NoError(t, to.into())
}

func TestIntoCancelled(t *testing.T) {
	eachTarget(t, func(t *testing.T, to *target) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		to.options.after = func(step string) error {
			if strings.HasPrefix(step, "filled") {
				cancel()
			}
			return nil
		}
		require.ErrorIs(t, Into(ctx, to.driver, to.root.dir, to.options), context.Canceled)
		to.options.after = nil
		require.NoError(t, to.into())
		to.assertMoved(t)
	})
}
