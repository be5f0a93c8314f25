package tocontainerd

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/migrate"
)

// needs says which parts of a layer of an image other things need. The garbage collection of containerd removes the rest
// at the end. So a layer that no image has gets no blob: a container whose image was removed has such layers. A layer that
// no container has either is left out, and Has and Verify have nothing to find of it.
//
// Commit keeps the needs in StateDir: a later process may not get an inventory.
type needs struct{ snapshot, blob bool }

const needsName = "layers.json"

// keptNeeds is the file with the needs: IDs of layers.
type keptNeeds struct{ Unused, WithoutBlob []string }

// needsIn finds the layers of images in an inventory that are not needed as a whole.
func needsIn(inv *migrate.Inventory) map[string]needs {
	parents := make(map[string]string, len(inv.Layers))
	for _, layer := range inv.Layers {
		parents[layer.ID] = layer.Parent
	}
	blob, snapshot := make(map[string]bool), make(map[string]bool)
	need := func(set map[string]bool, layer string) {
		for ; layer != "" && !set[layer]; layer = parents[layer] {
			set[layer] = true
		}
	}
	for _, image := range inv.Images {
		for _, layer := range image.Layers {
			need(blob, layer)
			need(snapshot, layer)
		}
	}
	for _, layer := range inv.Layers {
		if layer.Kind != migrate.ImageLayer {
			need(snapshot, layer.ID)
		}
	}
	list := make(map[string]needs)
	for _, layer := range inv.Layers {
		if layer.Kind == migrate.ImageLayer && !blob[layer.ID] {
			list[layer.ID] = needs{snapshot: snapshot[layer.ID]}
		}
	}
	return list
}

func (t *Target) needsOf(layer string) needs {
	if n, ok := t.needs[layer]; ok {
		return n
	}
	return needs{snapshot: true, blob: true}
}

// keepNeeds writes the needs that Check has noted.
func (t *Target) keepNeeds() error {
	if err := t.recallNeeds(); err != nil {
		return err
	}
	var kept keptNeeds
	for id, n := range t.needs {
		if n.snapshot {
			kept.WithoutBlob = append(kept.WithoutBlob, id)
		} else {
			kept.Unused = append(kept.Unused, id)
		}
	}
	data, err := json.Marshal(kept)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(t.opts.StateDir, 0o700); err != nil {
		return err
	}
	if err := syncdir.Sync(filepath.Dir(t.opts.StateDir)); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(t.opts.StateDir, needsName), data, 0o600)
}

// recallNeeds reads the needs, unless they are known.
func (t *Target) recallNeeds() error {
	if t.needs != nil {
		return nil
	}
	list := make(map[string]needs)
	name := filepath.Join(t.opts.StateDir, needsName)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		t.needs = list
		return nil
	}
	if err != nil {
		return err
	}
	var kept keptNeeds
	if err := json.Unmarshal(data, &kept); err != nil {
		return fault.New(errdefs.ErrDataLoss, "%s: %w", name, err)
	}
	for _, id := range kept.WithoutBlob {
		list[id] = needs{snapshot: true}
	}
	for _, id := range kept.Unused {
		list[id] = needs{}
	}
	t.needs = list
	return nil
}
