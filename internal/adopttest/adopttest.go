// Package adopttest is the contract of cowcommon.Adopter as tests, for each backend.
package adopttest

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/quota"
)

// Backend is a Backend that adopts volumes.
type Backend interface {
	cowcommon.Complete
	cowcommon.Adopter
}

// Foreign is a place on the filesystem of a home, in which another program keeps volumes.
type Foreign interface {
	// Create makes a volume, of another unless that is "".
	Create(name, from string)
	// Mounted calls do with the root of a volume.
	Mounted(name string, do func(dir string))
	// Source is the volume as Adopt knows it.
	Source(name string) string
	Destroy(name string)
}

// Limit is that of the volume "c" of AdoptChain.
var Limit = quota.Limit{Bytes: 64 << 20}

func write(t *testing.T, dir, path, content string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644))
}

// AdoptChain makes the foreign volumes 1, 2 and 3, each of the one before, and adopts them as a, b and c.
func AdoptChain(t *testing.T, b Backend, f Foreign) {
	t.Helper()
	f.Create("1", "")
	f.Mounted("1", func(dir string) {
		write(t, dir, "dir/base", "base")
		write(t, dir, "dir/gone", "gone")
	})
	f.Create("2", "1")
	f.Mounted("2", func(dir string) {
		write(t, dir, "dir/two", "two")
		require.NoError(t, os.Remove(dir+"/dir/gone"))
	})
	f.Create("3", "2")
	f.Mounted("3", func(dir string) {
		write(t, dir, "three", "three")
		require.NoError(t, os.Rename(dir+"/dir", dir+"/moved"))
	})
	ctx := t.Context()
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "b", "a", f.Source("2"), cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "c", "b", f.Source("3"), cowcommon.VolumeOptions{Limit: Limit}))
}

// CheckChain checks facts about the volumes of AdoptChain. They know their parents, and are compared natively.
func CheckChain(t *testing.T, b Backend) {
	t.Helper()
	CheckParent(t, b, "a", "")
	CheckParent(t, b, "b", "a")
	CheckParent(t, b, "c", "b")
	for name, sealed := range map[string]bool{"a": true, "b": true, "c": false} {
		v, err := b.Stat(t.Context(), name)
		require.NoError(t, err)
		assert.Equal(t, sealed, v.Sealed, name)
	}
	assert.Equal(t, []string{"C /dir", "D /dir/gone", "A /dir/two"}, Changes(t, b, "b", "a"))
	assert.Equal(t, []string{"D /dir", "A /moved", "A /moved/base", "A /moved/two", "A /three"}, Changes(t, b, "c", "b"))
	assert.Contains(t, Changes(t, b, "c", "a"), "A /three")
	assert.Contains(t, Changes(t, b, "a", "c"), "A /dir/gone", "the other way round")
	v, err := b.Stat(t.Context(), "c")
	require.NoError(t, err)
	assert.Equal(t, Limit, v.Limit)
}

// CheckParent checks the parent of a volume, wherever a Backend tells it.
func CheckParent(t *testing.T, b Backend, name, parent string) {
	t.Helper()
	v, err := b.Stat(t.Context(), name)
	require.NoError(t, err)
	assert.Equal(t, parent, v.Parent, "parent of %s", name)
	for v, err := range b.Volumes(t.Context()) {
		require.NoError(t, err)
		if v.Name == name {
			assert.Equal(t, parent, v.Parent, "parent of %s in the list", name)
		}
	}
}

// Changes compares two volumes by the filesystem's hints and by walking, and returns the changed paths.
func Changes(t *testing.T, b Backend, name, parent string) (paths []string) {
	t.Helper()
	comparer := cowcommon.NewComparer(b, user.IdentityMapping{}, slog.Default())
	native, err := comparer.Compare(t.Context(), name, parent, cowcommon.Auto)
	require.NoError(t, err)
	assert.True(t, native.Native, "%s since %s: %s", name, parent, native.Reason)
	walked, err := comparer.Compare(t.Context(), name, parent, cowcommon.Walk)
	require.NoError(t, err)
	assert.Equal(t, walked.Changes, native.Changes)
	for _, c := range native.Changes {
		paths = append(paths, c.String())
	}
	require.NoError(t, native.Close())
	require.NoError(t, walked.Close())
	return paths
}

// writeRandom writes data that no filesystem compresses.
func writeRandom(path string, size int) error {
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// in calls do with the root of a volume.
func in(t *testing.T, b Backend, name string, do func(dir string)) {
	t.Helper()
	dir, err := b.Mount(t.Context(), name, "")
	require.NoError(t, err)
	do(dir)
	require.NoError(t, b.Unmount(t.Context(), name))
}

// Adopt adopts a chain of foreign volumes, which are then destroyed. open opens the home, until the test ends. skip says which
// extended attributes are the Backend's own.
func Adopt(t *testing.T, f Foreign, open func() Backend, skip func(path, name string) bool) {
	b, ctx := open(), t.Context()
	AdoptChain(t, b, f)
	for name, source := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		in(t, b, name, func(dir string) {
			f.Mounted(source, func(of string) { treecmp.Equal(t, of, dir, treecmp.Options{Roots: true, SkipXattr: skip}) })
		})
	}
	CheckChain(t, b)
	// A later write to the source does not reach the layer, nor one to the layer the source.
	f.Mounted("3", func(dir string) { write(t, dir, "later", "x") })
	in(t, b, "c", func(dir string) {
		assert.NoFileExists(t, dir+"/later")
		write(t, dir, "new", "new")
		f.Mounted("3", func(of string) { assert.NoFileExists(t, of+"/new") })
		require.NoError(t, os.Remove(dir+"/new"))
	})
	for _, name := range []string{"a", "b", "c"} {
		require.NoError(t, cowcommon.CheckSettle(ctx, b, name))
		require.NoError(t, cowcommon.Settle(ctx, b, name))
	}
	for _, source := range []string{"3", "2", "1"} {
		f.Destroy(source)
	}
	CheckChain(t, b)
	in(t, b, "c", func(dir string) {
		require.NoError(t, writeRandom(dir+"/fits", 50<<20))
		require.ErrorIs(t, writeRandom(dir+"/too-much", 20<<20), syscall.EDQUOT)
		require.NoError(t, os.Remove(dir+"/too-much"))
		require.NoError(t, os.Remove(dir+"/fits"))
	})

	// A clone has the record of its source, which is not its own.
	require.NoError(t, b.Clone(ctx, "d", "c", cowcommon.VolumeOptions{}))
	in(t, b, "d", func(dir string) { write(t, dir, "four", "four") })
	CheckParent(t, b, "d", "c")
	assert.Equal(t, []string{"A /four"}, Changes(t, b, "d", "c"))
	Changes(t, b, "d", "a")
	require.NoError(t, b.Rename(ctx, "b", "renamed"))
	CheckParent(t, b, "c", "renamed")
	require.NoError(t, b.Remove(ctx, "c"))
	CheckParent(t, b, "d", "")
	require.NoError(t, b.Close())
	b = open()
	CheckParent(t, b, "renamed", "a")
	for _, name := range []string{"d", "renamed", "a"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	for v, err := range b.Volumes(ctx) {
		require.NoError(t, err)
		assert.Fail(t, "a volume is left", v.Name)
	}
}

// Refusal is an Adopt that fails.
type Refusal struct {
	Name, Parent, Source string
	Limit                quota.Limit
	Want                 error
}

// AdoptNot checks the refusals that every Backend has, and more. unchanged checks that the home has the volumes "parent" and
// "there", and no remains.
func AdoptNot(t *testing.T, b Backend, f Foreign, nothing string, more map[string]Refusal, unchanged func(t *testing.T)) {
	ctx := t.Context()
	f.Create("origin", "")
	f.Create("good", "origin")
	f.Create("stranger", "")
	require.NoError(t, b.Create(ctx, "there", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "parent", "", f.Source("origin"), cowcommon.VolumeOptions{}))
	refusals := map[string]Refusal{
		"nothing":              {Name: "new", Source: nothing, Want: syscall.ENOENT},
		"a name that is there": {Name: "there", Source: f.Source("good"), Want: errdefs.ErrAlreadyExists},
		"a wrong name":         {Name: "../x", Source: f.Source("good"), Want: errdefs.ErrInvalidArgument},
		"a wrong parent":       {Name: "new", Parent: "../x", Source: f.Source("good"), Want: errdefs.ErrInvalidArgument},
		"another origin":       {Name: "new", Parent: "parent", Source: f.Source("stranger"), Want: errdefs.ErrNotImplemented},
		"no such parent":       {Name: "new", Parent: "none", Source: f.Source("good"), Want: errdefs.ErrNotFound},
	}
	maps.Copy(refusals, more)
	for name, r := range refusals {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, b.Adopt(ctx, r.Name, r.Parent, r.Source, cowcommon.VolumeOptions{Limit: r.Limit}), r.Want)
			if r.Name == "new" && r.Limit.Bytes == 0 {
				require.ErrorIs(t, b.CheckAdopt(ctx, r.Parent, r.Source, ""), r.Want)
			}
			v, err := b.Stat(ctx, "parent")
			require.NoError(t, err)
			assert.False(t, v.Sealed)
			unchanged(t)
		})
	}
	readOnly := cowcommon.ReadOnly(b, syscall.EROFS)
	require.ErrorIs(t, cowcommon.Adopt(ctx, readOnly, "new", "", f.Source("good"), cowcommon.VolumeOptions{}), cowcommon.ErrReadOnly)
	require.ErrorIs(t, cowcommon.CheckAdopt(ctx, readOnly, "", f.Source("good"), ""), cowcommon.ErrReadOnly)

	require.NoError(t, b.CheckAdopt(ctx, "parent", f.Source("good"), ""))
	require.NoError(t, b.CheckAdopt(ctx, "", f.Source("good"), f.Source("origin")))
	require.ErrorIs(t, b.CheckAdopt(ctx, "", f.Source("stranger"), f.Source("origin")), errdefs.ErrNotImplemented)
	unchanged(t)
	// A parent in use is not sealed, as by Clone.
	in(t, b, "parent", func(string) {
		require.NoError(t, b.Adopt(ctx, "new", "parent", f.Source("good"), cowcommon.VolumeOptions{}))
		v, err := b.Stat(ctx, "parent")
		require.NoError(t, err)
		assert.False(t, v.Sealed)
		CheckParent(t, b, "new", "parent")
	})
}
