package layerstore

import (
	"context"
	"crypto/rand"
	"log/slog"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/testfs"
)

// originStore is a store of the volumes of containers, which are test/NAME.
type originStore struct {
	*Store
	t       *testing.T
	volumes map[string]string // by container
}

func newOriginStore(t *testing.T) *originStore {
	t.Helper()
	s, err := Open(t.Context(), Options{Root: testfs.Btrfs(t), Driver: "btrfs", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Driver.Cleanup()) })
	s.Containers = map[string]string{}
	o := &originStore{Store: s, t: t, volumes: map[string]string{}}
	s.Origins = &Origins{VolumeOf: func(_ context.Context, namespace, key string) (string, error) {
		if volume, ok := o.volumes[key]; ok && namespace == "test" {
			return volume, nil
		}
		return "", errdefs.ErrNotFound
	}}
	for _, image := range []string{"image-x", "image-y"} {
		require.NoError(t, s.Driver.Backend().Create(t.Context(), image, cowcommon.VolumeOptions{}))
		require.NoError(t, cowcommon.SealAsIs(t.Context(), s.Driver.Backend(), image))
	}
	return o
}

// run makes a container from an image. A former container of that name goes.
func (o *originStore) run(container, image string) string {
	o.t.Helper()
	backend := o.Driver.Backend()
	if former, ok := o.volumes[container]; ok {
		require.NoError(o.t, backend.Remove(o.t.Context(), former))
	}
	volume := "s-" + rand.Text() + ".test_2f1_2f" + container
	require.NoError(o.t, backend.Clone(o.t.Context(), volume, image, cowcommon.VolumeOptions{}))
	o.volumes[container] = volume
	return volume
}

func (o *originStore) fork(source, name string) {
	o.t.Helper()
	_, err := o.Fork(o.t.Context(), o.stat(source), ForkOptions{Name: name, Count: 1})
	require.NoError(o.t, err)
}

func (o *originStore) stat(volume string) cowcommon.Volume {
	o.t.Helper()
	v, err := o.Driver.Backend().Stat(o.t.Context(), volume)
	require.NoError(o.t, err)
	return v
}

func (o *originStore) remove(volume string) {
	o.t.Helper()
	require.NoError(o.t, o.Driver.Backend().Remove(o.t.Context(), volume))
}

// foundFor finds the container of a volume, and checks its image, which is that of base.
func (o *originStore) foundFor(volume, base string) (*forkedContainer, error) {
	v := o.stat(volume)
	from, err := o.containerOf(o.t.Context(), v)
	if err != nil {
		return nil, err
	}
	return from, o.checkOrigin(o.t.Context(), v, *from, base)
}

func TestContainerOf(t *testing.T) {
	o := newOriginStore(t)
	x, y := o.run("x", "image-x"), o.run("y", "image-y")
	o.fork(x, "a")
	o.fork("a", "b")
	fork, err := o.Live.ForkedFrom(t.Context(), o.stat("a"))
	require.NoError(t, err)
	for _, volume := range []string{x, "a", "b", fork.Volume} {
		from, err := o.foundFor(volume, "image-x")
		require.NoError(t, err, volume)
		assert.Equal(t, &forkedContainer{
			ref: layerref.Reference{Kind: layerref.Containerd, Namespace: "test", Name: "x"}, volume: x, base: "image-x",
		}, from, volume)
	}

	o.remove("a")
	o.fork(y, "a") // b is a fork of another a
	from, err := o.foundFor("b", "image-x")
	require.NoError(t, err)
	assert.Equal(t, "x", from.ref.Name)
	from, err = o.foundFor("a", "image-y")
	require.NoError(t, err)
	assert.Equal(t, "y", from.ref.Name)

	o.Sweep(t.Context()) // the moment of the former a is gone
	_, err = o.foundFor("b", "image-x")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.ErrorContains(t, err, "cowshed export")
	from, err = o.foundFor("a", "image-y")
	require.NoError(t, err)
	assert.Equal(t, "y", from.ref.Name)
}

// TestContainerOfLoop: by their names, two forks are forks of each other.
func TestContainerOfLoop(t *testing.T) {
	o := newOriginStore(t)
	x := o.run("x", "image-x")
	o.fork(x, "a")
	o.fork("a", "b")
	o.remove("a")
	o.fork("b", "a")
	for _, volume := range []string{"a", "b"} {
		from, err := o.foundFor(volume, "image-x")
		require.NoError(t, err, volume)
		assert.Equal(t, x, from.volume, volume)
	}
	o.Sweep(t.Context())
	for _, volume := range []string{"a", "b"} {
		_, err := o.foundFor(volume, "image-x")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, volume)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := o.containerOf(ctx, o.stat("b"))
	require.ErrorIs(t, err, context.Canceled)
}

// TestContainerMadeAgain: a container is made again with the name of the one from which a layer was forked.
func TestContainerMadeAgain(t *testing.T) {
	o := newOriginStore(t)
	o.fork(o.run("web", "image-x"), "a")
	_, err := o.foundFor("a", "another volume of the image")
	require.NoError(t, err, "it is the same container")
	o.run("web", "image-y")
	_, err = o.foundFor("a", "image-y")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	assert.ErrorContains(t, err, "container web is not the one from which fork:a was forked")
	_, err = o.foundFor("a", "")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	o.run("web", "image-x")
	_, err = o.foundFor("a", "image-x")
	require.NoError(t, err, "the image is the same")
}
