package tostore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/migrate"
)

// names are the names of layers in the store. Names that follow from a container's are chosen once, and kept in a file.
// So a run that goes on, and Undo, know the volumes of the migration.
type names struct {
	file   string
	chosen map[string]string // by ID of the layer; of the file, and those that are chosen since
	chain  map[string]string // names of images' layers by ID, which follow from their chain IDs
	saved  map[string]string // as the file has them: those of layers that were begun
}

const maxNames = 64 << 20 // bytes

func openNames(state string) (*names, error) {
	n := &names{
		file: filepath.Join(state, "names.json"), chosen: make(map[string]string), chain: make(map[string]string), saved: make(map[string]string),
	}
	info, err := os.Stat(n.file)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxNames {
		return nil, fault.New(errdefs.ErrDataLoss, "%s has more than %d bytes", n.file, maxNames)
	}
	data, err := os.ReadFile(n.file)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &n.saved); err != nil {
		return nil, fault.New(errdefs.ErrDataLoss, "%s: %w", n.file, err)
	}
	for id, name := range n.saved {
		if err := cowcommon.CheckID(name); err != nil {
			return nil, fault.New(errdefs.ErrDataLoss, "%s: layer %s: %w", n.file, id, err)
		}
	}
	n.chosen = maps.Clone(n.saved)
	if n.chosen == nil {
		n.chosen, n.saved = make(map[string]string), make(map[string]string)
	}
	return n, nil
}

// of is the name of a layer; ok is false if it has none.
func (n *names) of(id string) (name string, ok bool) {
	if name, ok := n.chain[id]; ok {
		return name, true
	}
	name, ok = n.chosen[id]
	return name, ok
}

// note keeps the name of an image's layer for those that are made from it.
func (n *names) note(layer *migrate.Layer) {
	if layer.ChainID != "" {
		n.chain[layer.ID] = layer.ChainID.Encoded()
	}
}

// choose chooses the names of all layers that have none. taken says whether the store has a layer of a name.
func (n *names) choose(inv *migrate.Inventory, taken func(name string) (bool, error)) error {
	used := make(map[string]bool)
	for _, name := range n.chosen {
		used[name] = true
	}
	free := func(name string) (bool, error) {
		if !usable(name) {
			return false, nil
		}
		for _, name := range []string{name, name + initSuffix} {
			if used[name] {
				return false, nil
			}
			if is, err := taken(name); is || err != nil {
				return false, err
			}
		}
		return true, nil
	}
	layers := make(map[string]*migrate.Layer, len(inv.Layers))
	for i := range inv.Layers {
		layer := &inv.Layers[i]
		layers[layer.ID] = layer
		n.note(layer)
	}
	for _, container := range inv.Containers {
		name, ok := n.chosen[container.Layer]
		if !ok {
			var err error
			if name, err = firstFree(candidates(container), free); err != nil {
				return fmt.Errorf("container %s: %w", container.ID, err)
			}
			n.chosen[container.Layer] = name
		}
		used[name], used[name+initSuffix] = true, true
		// The layers below, down to those of the image.
		for layer := layers[container.Layer]; layer != nil; layer = layers[layer.Parent] {
			below := layers[layer.Parent]
			if below == nil || below.ChainID != "" || n.chosen[below.ID] != "" {
				break
			}
			name += initSuffix
			n.chosen[below.ID] = name
			used[name] = true
		}
	}
	return n.chooseOthers(inv, used, taken)
}

const initSuffix = "-init"

// usable reports whether a container's layer can have a name, and the layer below it the name with initSuffix.
func usable(name string) bool {
	return cowcommon.CheckID(name) == nil && cowcommon.CheckID(name+initSuffix) == nil && !image.IsLayerName(name) && !image.IsPartial(name)
}

// chooseOthers gives layers that no container has, and that have no chain ID, their own ID as name.
func (n *names) chooseOthers(inv *migrate.Inventory, used map[string]bool, taken func(name string) (bool, error)) error {
	for i := range inv.Layers {
		layer := &inv.Layers[i]
		if _, ok := n.of(layer.ID); ok {
			continue
		}
		name := layer.ID
		if image.IsLayerName(name) {
			name = "layer-" + name // the names of imported layers are chain IDs
		}
		if cowcommon.CheckID(name) != nil || used[name] {
			continue // a problem of that layer
		}
		if is, err := taken(name); err != nil {
			return err
		} else if is {
			return fault.New(errdefs.ErrAlreadyExists, "the store has a layer %s: rename or remove it", name)
		}
		n.chosen[layer.ID] = name
		used[name] = true
	}
	return nil
}

// candidates are names for the layer of a container, the best first.
func candidates(c migrate.Container) []string {
	id := c.ID
	if len(id) > 12 {
		id = id[:12]
	}
	return []string{c.Name, c.Name + "-" + id, "container-" + id, "container-" + c.ID}
}

func firstFree(names []string, free func(string) (bool, error)) (string, error) {
	for _, name := range names {
		if ok, err := free(name); ok || err != nil {
			return name, err
		}
	}
	return "", fault.New(errdefs.ErrAlreadyExists, "the store has layers %s, %s and so on", names[0], names[1])
}

// keep writes down the name of a layer that is about to be made.
func (n *names) keep(id string) error {
	name, ok := n.chosen[id]
	if !ok {
		return nil
	}
	return n.keepAs(id, name)
}

// keepAs writes down the name of a thing.
func (n *names) keepAs(key, name string) error {
	if n.saved[key] == name {
		return nil
	}
	return n.save(func(kept map[string]string) { kept[key] = name })
}

func (n *names) save(change func(map[string]string)) error {
	kept := maps.Clone(n.saved)
	change(kept)
	data, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(n.file), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(n.file, append(data, '\n'), 0o600); err != nil {
		return err
	}
	n.saved = kept
	return nil
}

// remove gives up the name of a layer that is gone.
func (n *names) remove(id string) error {
	if _, ok := n.saved[id]; !ok {
		return nil
	}
	delete(n.chosen, id)
	return n.save(func(kept map[string]string) { delete(kept, id) })
}
