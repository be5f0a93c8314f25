package client_test

import (
	"archive/tar"
	"io"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/client"
)

// namesOf lists the names in a tar, and closes it.
func namesOf(t *testing.T, r io.ReadCloser, err error) (names []string) {
	t.Helper()
	require.NoError(t, err)
	defer r.Close()
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
			return names
		}
		names = append(names, header.Name)
	}
}

// TestServer calls each operation of a real daemon.
func TestServer(t *testing.T) {
	s := serve(t).create("web", "motd", "hello")
	ctx := t.Context()

	info, err := s.Info(ctx)
	require.NoError(t, err)
	assert.Equal(t, api.Info{Version: "test", Admin: true, Namespaces: []api.Namespace{}}, info)
	description, err := s.Description(ctx)
	require.NoError(t, err)
	assert.Equal(t, string(api.OpenAPI), string(description))

	require.NoError(t, s.SetLimit(ctx, "web", "64M"))
	usage, err := s.GetUsage(ctx, "web")
	require.NoError(t, err)
	assert.Equal(t, uint64(64<<20), usage.Limit)
	layers, err := s.ListLayers(ctx)
	require.NoError(t, err)
	require.Len(t, layers, 1)
	assert.Equal(t, "web", layers[0].Name)
	layers, err = s.ListContainerForks(ctx)
	require.NoError(t, err)
	assert.Empty(t, layers)

	before, err := s.TakeSnapshot(ctx, "web", api.NewSnapshot{Name: "before", Message: "a message"})
	require.NoError(t, err)
	assert.Equal(t, "a message", before.Message)
	forks, err := s.Fork(ctx, "web@before", api.NewForks{Name: "try", Count: 2, Labels: map[string]string{"of": "test"}})
	require.NoError(t, err)
	require.Len(t, forks, 2)
	assert.Equal(t, map[string]string{"of": "test"}, forks[1].Labels)

	s.write("try-1", "new", "1")
	changes, err := s.ListChanges(ctx, "try-1", client.CompareOptions{Since: "web@before"})
	require.NoError(t, err)
	assert.Equal(t, []api.Change{{Kind: api.Added, Path: "/new"}}, changes.Changes)
	r, err := s.Diff(ctx, "try-1", client.CompareOptions{}, "")
	assert.Equal(t, []string{"new"}, namesOf(t, r, err))
	r, err = s.Diff(ctx, "try-1", client.CompareOptions{Whole: true}, "none")
	assert.ElementsMatch(t, []string{"motd", "new"}, namesOf(t, r, err))

	merged, err := s.Merge(ctx, "try-1", api.NewMerge{})
	require.NoError(t, err)
	assert.Equal(t, "web", merged.Into)
	assert.Equal(t, "1", s.read("web", "new"))
	s.write("try-2", "new", "2")
	_, err = s.Merge(ctx, "try-2", api.NewMerge{})
	require.ErrorIs(t, err, errdefs.ErrConflict)
	var answered *api.Error
	require.ErrorAs(t, err, &answered)
	assert.Equal(t, []api.Conflict{{Path: "/new", Fork: api.Added, Layer: api.Added}}, answered.Conflicts)
	_, err = s.Merge(ctx, "try-2", api.NewMerge{Strategy: api.Theirs})
	require.NoError(t, err)
	assert.Equal(t, "2", s.read("web", "new"))

	rolledBack, err := s.RollBack(ctx, "web", api.NewRollback{Snapshot: "before"})
	require.NoError(t, err)
	assert.NoFileExists(t, s.path("web", "new"))
	assert.Contains(t, s.snapshots("web"), rolledBack.Name)
	log, err := s.GetLog(ctx, "web")
	require.NoError(t, err)
	assert.NotEmpty(t, log.Moments)

	r, err = s.Send(ctx, "web@before", client.SendOptions{})
	require.NoError(t, err)
	sent, err := io.ReadAll(r)
	require.NoError(t, err)
	assert.NotEmpty(t, sent)
	require.NoError(t, r.Close())
	lines := 0
	image, err := s.Promote(ctx, "web", api.NewImage{To: "app:1"}, func(api.Progress) { lines++ })
	require.NoError(t, err)
	assert.Len(t, image.DiffIDs, 1)
	assert.NotZero(t, lines)
	r, err = s.Export(ctx, "app:1", client.ExportOptions{Name: "app:1"})
	assert.Contains(t, namesOf(t, r, err), "manifest.json")

	require.NoError(t, s.RemoveSnapshot(ctx, "web", "before"))
	require.ErrorIs(t, s.RemoveSnapshot(ctx, "web", "before"), errdefs.ErrNotFound)
	for _, layer := range []string{"web", "try-1", "try-2"} {
		require.NoError(t, s.RemoveLayer(ctx, layer))
	}
	require.ErrorIs(t, s.RemoveLayer(ctx, "web"), errdefs.ErrNotFound)
	require.NoError(t, s.ForceRemoveLayer(ctx, "web"))
}

// TestServerErrors: the kinds of the server's errors arrive, each with its object.
func TestServerErrors(t *testing.T) {
	s := serve(t).create("web", "motd", "hello")
	for name, test := range map[string]struct {
		call func() error
		kind error
	}{
		"no such layer":  {func() error { _, err := s.GetLayer(t.Context(), "none"); return err }, errdefs.ErrNotFound},
		"name is taken":  {func() error { _, err := s.CreateLayer(t.Context(), api.NewLayer{Name: "web"}); return err }, errdefs.ErrAlreadyExists},
		"malformed name": {func() error { _, err := s.GetLayer(t.Context(), "../web?"); return err }, errdefs.ErrInvalidArgument},
		"no fork":        {func() error { _, err := s.Merge(t.Context(), "web", api.NewMerge{}); return err }, errdefs.ErrNotFound},
		"malformed size": {func() error { return s.SetLimit(t.Context(), "web", "much") }, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.call()
			require.ErrorIs(t, err, test.kind)
			var answered *api.Error
			require.ErrorAs(t, err, &answered)
			assert.NotEmpty(t, answered.Message)
		})
	}
}

// TestServerToken: the server takes its own token, and refuses another.
func TestServerToken(t *testing.T) {
	s := serve(t)
	for sent, kind := range map[string]error{token: nil, "fedcba9876543210fedcba9876543210": errdefs.ErrUnauthenticated} {
		c := client.NewClient(s.socket, client.WithToken(sent))
		_, err := c.Info(t.Context())
		require.ErrorIs(t, err, kind)
		c.Close()
	}
}
