package graphdriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// opened is the driver that New returns for a name in these tests. Selection calls no method of it.
type opened struct {
	Driver
	name, root string
	options    []string
	idMap      user.IdentityMapping
}

func (o *opened) String() string { return o.name }

// registered makes the registry hold exactly the named drivers for the duration of a test; opening one
// of them fails with its error if that is not nil. It returns the list of those that were opened.
func registered(t *testing.T, drivers map[string]error) *[]string {
	t.Helper()
	registry.Lock()
	saved := registry.opens
	registry.opens = make(map[string]OpenFunc)
	registry.Unlock()
	t.Cleanup(func() {
		registry.Lock()
		defer registry.Unlock()
		registry.opens = saved
	})

	tried := new([]string)
	for name, failure := range drivers {
		require.NoError(t, Register(name, func(root string, options []string, idMap user.IdentityMapping) (Driver, error) {
			*tried = append(*tried, name)
			if failure != nil {
				return nil, failure
			}
			return &opened{name: name, root: root, options: options, idMap: idMap}, nil
		}))
	}
	return tried
}

// rootWith makes a root in which each of files exists, with the directories above it. A name that ends
// in a slash is an empty directory.
func rootWith(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range files {
		path := filepath.Join(root, name)
		if name[len(name)-1] == '/' {
			require.NoError(t, os.MkdirAll(path, 0o755))
			continue
		}
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, nil, 0o644))
	}
	return root
}

var errBroken = errors.New("broken")

func wrongFS(name string) error { return fmt.Errorf("%w: root is not on %s", ErrPrerequisites, name) }

func TestNewSelects(t *testing.T) {
	for _, test := range []struct {
		name     string
		drivers  map[string]error
		files    []string
		priority []string
		want     string
		tried    []string
	}{
		{
			name:    "by priority",
			drivers: map[string]error{"btrfs": nil, "zfs": nil, "alpha": nil},
			want:    "btrfs", tried: []string{"btrfs"},
		},
		{
			name:    "next of priority where the first cannot",
			drivers: map[string]error{"btrfs": wrongFS("btrfs"), "zfs": nil, "alpha": nil},
			want:    "zfs", tried: []string{"btrfs", "zfs"},
		},
		{
			name:    "others by name where none of priority can",
			drivers: map[string]error{"btrfs": wrongFS("btrfs"), "zfs": wrongFS("zfs"), "delta": nil, "beta": wrongFS("beta"), "gamma": nil},
			want:    "delta", tried: []string{"btrfs", "zfs", "beta", "delta"},
		},
		{
			name:     "by given priority",
			drivers:  map[string]error{"btrfs": nil, "zfs": nil},
			priority: []string{"absent", "zfs"},
			want:     "zfs", tried: []string{"zfs"},
		},
		{
			name:     "by name with empty priority",
			drivers:  map[string]error{"btrfs": nil, "alpha": nil},
			priority: []string{},
			want:     "alpha", tried: []string{"alpha"},
		},
		{
			name:    "earlier state before priority",
			drivers: map[string]error{"btrfs": nil, "zfs": nil},
			files:   []string{"zfs/graph/"},
			want:    "zfs", tried: []string{"zfs"},
		},
		{
			name:    "earlier state of a driver outside priority",
			drivers: map[string]error{"btrfs": nil, "alpha": nil},
			files:   []string{"alpha/x"},
			want:    "alpha", tried: []string{"alpha"},
		},
		{
			name:    "empty directories are not state",
			drivers: map[string]error{"btrfs": nil, "zfs": nil},
			files:   []string{"zfs/"},
			want:    "btrfs", tried: []string{"btrfs"},
		},
		{
			name:    "one state among empty directories",
			drivers: map[string]error{"btrfs": nil, "zfs": nil},
			files:   []string{"btrfs/", "zfs/x"},
			want:    "zfs", tried: []string{"zfs"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			tried := registered(t, test.drivers)
			d, err := New("", Options{Root: rootWith(t, test.files...), Priority: test.priority, Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			assert.Equal(t, test.want, d.String())
			assert.Equal(t, test.tried, *tried)
		})
	}
}

func TestNewNamed(t *testing.T) {
	tried := registered(t, map[string]error{"btrfs": nil, "zfs": wrongFS("zfs")})
	root := rootWith(t, "btrfs/x", "zfs/x")
	options := Options{
		Root:          root,
		DriverOptions: []string{"btrfs.size=1G"},
		IDMap:         user.IdentityMapping{UIDMaps: []user.IDMap{{ID: 0, ParentID: 100000, Count: 65536}}},
	}

	d, err := New("btrfs", options)
	require.NoError(t, err, "state of other drivers does not matter to a named one")
	assert.Equal(t, &opened{name: "btrfs", root: filepath.Join(root, "btrfs"), options: options.DriverOptions, idMap: options.IDMap}, d)

	_, err = New("zfs", options)
	require.ErrorIs(t, err, ErrPrerequisites)
	assert.True(t, IsDriverNotSupported(err))
	assert.ErrorContains(t, err, "root is not on zfs")
	assert.Equal(t, []string{"btrfs", "zfs"}, *tried, "no other driver is tried in place of a named one")
}

func TestNewUnknownName(t *testing.T) {
	registered(t, map[string]error{"btrfs": nil, "zfs": nil})
	for _, name := range []string{"btfrs", "BTRFS", "overlay2", "../btrfs", "btrfs/"} {
		_, err := New(name, Options{Root: t.TempDir()})
		require.ErrorIs(t, err, ErrNotSupported, name)
		assert.True(t, IsDriverNotSupported(err), name)
		assert.ErrorContains(t, err, "btrfs, zfs", "names the drivers that there are")
	}
}

func TestNewGoneName(t *testing.T) {
	registered(t, map[string]error{"btrfs": nil})
	for name, way := range map[string]string{"aufs": "cowshed migrate", "devicemapper": "docker save", "overlay": "docker save"} {
		_, err := New(name, Options{Root: t.TempDir()})
		require.ErrorIs(t, err, ErrNotSupported, name)
		assert.ErrorContains(t, err, "removed from Docker")
		assert.ErrorContains(t, err, way, "says how to migrate")
	}

	registered(t, map[string]error{"overlay": nil})
	d, err := New("overlay", Options{Root: t.TempDir()})
	require.NoError(t, err, "a program may bring its own")
	assert.Equal(t, "overlay", d.String())
}

// Of several drivers each is given its own options, and each is opened once.
func TestNewOptionsOfEach(t *testing.T) {
	tried := registered(t, map[string]error{"btrfs": wrongFS("btrfs"), "zfs": nil})
	var asked []string
	d, err := New("", Options{
		Root:          t.TempDir(),
		DriverOptions: []string{"a=1"},
		DriverOptionsFor: func(driver string) []string {
			asked = append(asked, driver)
			return []string{driver + ".size=1G"}
		},
		ReadOnly: true,
	})
	require.NoError(t, err)
	assert.Equal(t, []string{"btrfs", "zfs"}, asked)
	assert.Equal(t, asked, *tried)
	assert.Equal(t, []string{"a=1", "zfs.size=1G", "zfs.read_only=true"}, d.(*opened).options)
}

func TestNewAmbiguousState(t *testing.T) {
	tried := registered(t, map[string]error{"btrfs": nil, "zfs": wrongFS("zfs"), "alpha": nil})
	root := rootWith(t, "zfs/x", "btrfs/x", "alpha/")
	_, err := New("", Options{Root: root})

	var ambiguous *AmbiguousError
	require.ErrorAs(t, err, &ambiguous)
	assert.Equal(t, &AmbiguousError{Root: root, Drivers: []string{"btrfs", "zfs"}}, ambiguous)
	assert.ErrorContains(t, err, "btrfs, zfs")
	assert.Empty(t, *tried, "nothing is opened")
	assert.False(t, IsDriverNotSupported(err))
}

func TestNewStateOfUnusableDriver(t *testing.T) {
	tried := registered(t, map[string]error{"btrfs": nil, "zfs": wrongFS("zfs")})
	_, err := New("", Options{Root: rootWith(t, "zfs/x")})
	require.ErrorIs(t, err, ErrPrerequisites)
	assert.ErrorContains(t, err, "holds layers of zfs")
	assert.Equal(t, []string{"zfs"}, *tried, "no other driver is tried")
}

func TestNewUnreadableState(t *testing.T) {
	tried := registered(t, map[string]error{"btrfs": nil, "zfs": nil})
	_, err := New("", Options{Root: rootWith(t, "zfs")}) // a file where a directory should be
	require.Error(t, err)
	assert.ErrorContains(t, err, "zfs")
	assert.Empty(t, *tried)
}

func TestNewStateOfAbsentDriver(t *testing.T) {
	registered(t, map[string]error{"btrfs": nil})
	var log bytes.Buffer
	d, err := New("", Options{
		Root:   rootWith(t, "overlay2/x", "devicemapper/x", "vfs/", "zfs/x", "image/overlay2/x", "fuse-overlayfs"),
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, err)
	assert.Equal(t, "btrfs", d.String())
	assert.Contains(t, log.String(), `drivers="[devicemapper fuse-overlayfs overlay2 zfs]"`)
}

func TestNewNoneFits(t *testing.T) {
	registered(t, map[string]error{
		"btrfs": wrongFS("btrfs"),
		"alpha": fmt.Errorf("%w: read-only", ErrIncompatibleFS),
	})
	_, err := New("", Options{Root: t.TempDir()})
	require.Error(t, err)
	assert.True(t, IsDriverNotSupported(err))
	for _, reason := range []error{ErrPrerequisites, ErrIncompatibleFS, ErrNotSupported} {
		assert.ErrorIs(t, err, reason)
	}
	for _, text := range []string{"btrfs: ", "root is not on btrfs", "alpha: ", "read-only", "zfs: "} {
		assert.ErrorContains(t, err, text)
	}

	registered(t, nil)
	for _, priority := range [][]string{nil, {}} {
		_, err = New("", Options{Root: t.TempDir(), Priority: priority})
		require.ErrorIs(t, err, ErrNotSupported)
	}
}

func TestNewFailureEndsSearch(t *testing.T) {
	tried := registered(t, map[string]error{"btrfs": errBroken, "zfs": nil})
	_, err := New("", Options{Root: t.TempDir()})
	require.ErrorIs(t, err, errBroken)
	assert.False(t, IsDriverNotSupported(err))
	assert.Equal(t, []string{"btrfs"}, *tried)
}

func TestNewAbsentRoot(t *testing.T) {
	registered(t, map[string]error{"btrfs": nil})
	d, err := New("", Options{Root: filepath.Join(t.TempDir(), "not", "yet"), Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	assert.Equal(t, "btrfs", d.String())
}

// TestOpen opens a driver, which gets the context and the logger of Open.
func TestOpen(t *testing.T) {
	registered(t, nil)
	type key struct{}
	require.NoError(t, RegisterOpen("logging", func(ctx context.Context, root string, _ []string, _ user.IdentityMapping, log *slog.Logger) (Driver, error) {
		log.Info("opened", "by", ctx.Value(key{}))
		return &opened{name: "logging", root: root}, context.Cause(ctx)
	}))
	var log bytes.Buffer
	config := Options{Root: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&log, nil))}
	_, err := Open(context.WithValue(t.Context(), key{}, "test"), "logging", config)
	require.NoError(t, err)
	assert.Contains(t, log.String(), "msg=opened by=test")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Open(ctx, "logging", config)
	require.ErrorIs(t, err, context.Canceled)
}
