// Package layerstore has the operations on layers that the command and the HTTP API offer. Callers find the layers of an operation
// first, with Layer and the methods beside it, and may then check them.
package layerstore

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/containerdapi"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/live"
)

// ImagesDir is the directory below the root for the records of images, next to the drivers' directories.
const ImagesDir = "images"

// Store is an open store of layers.
type Store struct {
	Root     string // absolute
	Driver   *cowdriver.Driver
	Images   *image.Store
	Live     *live.Layers
	Log      *slog.Logger
	ReadOnly bool // nothing can be changed

	// Containers has the volumes of the references to containers that a request names, by these without their snapshots. It is nil
	// for the command's own store, and not for that of the daemon's volumes.
	Containers map[string]string
	// Origins finds the images of Containers.
	Origins *Origins
	// Containerd connects to containerd, for images that are written there. It may be nil.
	Containerd func() (*containerdapi.Services, error)
}

// New returns the store of a driver whose root is the directory root. moments may be nil.
func New(root string, driver *cowdriver.Driver, moments *live.Layers, log *slog.Logger) *Store {
	if moments == nil {
		moments = live.New(driver.Backend(), live.Dir(root, driver.String(), driver.Backend()), log)
	}
	images := image.NewStore(filepath.Join(root, ImagesDir), driver, log).WithBase(moments.Base)
	return &Store{Root: root, Driver: driver, Images: images, Live: moments, Log: log}
}

// Options say how a store is opened.
type Options struct {
	Root          string
	Driver        string // "": the driver that has been at work in the root, or else the driver that fits its filesystem
	DriverOptions []string
	// DriverOptionsFor returns the options of the driver that is found, instead of DriverOptions. It may be nil.
	DriverOptionsFor func(driver string) []string
	ReadOnly         bool
	Log              *slog.Logger
}

// Open opens a store, and makes missing parts of it. The caller calls Driver.Cleanup.
func Open(ctx context.Context, opts Options) (*Store, error) {
	root, err := RealPath(opts.Root)
	if err != nil {
		return nil, err
	}
	driver, err := cowdriver.OpenDriver(ctx, opts.Driver, graphdriver.Options{
		Root: root, DriverOptions: opts.DriverOptions, DriverOptionsFor: opts.DriverOptionsFor, ReadOnly: opts.ReadOnly, Logger: opts.Log,
	})
	if err != nil {
		return nil, err
	}
	s := New(root, driver, nil, opts.Log)
	s.ReadOnly = opts.ReadOnly
	if !s.ReadOnly { // before anybody looks for a layer
		s.Recover(ctx)
	}
	return s, nil
}

// OpenThere opens a store, for reading alone where nothing can be written. The caller calls Driver.Cleanup.
func OpenThere(ctx context.Context, opts Options) (*Store, error) {
	s, err := Open(ctx, opts)
	var cannotWrite *detect.ReadOnlyError
	if !errors.As(err, &cannotWrite) {
		return s, err
	}
	opts.Log.Info("opened for reading alone", "reason", cannotWrite)
	opts.ReadOnly = true
	return Open(ctx, opts)
}

// Recover ends steps that were interrupted, if it can.
func (s *Store) Recover(ctx context.Context) {
	if err := s.Live.Recover(ctx); err != nil {
		s.Log.Warn("interrupted steps are ended later", "error", err)
	}
}

// Home is the driver's own directory.
func (s *Store) Home() string { return filepath.Join(s.Root, s.Driver.String()) }

// RealPath is path as the kernel lists it among the mounts, if it is there.
func RealPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	}
	return path, nil
}

// IsThere reports whether a driver has been at work in a root. driver is its name, "" for any.
func IsThere(root, driver string) (bool, error) {
	names := graphdriver.Drivers()
	if driver != "" {
		names = []string{driver}
	}
	for _, name := range names {
		_, err := os.Stat(filepath.Join(root, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}
