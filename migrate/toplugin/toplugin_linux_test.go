package toplugin

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/testroot"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
)

// engine is a root whose layers are moved to the plugin.
type engine struct {
	t      *testing.T
	sample *testroot.Sample
	root   string
	busy   error
}

func newEngine(t *testing.T, driver string, opts ...testfs.BtrfsOption) *engine {
	t.Helper()
	root := filepath.Join(testfs.Btrfs(t, opts...), "docker")
	return &engine{t: t, sample: testroot.NewSample(t, root, driver), root: root}
}

func (e *engine) home() string  { return filepath.Join(e.root, "cowshed/btrfs") }
func (e *engine) state() string { return filepath.Join(e.root, "cowshed/migration") }

func (e *engine) openDriver(context.Context) (*cowdriver.Driver, error) {
	d, err := btrfs.Init(e.home(), nil, user.IdentityMapping{})
	if err != nil {
		return nil, err
	}
	return d.(*cowdriver.Driver), nil
}

func (e *engine) target() *Target {
	e.t.Helper()
	target, err := New(Options{
		Root: e.root, Plugin: "cowshed", Home: e.home(), Open: e.openDriver, State: migrate.TargetState(e.state()),
		Idle: func(context.Context) error { return e.busy }, SourceRoot: e.root, SourceDriver: e.sample.Driver,
	})
	require.NoError(e.t, err)
	return target
}

func (e *engine) migrate(do func(*migrate.Migration) error) error {
	e.t.Helper()
	source, err := dockerroot.Open(e.t.Context(), dockerroot.Options{Dir: e.root, Driver: e.sample.Driver})
	require.NoError(e.t, err)
	target := e.target()
	err = do(migrate.New(source, target, migrate.Options{Source: e.root, Target: "plugin", State: e.state()}))
	require.NoError(e.t, errors.Join(target.Close(), source.Close()))
	return err
}

func (e *engine) run() error {
	return e.migrate(func(m *migrate.Migration) error { _, err := m.Run(e.t.Context(), nil); return err })
}

func (e *engine) verify() error {
	return e.migrate(func(m *migrate.Migration) error { _, err := m.Verify(e.t.Context(), nil); return err })
}

func (e *engine) undo() error {
	return e.migrate(func(m *migrate.Migration) error { _, err := m.Undo(e.t.Context(), nil); return err })
}

// files are the files below a directory of the root, with their content.
func (e *engine) files(dir string) map[string]string {
	e.t.Helper()
	files := make(map[string]string)
	top := filepath.Join(e.root, dir)
	require.NoError(e.t, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, top+"/")] = string(data)
		return err
	}))
	return files
}

func (e *engine) volumes() []string {
	e.t.Helper()
	d, err := e.openDriver(e.t.Context())
	require.NoError(e.t, err)
	var names []string
	for v, err := range d.Backend().Volumes(e.t.Context()) {
		require.NoError(e.t, err)
		names = append(names, v.Name)
	}
	require.NoError(e.t, d.Cleanup())
	slices.Sort(names)
	return names
}

func (e *engine) driverOf(container string) string {
	e.t.Helper()
	data, err := os.ReadFile(filepath.Join(e.root, "containers", container, configFile))
	require.NoError(e.t, err)
	var c struct{ Driver, Path string }
	require.NoError(e.t, json.Unmarshal(data, &c))
	assert.Equal(e.t, "/bin/true", c.Path)
	return c.Driver
}

// TestMigrate: the engine's metadata are the same as before, under another name.
func TestMigrate(t *testing.T) {
	for _, driver := range []string{"overlay2", "btrfs", "vfs"} {
		t.Run(driver, func(t *testing.T) {
			e := newEngine(t, driver)
			s := e.sample
			old, containers := e.files("image/"+driver), e.files("containers")
			require.NoError(t, e.run())

			got := e.files("image/cowshed")
			for name, text := range old {
				if name == namesFile || strings.HasSuffix(name, partsFile) {
					continue
				}
				assert.Equal(t, text, got[name], name)
			}
			for name := range got {
				if _, ok := old[name]; !ok {
					assert.True(t, strings.HasPrefix(name, byDigest), name)
				}
			}
			assert.Equal(t, s.Base.Diff.String(), got[byDigest+"/"+s.Base.Diff.Encoded()])
			assert.JSONEq(t, old[namesFile], got[namesFile])
			assert.Equal(t, "cowshed", e.driverOf(s.Shop))
			assert.Equal(t, "cowshed", e.driverOf(s.Blog))
			assert.Equal(t, old, e.files("image/"+driver), "the source stays")
			want := []string{s.Base.ID, s.App.ID, s.Bare.ID, s.ShopLayer, s.ShopLayer + "-init", s.BlogLayer, s.BlogLayer + "-init"}
			slices.Sort(want)
			assert.Equal(t, want, e.volumes())
			for layer, file := range map[string]string{s.ShopLayer: "etc/shop", s.BlogLayer: "usr/app", s.Bare.ID: "etc/bare"} {
				assert.FileExists(t, filepath.Join(e.home(), "subvolumes", layer, file))
			}
			assert.NoFileExists(t, filepath.Join(e.home(), "subvolumes", s.ShopLayer, "var/log"))

			// The engine's own reader finds a whole root.
			require.NoError(t, e.verify())
			require.NoError(t, e.run(), "again")
			require.NoError(t, e.undo())
			assert.Equal(t, containers, e.files("containers"))
			assert.Equal(t, old, e.files("image/"+driver))
			assert.NoDirExists(t, filepath.Join(e.root, "image/cowshed"))
			assert.Empty(t, e.volumes())
			assert.NoDirExists(t, e.state())
			entries, err := os.ReadDir(filepath.Join(e.root, "image"))
			require.NoError(t, err)
			assert.Len(t, entries, 1)

			require.NoError(t, e.run())
			require.NoError(t, e.migrate(func(m *migrate.Migration) error { _, err := m.Finish(t.Context(), false); return err }))
			assert.NoDirExists(t, filepath.Join(e.root, driver))
			assert.NoDirExists(t, filepath.Join(e.root, "image", driver))
			assert.Equal(t, got, e.files("image/cowshed"))
			assert.Equal(t, want, e.volumes())
			assert.Equal(t, "cowshed", e.driverOf(s.Shop))
		})
	}
}

// TestRefuses: the place has to be free, and nobody may work on it.
func TestRefuses(t *testing.T) {
	e := newEngine(t, "overlay2")
	e.busy = fault.New(errdefs.ErrFailedPrecondition, "the engine runs")
	require.ErrorIs(t, e.run(), errdefs.ErrFailedPrecondition)
	e.busy = nil
	for _, dir := range []string{"layerdb/sha256/x", "layerdb/mounts/x", "imagedb/content/sha256/x"} {
		path := filepath.Join(e.root, "image/cowshed", dir)
		require.NoError(t, os.MkdirAll(path, 0o700))
		require.ErrorIs(t, e.run(), errdefs.ErrAlreadyExists)
		require.NoError(t, os.Remove(path))
	}
	assert.NoDirExists(t, filepath.Join(e.root, "cowshed"))
	d, err := e.openDriver(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, e.run(), errdefs.ErrFailedPrecondition, "the plugin has its home open")
	require.NoError(t, d.Create("other", "", nil))
	require.NoError(t, d.Cleanup())
	require.ErrorIs(t, e.run(), errdefs.ErrAlreadyExists)
	assert.NoDirExists(t, e.state())
	d, err = e.openDriver(t.Context())
	require.NoError(t, err)
	require.NoError(t, d.Remove("other"))
	require.NoError(t, d.Cleanup())
	require.NoError(t, e.run(), "directories of an engine that has made nothing are no obstacle")
	e.busy = fault.New(errdefs.ErrFailedPrecondition, "the engine runs")
	require.ErrorIs(t, e.undo(), errdefs.ErrFailedPrecondition)
	assert.Equal(t, "cowshed", e.driverOf(e.sample.Shop))

	for _, name := range []string{"", "a/b", ".x", "overlay2", "..", "A"} {
		_, err := New(Options{Plugin: name, SourceDriver: "overlay2"})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
}

// TestUndoKeepsNew: things that the engine has made since are not lost.
func TestUndoKeepsNew(t *testing.T) {
	e := newEngine(t, "overlay2")
	require.NoError(t, e.run())
	volumes := e.volumes()
	for _, dir := range []string{layersDir, imagesDir, mountsDir} {
		path := filepath.Join(e.root, "image/cowshed", dir, digest.FromString("new").Encoded())
		require.NoError(t, os.Mkdir(path, 0o700))
		require.ErrorIs(t, e.undo(), errdefs.ErrFailedPrecondition)
		assert.Equal(t, volumes, e.volumes())
		assert.Equal(t, "cowshed", e.driverOf(e.sample.Shop))
		require.NoError(t, os.Remove(path))
	}
	// A container that was removed meanwhile is no obstacle.
	require.NoError(t, os.RemoveAll(filepath.Join(e.root, "containers", e.sample.Blog)))
	require.NoError(t, e.undo())
	assert.Equal(t, "overlay2", e.driverOf(e.sample.Shop))
	assert.Empty(t, e.volumes())
}

// TestBroken: a damaged image stays away, with all that needs it.
func TestBroken(t *testing.T) {
	e := newEngine(t, "overlay2")
	require.NoError(t, os.WriteFile(filepath.Join(e.sample.Tree(e.sample.App.ID), "etc/app"), []byte("evil"), 0o640))
	var partial *migrate.PartialError
	require.ErrorAs(t, e.run(), &partial)
	assert.Len(t, partial.Problems, 7)
	assert.Equal(t, "cowshed", e.driverOf(e.sample.Shop))
	assert.Equal(t, "overlay2", e.driverOf(e.sample.Blog))
	names := e.files("image/cowshed")[namesFile]
	assert.Contains(t, names, "debian:12")
	assert.NotContains(t, names, "team/web")
	require.NoError(t, e.undo())
	assert.Empty(t, e.volumes())
}

// TestHostileContainer: a link in place of a container's directory leads nothing out of the root.
func TestHostileContainer(t *testing.T) {
	e := newEngine(t, "overlay2")
	outside := filepath.Join(filepath.Dir(e.root), "outside")
	dir := filepath.Join(e.root, "containers", e.sample.Shop)
	require.NoError(t, os.Rename(dir, outside))
	require.NoError(t, os.Symlink(outside, dir))
	before, err := os.ReadFile(filepath.Join(outside, configFile))
	require.NoError(t, err)
	target := e.target()
	defer target.Close()
	require.ErrorIs(t, target.writeConfig(e.sample.Shop, []byte("x"), 0o600), errdefs.ErrInvalidArgument)
	var partial *migrate.PartialError
	require.ErrorAs(t, e.run(), &partial)
	after, err := os.ReadFile(filepath.Join(outside, configFile))
	require.NoError(t, err)
	assert.Equal(t, before, after)
	require.NoError(t, e.undo())
}

// TestHostilePlaces: links in the places that the target writes to are refused.
func TestHostilePlaces(t *testing.T) {
	for _, place := range []string{
		"image/.cowshed-migration", "image/cowshed", "image/cowshed/layerdb", "cowshed", "cowshed/btrfs", "cowshed/migration", "cowshed/migration/target",
		"cowshed/migration/target/layers",
	} {
		t.Run(place, func(t *testing.T) {
			e := &engine{t: t, root: t.TempDir()}
			outside := t.TempDir()
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(e.root, place)), 0o700))
			require.NoError(t, os.Symlink(outside, filepath.Join(e.root, place)))
			_, err := New(Options{
				Root: e.root, Plugin: "cowshed", Home: e.home(), State: migrate.TargetState(e.state()), SourceRoot: e.root, SourceDriver: "overlay2",
			})
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		})
	}
}

// TestCutOffCommit ends Commit and Undo after each of their steps, by hand.
func TestCutOffCommit(t *testing.T) {
	for name, cut := range map[string]func(t *testing.T, e *engine){
		"marked": func(t *testing.T, e *engine) { // before the rename
			require.NoError(t, os.Rename(filepath.Join(e.root, "image/cowshed"), filepath.Join(e.root, "image/.cowshed-migration")))
			e.giveBack(t, e.sample.Shop, e.sample.Blog)
		},
		"renamed":           func(t *testing.T, e *engine) { e.giveBack(t, e.sample.Shop, e.sample.Blog) },
		"half of the given": func(t *testing.T, e *engine) { e.giveBack(t, e.sample.Blog) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, then := range []string{"run", "undo"} {
				e := newEngine(t, "overlay2")
				containers := e.files("containers")
				require.NoError(t, e.run())
				journal := filepath.Join(e.state(), "journal.json")
				data, err := os.ReadFile(journal)
				require.NoError(t, err)
				cutOff := strings.Replace(string(data), `{"step":"done","item":{},"phase":"commit"}`+"\n", "", 1)
				require.NotEqual(t, string(data), cutOff)
				require.NoError(t, os.WriteFile(journal, []byte(cutOff), 0o600))
				cut(t, e)
				if then == "run" {
					require.NoError(t, e.run())
					assert.Equal(t, "cowshed", e.driverOf(e.sample.Shop))
					assert.Equal(t, "cowshed", e.driverOf(e.sample.Blog))
					require.NoError(t, e.verify())
				}
				require.NoError(t, e.undo())
				assert.Equal(t, containers, e.files("containers"))
				assert.Empty(t, e.volumes())
				assert.NoDirExists(t, filepath.Join(e.root, "image/cowshed"))
				assert.NoDirExists(t, filepath.Join(e.root, "image/.cowshed-migration"))
			}
		})
	}
}

// giveBack gives containers their former configuration, as it was before Commit came to them.
func (e *engine) giveBack(t *testing.T, ids ...string) {
	t.Helper()
	for _, id := range ids {
		data, err := os.ReadFile(filepath.Join(migrate.TargetState(e.state()), "containers", id))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(e.root, "containers", id, configFile), data, 0o600))
	}
}

// TestPoisoned: nothing comes under the chain ID of a layer that is not in the layer's tar.
func TestPoisoned(t *testing.T) {
	for _, driver := range []string{"overlay2", "btrfs"} {
		e := newEngine(t, driver)
		require.NoError(t, os.WriteFile(filepath.Join(e.sample.Tree(e.sample.App.ID), "etc/cron"), []byte("x"), 0o640))
		var partial *migrate.PartialError
		require.ErrorAs(t, e.run(), &partial)
		require.ErrorIs(t, partial.Problems[0].Err, errdefs.ErrDataLoss)
		assert.NotContains(t, e.volumes(), e.sample.App.ID)
		assert.Contains(t, e.volumes(), e.sample.Base.ID)
	}
}

// TestConfigOfCommit: undo gives back the configuration that a container had at the commit, not at an earlier run.
func TestConfigOfCommit(t *testing.T) {
	e := newEngine(t, "overlay2")
	require.NoError(t, e.run())
	e.giveBack(t, e.sample.Shop)
	file := filepath.Join(e.root, "containers", e.sample.Shop, configFile)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	changed := strings.Replace(string(data), "/shop", "/renamed", 1)
	require.NotEqual(t, string(data), changed)
	require.NoError(t, os.WriteFile(file, []byte(changed), 0o600))
	target := e.target()
	require.NoError(t, target.Commit(t.Context()))
	require.NoError(t, target.Close())
	assert.Equal(t, "cowshed", e.driverOf(e.sample.Shop))
	require.NoError(t, e.undo())
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, changed, string(after))
}

// TestHalfUndo: after an undo that was cut off, a run says what to do.
func TestHalfUndo(t *testing.T) {
	e := newEngine(t, "overlay2")
	require.NoError(t, e.run())
	target := e.target()
	require.NoError(t, target.Undo(t.Context()))
	require.NoError(t, target.Close())
	err := e.run()
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, "run undo again")
	require.NoError(t, e.undo())
	assert.Empty(t, e.volumes())
	require.NoError(t, e.run())
}

// TestForeignStaging: a directory in the place of the staged metadata is not taken for the migration's.
func TestForeignStaging(t *testing.T) {
	e := newEngine(t, "overlay2")
	foreign := filepath.Join(e.root, "image/.cowshed-migration/layerdb/sha256", strings.Repeat("0", 64))
	require.NoError(t, os.MkdirAll(foreign, 0o700))
	require.ErrorIs(t, e.run(), errdefs.ErrAlreadyExists)
	assert.DirExists(t, foreign)
	assert.NoDirExists(t, e.state())
}

// FuzzConfig: a configuration keeps everything but its driver.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"ID":"a","Driver":"overlay2","State":{"Pid":12345678901234567890},"Config":{"Env":["<&>"]}}`))
	f.Add([]byte(`{"driver":"x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := &config{text: text}
		if json.Unmarshal(text, &c.members) != nil || c.members == nil {
			return
		}
		out, err := c.withDriver("cowshed")
		require.NoError(t, err)
		again := &config{}
		require.NoError(t, json.Unmarshal(out, &again.members))
		require.Equal(t, "cowshed", again.driver())
		require.Len(t, again.members, len(c.members))
	})
}
