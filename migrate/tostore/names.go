package tostore

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/syncdir"
	"github.com/cowshed/cowshed/migrate"
)

// names are the names of things in the store. Names that follow from a container's are chosen once, and kept in a file.
// So a run that goes on, and Undo, know the things of the migration.
type names struct {
	file   string
	chosen map[string]string // names of layers by ID; of the file, and those that are chosen since
	chain  map[string]string // names of images' layers by ID, which follow from their chain IDs
	saved  map[string]made   // as the file has them, by key: things that were begun

	log  *os.File // file, once it is written
	size int64    // bytes of its whole lines
}

// made is a line of the file.
type made struct {
	Key  string `json:"key"`
	Name string `json:"name,omitempty"` // in the store
	// Volume tells the volume of a layer from others of that name. "" if it was never complete.
	Volume string `json:"volume,omitempty"`
	// Imported is when the record of an image was made.
	Imported time.Time `json:"imported,omitzero"`
	Gone     bool      `json:"gone,omitempty"`
}

const maxNames = 1 << 30 // bytes

func openNames(state string) (*names, error) {
	n := &names{
		file: filepath.Join(state, "names.json"), chosen: make(map[string]string), chain: make(map[string]string), saved: make(map[string]made),
	}
	f, err := os.Open(n.file)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, err
	}
	err = n.read(bufio.NewReader(io.LimitReader(f, maxNames)))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", n.file, err)
	}
	for key, m := range n.saved {
		if isLayerKey(key) {
			n.chosen[key] = m.Name
		}
	}
	return n, nil
}

// read reads the lines of the file. A crash may have left a part of one at the end.
func (n *names) read(in *bufio.Reader) error {
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var m made
		if err := json.Unmarshal(line, &m); err != nil {
			return fault.New(errdefs.ErrDataLoss, "%w", err)
		}
		if err := cowcommon.CheckID(m.Name); err != nil && !m.Gone {
			return fault.New(errdefs.ErrDataLoss, "layer %s: %w", m.Key, err)
		}
		n.take(m)
		n.size += int64(len(line))
	}
}

func (n *names) take(m made) {
	if m.Gone {
		delete(n.saved, m.Key)
	} else {
		n.saved[m.Key] = m
	}
}

// write writes a line, which survives a power cut.
func (n *names) write(m made) error {
	if err := n.open(); err != nil {
		return err
	}
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := n.log.Write(line); err != nil {
		// On a full filesystem a part of the line may be there. The next write opens the file without it.
		return errors.Join(err, n.close())
	}
	n.size += int64(len(line))
	n.take(m)
	return n.log.Sync()
}

// open opens the file for writing, without the part of a line that a crash may have left.
func (n *names) open() error {
	if n.log != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(n.file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(n.file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(n.size), syncdir.Sync(filepath.Dir(n.file))); err != nil {
		return errors.Join(err, f.Close())
	}
	n.log = f
	return nil
}

func (n *names) close() error {
	if n.log == nil {
		return nil
	}
	err := n.log.Close()
	n.log = nil
	return err
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
	free := func(names ...string) (bool, error) {
		for _, name := range names {
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
			if name, err = n.chooseFor(container, layers, free); err != nil {
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

// chooseFor chooses the name of a container's layer. free says whether names are not taken.
func (n *names) chooseFor(c migrate.Container, layers map[string]*migrate.Layer, free func(names ...string) (bool, error)) (string, error) {
	// A run that was cut off may have made the layer below.
	if layer := layers[c.Layer]; layer != nil {
		if name, ok := strings.CutSuffix(n.chosen[layer.Parent], initSuffix); ok {
			if is, err := free(name); is || err != nil {
				return name, err
			}
		}
	}
	return firstFree(candidates(c), func(name string) (bool, error) {
		if !usable(name) {
			return false, nil
		}
		return free(name, name+initSuffix)
	})
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
	return n.keepAs(made{Key: id, Name: name})
}

// identify writes down which volume it is that is about to get the name of a layer.
func (n *names) identify(id, volume string) error {
	return n.keepAs(made{Key: id, Name: n.chosen[id], Volume: volume})
}

// keepAs writes down a thing, unless it is written down.
func (n *names) keepAs(m made) error {
	if n.saved[m.Key] == m {
		return nil
	}
	return n.write(m)
}

// remove gives up the name of a thing that is gone, or another's. On a full filesystem the file keeps the name: its line
// tells the thing from others of that name, so that nothing else is taken for it.
func (n *names) remove(key string) error {
	delete(n.chosen, key)
	if _, ok := n.saved[key]; !ok {
		return nil
	}
	if err := n.write(made{Key: key, Gone: true}); !fault.IsFull(err) {
		return err
	}
	return nil
}

// dropTaken gives up names that others have taken meanwhile. isOther says whether the volume of a name is another than the
// layer's. Nothing is written.
func (n *names) dropTaken(isOther func(m made) (bool, error)) error {
	for key, m := range n.saved {
		if !isLayerKey(key) {
			continue
		}
		other, err := isOther(m)
		if err != nil {
			return err
		}
		if other {
			delete(n.chosen, key)
		}
	}
	return nil
}

// Keys of containers and of images' names. IDs of layers have no slash.
const (
	containerPrefix = "container/"
	imagePrefix     = "image/"
)

func containerKey(c *migrate.Container) string { return containerPrefix + c.ID }
func imageKey(name string) string              { return imagePrefix + name }
func isLayerKey(key string) bool               { return !strings.Contains(key, "/") }
