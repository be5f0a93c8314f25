package toplugin

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/dockerroot"
	"github.com/cowshed/cowshed/migrate/internal/fulldisk"
)

func TestFullFilesystem(t *testing.T) {
	e := newEngine(t, "vfs", testfs.WithSize(fulldisk.Size))
	fulldisk.Test(t, fulldisk.Host{Mountpoint: filepath.Dir(e.root), Migrate: e.migrate, Things: e.things})
}

// things lists layers, and the files of the engine's metadata and containers.
func (e *engine) things() []string {
	e.t.Helper()
	things := e.volumes()
	entries, err := os.ReadDir(filepath.Join(e.root, "image"))
	require.NoError(e.t, err)
	for _, entry := range entries {
		if entry.Name() == ".cowshed-migration" {
			continue // the engine does not see it
		}
		for name := range e.files("image/" + entry.Name()) {
			things = append(things, entry.Name()+"/"+name)
		}
	}
	for _, id := range []string{e.sample.Shop, e.sample.Blog} {
		things = append(things, id+" has driver "+e.driverOf(id))
	}
	slices.Sort(things)
	return things
}

// hooked is a source that calls do when the parts of a tar have been read.
type hooked struct {
	migrate.Source
	do func()
}

func (s hooked) Parts(ctx context.Context, layer string) (io.ReadCloser, error) {
	parts, err := s.Source.Parts(ctx, layer)
	return hookedParts{parts, s.do}, err
}

type hookedParts struct {
	io.ReadCloser
	do func()
}

func (p hookedParts) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	if errors.Is(err, io.EOF) {
		p.do()
	}
	return n, err
}

// TestHalfLayer: no volume is left of a layer whose metadata cannot be completed.
func TestHalfLayer(t *testing.T) {
	e := newEngine(t, "overlay2")
	layers := filepath.Join(e.root, "image/.cowshed-migration", layersDir)
	setFlags := func(flags int) {
		f, err := os.Open(layers)
		require.NoError(t, err)
		require.NoError(t, errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags), f.Close()))
	}
	source, err := dockerroot.Open(t.Context(), dockerroot.Options{Dir: e.root, Driver: "overlay2"})
	require.NoError(t, err)
	defer source.Close()
	const immutable = 0x10
	broken := hooked{source, func() { setFlags(immutable) }}
	target := e.target()
	_, err = migrate.New(broken, target, migrate.Options{Source: e.root, Target: "plugin", State: e.state()}).Run(t.Context(), nil)
	setFlags(0)
	require.NoError(t, target.Close())
	var partial *migrate.PartialError
	require.ErrorAs(t, err, &partial)
	require.ErrorIs(t, partial.Problems[0].Err, unix.EPERM)
	assert.Empty(t, e.volumes())
	require.NoError(t, e.run())
	require.NoError(t, e.undo())
	assert.Empty(t, e.volumes())
}
