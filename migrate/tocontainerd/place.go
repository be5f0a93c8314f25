package tocontainerd

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
)

// place says where a layer goes.
type place struct {
	name      string // of the snapshot
	container string // the ID of the container whose layer it is, "" for a layer of an image
}

// docker is the Program of an Inventory with containers that Docker can start.
const docker = "docker"

// checkOwner returns errdefs.ErrNotImplemented for a layer of a container that only its own program can start, if it is to be
// Docker's.
func (t *Target) checkOwner(p place) error {
	if p.container == "" || !t.moby() || !t.others {
		return nil
	}
	return fault.New(errdefs.ErrNotImplemented, "Docker cannot start containers of other programs, or from before Docker 0.7: "+
		"in another --namespace, such as default, their files become snapshots")
}

// initSuffix is Docker's addition to the ID of a container, for the snapshot of the init layer.
const initSuffix = "-init"

// Parts of the keys of snapshots until they are committed. Docker has the same for an init layer. Cowshed sees from the
// other that a layer is unpacked.
const (
	keySuffix      = "-key"
	layerKeyPrefix = "migrate-"
)

// containerID is the form of an ID that can be a key and the name of a directory. Docker's have 64 digits.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// learn notes how the layers and containers of an inventory belong together.
func (t *Target) learn(inv *migrate.Inventory) {
	t.needs = needsIn(inv)
	t.others = inv.Program != docker
	layers := make(map[string]*migrate.Layer, len(inv.Layers))
	t.places = make(map[string]place, len(inv.Layers))
	for i := range inv.Layers {
		layer := &inv.Layers[i]
		layers[layer.ID] = layer
		if layer.Kind == migrate.ImageLayer {
			t.places[layer.ID] = place{name: layer.ChainID.String()}
		}
	}
	for _, c := range inv.Containers {
		t.places[c.Layer] = place{c.ID, c.ID}
		if own := layers[c.Layer]; own != nil {
			if below := layers[own.Parent]; below != nil && below.Kind == migrate.InitLayer {
				t.places[below.ID] = place{c.ID + initSuffix, c.ID}
			}
		}
	}
}

// placeOf returns where a layer goes, or where it is. Returns errdefs.ErrNotFound if it is nowhere, and no inventory has
// told its place.
func (t *Target) placeOf(ctx context.Context, id string) (place, error) {
	if p, ok := t.places[id]; ok {
		return p, nil
	}
	if t.made == nil {
		var err error
		if t.made, err = t.listMade(ctx); err != nil {
			return place{}, err
		}
	}
	if p, ok := t.made[id]; ok {
		return p, nil
	}
	return place{}, fault.New(errdefs.ErrNotFound, "no snapshot was made of layer %q", id)
}

// listMade finds the places of layers by their snapshots. To containerd that is one request for each snapshot.
func (t *Target) listMade(ctx context.Context) (map[string]place, error) {
	made := make(map[string]place)
	err := t.snapshots.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		id, name := info.Labels[LayerLabel], info.Name
		if isTemporary(info) {
			name = strings.TrimSuffix(name, keySuffix)
		}
		if id != "" && !strings.HasPrefix(name, layerKeyPrefix) {
			made[id] = place{name, strings.TrimSuffix(name, initSuffix)}
		}
		return nil
	}, fmt.Sprintf("labels.%q", LayerLabel))
	return made, err
}

// isTemporary reports whether a snapshot is to be committed under another name when it is whole.
func isTemporary(info snapshots.Info) bool {
	return info.Kind == snapshots.KindActive && info.Labels[FillingLabel] == untilCommit
}

// find describes the snapshot of a layer. Returns errdefs.ErrNotFound if there is none.
func (t *Target) find(ctx context.Context, layer *migrate.Layer) (snapshots.Info, error) {
	if layer.Kind == migrate.ImageLayer {
		return t.snapshots.Stat(ctx, layer.ChainID.String())
	}
	p, err := t.placeOf(ctx, layer.ID)
	if err != nil {
		return snapshots.Info{}, err
	}
	info, err := t.snapshots.Stat(ctx, p.name)
	if err == nil && info.Labels[LayerLabel] != layer.ID {
		err = fault.New(errdefs.ErrNotFound, "snapshot %s was made of another layer", p.name)
	}
	return info, err
}

// keyOf is the key of the snapshot of a layer until it is committed.
func keyOf(layer *migrate.Layer, name string) string {
	if layer.Kind == migrate.ImageLayer {
		return layerKeyPrefix + name
	}
	return name + keySuffix
}
