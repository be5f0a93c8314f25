package apiserver

import (
	"context"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

// volumeOf is a volume of the store, or of the store of the daemon's volumes. The zero volumeOf is none.
type volumeOf struct {
	name       string
	containers bool
}

// count counts the layers and snapshots of a namespace, in the store and among the forks of containers. Forks that have expired
// are removed first. The bytes are the limits of the layers, and the data of their moments: a former content of a layer is under no
// limit any more. The limit of the layer without does not count.
func (s *Server) count(ctx context.Context, n *namespace, without volumeOf) (there amount, err error) {
	for _, open := range []func() (*layerstore.Store, func(), error){
		func() (*layerstore.Store, func(), error) { return s.opts.Stores.Open(ctx) },
		func() (*layerstore.Store, func(), error) { return s.opts.Stores.OpenContainers(ctx, nil) },
	} {
		store, release, err := open()
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return there, err
		}
		store.Sweep(ctx)
		in, err := countIn(ctx, store, n, without)
		release()
		if err != nil {
			return there, err
		}
		there = there.plus(in)
	}
	return there, nil
}

func countIn(ctx context.Context, s *layerstore.Store, n *namespace, without volumeOf) (there amount, err error) {
	var layers []string
	for v, err := range s.Driver.Backend().Volumes(ctx) {
		if err != nil {
			return there, err
		}
		if live.IsMoment(v.Name) || !n.owns(v.Name) {
			continue
		}
		layers = append(layers, v.Name)
		if without != (volumeOf{v.Name, s.Containers != nil}) {
			there = there.plus(amount{bytes: v.Limit.Bytes})
		}
	}
	snapshots, err := s.Live.CountSnapshots(ctx, layers)
	there.layers = len(layers) + snapshots
	if err != nil || n.Bytes == 0 {
		return there, err
	}
	held, err := s.Live.HeldBytes(ctx, n.owns)
	return there.plus(amount{bytes: held}), err
}
