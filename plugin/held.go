package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cowshed/cowshed/graphdriver"
)

// heldLayers records the layers that the engine has by Get and has not given back by Put, each in a file. So after a
// restart of the plugin they are mounted at the same path again. On ZFS a layer is at its path only while it is
// mounted, and a running container needs the path for docker exec.
//
// If the plugin was killed before it could answer a Get, the engine does not know that it has the layer, and never
// puts it. So a layer that is had again is never kept from being removed: the engine asks for a removal only when it
// has no use for the layer.
//
// A layer ID-init is not recorded. An engine has it for a moment while it makes the container ID, and never asks for
// its removal if that fails. A record would leave it held for good, out of reach of cowshed rm.
type heldLayers struct {
	dir   string // "" keeps nothing
	mu    sync.Mutex
	again map[string]int // how many Gets of each layer were done again
}

// heldLayer is the content of a layer's file.
type heldLayer struct {
	Gets       int
	MountLabel string
}

// add counts n more Gets, or fewer if n is negative, of a layer that the driver has accepted the id of.
func (h *heldLayers) add(id, mountLabel string, n int) error {
	if h.dir == "" || strings.HasSuffix(id, "-init") {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.change(id, mountLabel, n)
}

// giveUp forgets the Gets of a layer that were done again, and returns how many Puts undo them.
func (h *heldLayers) giveUp(id string) (puts int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if puts = h.again[id]; puts > 0 {
		delete(h.again, id)
		err = h.change(id, "", -puts)
	}
	return puts, err
}

// change is add, with h.mu locked.
func (h *heldLayers) change(id, mountLabel string, n int) error {
	path := filepath.Join(h.dir, id)
	held, err := readHeld(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record that the engine uses layer %s: %w", id, err)
	}
	if held.Gets == 0 {
		held.MountLabel = mountLabel
	}
	held.Gets += n
	if again := min(h.again[id], held.Gets); again > 0 {
		h.again[id] = again
	} else {
		delete(h.again, id)
	}
	if held.Gets > 0 {
		var text []byte
		if text, err = json.Marshal(held); err == nil {
			err = writeFile(path, text, 0o600)
		}
	} else if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("record that the engine uses layer %s: %w", id, err)
	}
	return nil
}

// getAgain makes a driver that was opened again hold the engine's layers. It goes on after an error.
func (h *heldLayers) getAgain(driver graphdriver.Driver) error {
	if h.dir == "" {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	entries, err := os.ReadDir(h.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h.again = make(map[string]int)
	var errs []error
	for _, entry := range entries {
		id := entry.Name()
		if id[0] == '.' { // of a write that did not end
			continue
		}
		held, err := readHeld(filepath.Join(h.dir, id))
		for range held.Gets {
			if err == nil {
				_, err = driver.Get(id, held.MountLabel)
			}
			if err == nil {
				h.again[id]++
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("get layer %s again: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// forget forgets all.
func (h *heldLayers) forget() error {
	if h.dir == "" {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.again)
	return os.RemoveAll(h.dir)
}

func readHeld(path string) (held heldLayer, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return heldLayer{}, err
	}
	if err := json.Unmarshal(text, &held); err != nil {
		return heldLayer{}, fmt.Errorf("read %s: %w", path, err)
	}
	return held, nil
}
