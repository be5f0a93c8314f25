package fill

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/quota"
)

func open(t *testing.T, dir string, form migrate.Form, volume string) *migrate.Content {
	t.Helper()
	f, err := os.Open(dir)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.Close()) })
	return &migrate.Content{Dir: f, Form: form, Volume: volume}
}

func put(t *testing.T, dir, name, data string) {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(data), 0o640))
}

func run(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// home makes a home on a btrfs, and a directory beside it.
func home(t *testing.T) (backend *btrfs.Backend, mnt, dir string) {
	t.Helper()
	mnt = testfs.Btrfs(t)
	dir = filepath.Join(mnt, "btrfs")
	backend, err := btrfs.Open(t.Context(), dir, btrfs.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, backend.Close()) })
	return backend, mnt, dir
}

// names lists the volumes.
func names(t *testing.T, backend cowcommon.Backend) map[string]cowcommon.Volume {
	t.Helper()
	all := make(map[string]cowcommon.Volume)
	for v, err := range backend.Volumes(t.Context()) {
		require.NoError(t, err)
		all[v.Name] = v
	}
	return all
}

// TestForms makes a layer and one above it in each form.
func TestForms(t *testing.T) {
	for name, c := range map[string]struct {
		form   migrate.Form
		volume bool
		how    migrate.How
	}{
		"subvolumes": {migrate.Whole, true, migrate.Cloned},
		"whole":      {migrate.Whole, false, migrate.Reflinked},
		"fuse":       {migrate.FuseOverlay, false, migrate.Reflinked},
		"aufs":       {migrate.Aufs, false, migrate.Reflinked},
	} {
		t.Run(name, func(t *testing.T) {
			backend, mnt, dir := home(t)
			base, top, whole := filepath.Join(mnt, "base"), filepath.Join(mnt, "top"), filepath.Join(mnt, "whole")
			if c.volume {
				run(t, "btrfs", "subvolume", "create", base)
			} else {
				require.NoError(t, os.Mkdir(base, 0o755))
			}
			put(t, base, "etc/passwd", "root")
			put(t, base, "usr/tool", "tool")
			require.NoError(t, os.Link(filepath.Join(base, "usr/tool"), filepath.Join(base, "usr/link")))
			switch {
			case c.volume:
				run(t, "btrfs", "subvolume", "snapshot", base, top)
			case c.form == migrate.Whole:
				run(t, "cp", "-a", base, top)
			default:
				require.NoError(t, os.Mkdir(top, 0o755))
			}
			run(t, "cp", "-a", base, whole)
			changed := []string{whole}
			if c.form == migrate.Whole {
				changed = append(changed, top)
			}
			for _, d := range changed {
				put(t, d, "etc/hosts", "localhost")
				require.NoError(t, os.Remove(filepath.Join(d, "etc/passwd")))
			}
			if c.form != migrate.Whole {
				put(t, top, "etc/hosts", "localhost")
				put(t, top, "etc/.wh.passwd", "")
			}
			run(t, "touch", "-d", "2020-01-01", filepath.Join(whole, "etc"), filepath.Join(top, "etc"),
				filepath.Join(whole, "etc/hosts"), filepath.Join(top, "etc/hosts"), whole, top)

			volumeOf := func(path string) string {
				if c.volume {
					return path
				}
				return ""
			}
			lower, upper := open(t, base, c.form, volumeOf(base)), open(t, top, c.form, volumeOf(top))
			source := &contents{"lower": lower, "upper": upper}
			forecast := migrate.NewForecast(source, func(ctx context.Context, layer *migrate.Layer, content *migrate.Content, below migrate.Coming) (migrate.How, int64, error) {
				return How(ctx, backend, dir, layer, content, below, "")
			})
			for _, layer := range []migrate.Layer{{ID: "lower", Size: 5}, {ID: "upper", Parent: "lower", Size: 5}} {
				how, n, err := forecast.Next(t.Context(), &layer)
				require.NoError(t, err)
				assert.Equal(t, c.how, how)
				assert.Zero(t, n)
			}
			report, err := Make(t.Context(), backend, lower, Volume{Name: "lower", Partial: "p1"})
			require.NoError(t, err)
			assert.Equal(t, c.how, report.How)
			report, err = Make(t.Context(), backend, upper, Volume{Name: "upper", Parent: "lower", Partial: "p2", Limit: quota.Limit{Bytes: 10 << 20}})
			require.NoError(t, err)
			assert.Equal(t, c.how, report.How)

			all := names(t, backend)
			assert.Len(t, all, 2)
			assert.Equal(t, "lower", all["upper"].Parent)
			assert.Equal(t, uint64(10<<20), all["upper"].Limit.Bytes)
			assert.True(t, all["lower"].Sealed)
			got, err := backend.Mount(t.Context(), "upper", "")
			require.NoError(t, err)
			treecmp.Equal(t, got, whole, treecmp.Options{Roots: true, SkipXattr: func(_, name string) bool { return strings.HasPrefix(name, "trusted.cowshed.") }})
			require.NoError(t, backend.Unmount(t.Context(), "upper"))

			require.NoError(t, Verify(t.Context(), backend, "lower", "", lower))
			require.NoError(t, Verify(t.Context(), backend, "upper", "lower", upper))
			put(t, filepath.Join(dir, "subvolumes/upper"), "usr/tool", "look")
			require.ErrorIs(t, Verify(t.Context(), backend, "upper", "lower", upper), errdefs.ErrDataLoss)
		})
	}
}

// contents is a source of open layers.
type contents map[string]*migrate.Content

func (s contents) Open(_ context.Context, layer string) (*migrate.Content, error) {
	content := *s[layer]
	dir, err := os.Open(path(content.Dir))
	content.Dir = dir
	return &content, err
}

// TestOntoCopy: a volume is not cloned onto a parent that is no clone of its relative, as the plan says. It does not matter
// whether the parent is there already.
func TestOntoCopy(t *testing.T) {
	backend, mnt, dir := home(t)
	layers := []migrate.Layer{{ID: "plain"}, {ID: "above", Parent: "plain"}, {ID: "top", Parent: "above"}, {ID: "stranger"}, {ID: "child", Parent: "stranger"}}
	want := map[string]migrate.How{
		"plain": migrate.Reflinked, "above": migrate.Reflinked, "top": migrate.Reflinked, "stranger": migrate.Cloned, "child": migrate.Reflinked,
	}
	source := contents{}
	for _, layer := range layers {
		path, volume := filepath.Join(mnt, layer.ID), ""
		switch layer.ID {
		case "plain":
			require.NoError(t, os.Mkdir(path, 0o755))
		case "top":
			run(t, "btrfs", "subvolume", "snapshot", filepath.Join(mnt, "above"), path)
			volume = path
		default:
			run(t, "btrfs", "subvolume", "create", path)
			volume = path
		}
		put(t, path, layer.ID, layer.ID)
		source[layer.ID] = open(t, path, migrate.Whole, volume)
	}
	existing := func(parent string, below migrate.Coming) string {
		if below.How == "" {
			return parent
		}
		return ""
	}
	newForecast := func() *migrate.Forecast {
		return migrate.NewForecast(source, func(ctx context.Context, layer *migrate.Layer, content *migrate.Content, below migrate.Coming) (migrate.How, int64, error) {
			return How(ctx, backend, dir, layer, content, below, existing(layer.Parent, below))
		})
	}
	before := newForecast()
	for i := range layers {
		layer := &layers[i]
		how, _, err := before.Next(t.Context(), layer)
		require.NoError(t, err)
		assert.Equal(t, want[layer.ID], how, layer.ID)
	}
	for i := range layers {
		layer := &layers[i]
		how, _, err := newForecast().Next(t.Context(), layer) // the parent is there
		require.NoError(t, err)
		assert.Equal(t, want[layer.ID], how, layer.ID)
		report, err := Make(t.Context(), backend, source[layer.ID], Volume{Name: layer.ID, Parent: layer.Parent, Partial: "p"})
		require.NoError(t, err)
		assert.Equal(t, want[layer.ID], report.How, layer.ID)
	}
}

// TestFailures: whatever fails, no volume is left, and the name is free.
func TestFailures(t *testing.T) {
	backend, mnt, _ := home(t)
	source := filepath.Join(mnt, "source")
	put(t, source, "file", "x")
	content := open(t, source, migrate.Whole, "")
	boom := errors.New("boom")
	_, err := Make(t.Context(), backend, content, Volume{Name: "v", Partial: "p", Complete: func(context.Context, string, migrate.How) error { return boom }})
	require.ErrorIs(t, err, boom)
	assert.Empty(t, names(t, backend))
	_, err = Make(t.Context(), backend, content, Volume{Name: "v", Parent: "absent", Partial: "p"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = Make(t.Context(), backend, open(t, source, "unknown", ""), Volume{Name: "v", Partial: "p"})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Make(ctx, backend, content, Volume{Name: "v", Partial: "p"})
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, names(t, backend))

	_, err = Make(t.Context(), backend, content, Volume{Name: "v", Partial: "p"})
	require.NoError(t, err)
	_, err = Make(t.Context(), backend, content, Volume{Name: "v", Partial: "p"})
	require.ErrorIs(t, err, errdefs.ErrAlreadyExists)
	assert.Len(t, names(t, backend), 1)
}

// TestOtherFilesystem: data that has to be copied is said beforehand, and must have room.
func TestOtherFilesystem(t *testing.T) {
	backend, _, dir := home(t)
	other := testfs.Btrfs(t)
	put(t, other, "layer/file", "four")
	content := open(t, filepath.Join(other, "layer"), migrate.Whole, "")
	for size, want := range map[int64]int64{-1: 4, 1000: 1000} {
		how, n, err := How(t.Context(), backend, dir, &migrate.Layer{Size: size}, content, migrate.Coming{}, "")
		require.NoError(t, err)
		assert.Equal(t, migrate.Copied, how)
		assert.Equal(t, want, n)
	}
	report, err := Make(t.Context(), backend, content, Volume{Name: "v", Partial: "p"})
	require.NoError(t, err)
	assert.Equal(t, Report{How: migrate.Copied, Copied: 4}, report)
}

// TestMovedVolume: the volume that was opened is adopted, whatever has its path now.
func TestMovedVolume(t *testing.T) {
	backend, mnt, dir := home(t)
	source := filepath.Join(mnt, "source")
	run(t, "btrfs", "subvolume", "create", source)
	put(t, source, "file", "right")
	content := open(t, source, migrate.Whole, source)
	require.NoError(t, os.Rename(source, source+"-moved"))
	run(t, "btrfs", "subvolume", "create", source)
	put(t, source, "file", "wrong")
	report, err := Make(t.Context(), backend, content, Volume{Name: "v", Partial: "p"})
	require.NoError(t, err)
	assert.Equal(t, migrate.Cloned, report.How)
	data, err := os.ReadFile(filepath.Join(dir, "subvolumes/v/file"))
	require.NoError(t, err)
	assert.Equal(t, "right", string(data))
}

// TestReflinks: data is shared across subvolumes and mounts of one btrfs, and copied from another.
func TestReflinks(t *testing.T) {
	backend, mnt, dir := home(t)
	run(t, "btrfs", "subvolume", "create", filepath.Join(mnt, "other"))
	put(t, mnt, "other/layer/file", "four")
	put(t, mnt, "layer/file", "four")
	bound, mounted, foreign := t.TempDir(), t.TempDir(), filepath.Join(testfs.Btrfs(t), "layer")
	put(t, foreign, "file", "four")
	run(t, "mount", "--bind", filepath.Join(mnt, "layer"), bound)
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(bound, 0)) })
	found, err := detect.Probe(mnt)
	require.NoError(t, err)
	run(t, "mount", "-t", "btrfs", "-o", "subvol=/other", found.Source, mounted)
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(mounted, 0)) })
	for name, c := range map[string]struct {
		layer string
		want  migrate.How
	}{
		"same subvolume":     {filepath.Join(mnt, "layer"), migrate.Reflinked},
		"other subvolume":    {filepath.Join(mnt, "other/layer"), migrate.Reflinked},
		"bound":              {bound, migrate.Reflinked},
		"mounted subvolume":  {filepath.Join(mounted, "layer"), migrate.Reflinked},
		"another filesystem": {foreign, migrate.Copied},
		"no btrfs":           {t.TempDir(), migrate.Copied},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, c.layer, "file", strings.Repeat("large", 10_000))
			testfs.Sync(t, c.layer)
			content := open(t, c.layer, migrate.Whole, "")
			how, _, err := How(t.Context(), backend, dir, &migrate.Layer{Size: -1}, content, migrate.Coming{}, "")
			require.NoError(t, err)
			assert.Equal(t, c.want, how, "the plan")
			report, err := Make(t.Context(), backend, content, Volume{Name: "v", Partial: "p"})
			require.NoError(t, err)
			assert.Equal(t, c.want, report.How, "the run")
			require.NoError(t, backend.Remove(t.Context(), "v"))
		})
	}
}

// spacious is a Backend whose volumes are elsewhere.
type spacious struct {
	cowcommon.Backend
	free uint64
	err  error
}

func (spacious) Place() string                          { return "tank/layers" }
func (s spacious) Free(context.Context) (uint64, error) { return s.free, s.err }

// TestCheckSpace: the space is that of the volumes, wherever the home is.
func TestCheckSpace(t *testing.T) {
	_, mnt, dir := home(t)
	put(t, mnt, "layer/file", "four")
	layers := contents{"there": nil, "large": open(t, filepath.Join(mnt, "layer"), migrate.Whole, ""), "larger": open(t, filepath.Join(mnt, "layer"), migrate.Whole, "")}
	inv := &migrate.Inventory{Layers: []migrate.Layer{{ID: "there", Size: math.MaxInt64}, {ID: "large", Size: 1 << 50}, {ID: "larger", Size: 1 << 51}}}
	has := func(layer *migrate.Layer) (bool, error) { return layer.ID == "there", nil }
	check := func(hasRoom func(context.Context, uint64) error) error {
		how := func(_ context.Context, layer *migrate.Layer, _ *migrate.Content, _ migrate.Coming) (migrate.How, int64, error) {
			return migrate.Copied, layer.Size, nil
		}
		return CheckSpace(t.Context(), hasRoom, inv, has, migrate.NewForecast(layers, how))
	}
	require.NoError(t, check(HasRoom(spacious{free: 3 << 50}, dir)))
	err := check(HasRoom(spacious{free: 3<<50 - 1}, dir))
	require.ErrorIs(t, err, unix.ENOSPC)
	assert.ErrorContains(t, err, "tank/layers has")
	require.ErrorIs(t, check(HasRoom(spacious{err: errdefs.ErrUnavailable}, dir)), errdefs.ErrUnavailable)
	err = check(HasRoom(nil, filepath.Join(dir, "not/there")))
	require.ErrorIs(t, err, unix.ENOSPC)
	assert.ErrorContains(t, err, dir)
}
