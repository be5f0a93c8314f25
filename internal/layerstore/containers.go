package layerstore

import (
	"context"
	"time"

	"github.com/cowshed/cowshed/internal/layerref"
)

// engineTimeout is how long an engine may take to say which snapshot a container has.
const engineTimeout = 5 * time.Second

// VolumeOf finds the volume that a reference names, without its snapshot. It asks the engine for the snapshot of a container, and
// volumeOf for the volume of that.
func VolumeOf(ctx context.Context, name string, engines layerref.Resolver, volumeOf func(ctx context.Context, namespace, key string) (string, error)) (string, error) {
	ref, err := layerref.Parse(name)
	if err != nil {
		return "", err
	}
	if ref.Kind == layerref.Fork {
		return ref.Name, CheckFork(ref.Name)
	}
	answer, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	namespace, key, err := engines.Snapshot(answer, ref)
	if err != nil {
		return "", err
	}
	return volumeOf(ctx, namespace, key)
}
