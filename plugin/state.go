package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/internal/atomicfile"
)

// saveState keeps the arguments of Init.
func (a *Adapter) saveState(request InitRequest) error {
	if a.opts.StateFile == "" {
		return nil
	}
	text, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("keep the engine's Init: %w", err)
	}
	if err := writeFile(a.opts.StateFile, text, 0o600); err != nil {
		return fmt.Errorf("keep the engine's Init: %w", err)
	}
	return nil
}

// loadState is ReadState of the adapter's own file.
func (a *Adapter) loadState() (InitRequest, error) {
	if a.opts.StateFile == "" {
		return InitRequest{}, errNoInit
	}
	return ReadState(a.opts.StateFile)
}

// ReadState returns the arguments of the engine's last Init from a file of AdapterOptions.StateFile. Returns
// errdefs.ErrFailedPrecondition if nothing is kept.
func ReadState(file string) (InitRequest, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return InitRequest{}, errNoInit
	}
	if err != nil {
		return InitRequest{}, fmt.Errorf("read the engine's last Init: %w", err)
	}
	var request InitRequest
	if err := json.Unmarshal(text, &request); err != nil {
		return InitRequest{}, fmt.Errorf("read the engine's last Init from %s: %w", file, err)
	}
	return request, request.check()
}

func (a *Adapter) forgetState() error {
	if a.opts.StateFile == "" {
		return nil
	}
	if err := os.Remove(a.opts.StateFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the engine's Init: %w", err)
	}
	return nil
}

// writeFile makes a file, or replaces it in one step, with the directory that holds it if need be.
func writeFile(path string, content []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, content, mode)
}
