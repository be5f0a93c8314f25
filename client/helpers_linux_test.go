package client_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/api"
	_ "github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/client"
	"github.com/cowshed/cowshed/internal/daemon"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// served is a daemon with a store on a btrfs, and a Client of its API.
type served struct {
	*client.Client
	t      *testing.T
	socket string
}

// token is a token of the API.
const token = "0123456789abcdef0123456789abcdef"

// serve runs a daemon until the test ends.
func serve(t *testing.T) served {
	t.Helper()
	root := filepath.Join(testfs.Btrfs(t), "root")
	store, err := layerstore.Open(t.Context(), layerstore.Options{Root: root, Driver: "btrfs", Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NoError(t, store.Driver.Cleanup())
	// The path of a socket must be short.
	state, err := os.MkdirTemp("", "cowshed-client-")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(state)) })
	c := daemon.Default()
	c.Root, c.State, c.Metrics, c.DockerPlugin = root, state, "", ""
	c.Address, c.ContainerdAddress = filepath.Join(state, "cowshed.sock"), filepath.Join(state, "containerd.sock")
	c.DockerSocket, c.DockerSpecDir = "", filepath.Join(state, "specs")
	c.API, c.APITokenFile = filepath.Join(state, "api.sock"), filepath.Join(state, "token")
	require.NoError(t, os.WriteFile(c.APITokenFile, []byte(token), 0o600))

	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- daemon.Run(ctx, c, daemon.Options{
			Version: "test", Logger: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
		})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, testfs.Result(ended))
	})
	testfs.Begun(t, ready, ended)
	s := served{client.NewClient(c.API), t, c.API}
	t.Cleanup(s.Close)
	return s
}

// create makes an empty layer with one file.
func (s served) create(layer, name, data string) served {
	s.t.Helper()
	_, err := s.CreateLayer(s.t.Context(), api.NewLayer{Name: layer})
	require.NoError(s.t, err)
	s.write(layer, name, data)
	return s
}

// path is the path of a file of a layer.
func (s served) path(layer, name string) string {
	s.t.Helper()
	l, err := s.GetLayer(s.t.Context(), layer)
	require.NoError(s.t, err)
	require.NotEmpty(s.t, l.Details["Path"])
	return filepath.Join(l.Details["Path"], name)
}

func (s served) write(layer, name, data string) {
	s.t.Helper()
	require.NoError(s.t, os.WriteFile(s.path(layer, name), []byte(data), 0o644))
}

func (s served) read(layer, name string) string {
	s.t.Helper()
	data, err := os.ReadFile(s.path(layer, name))
	require.NoError(s.t, err)
	return string(data)
}

// snapshots lists the names of a layer's snapshots.
func (s served) snapshots(layer string) []string {
	s.t.Helper()
	snapshots, err := s.ListSnapshots(s.t.Context(), layer)
	require.NoError(s.t, err)
	names := make([]string, 0, len(snapshots))
	for _, snapshot := range snapshots {
		names = append(names, snapshot.Name)
	}
	return names
}
