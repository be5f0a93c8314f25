package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// saveState keeps what Init said.
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

// loadState returns what Init said. errdefs.ErrFailedPrecondition: nothing is kept.
func (a *Adapter) loadState() (InitRequest, error) {
	if a.opts.StateFile == "" {
		return InitRequest{}, errNoInit
	}
	text, err := os.ReadFile(a.opts.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return InitRequest{}, errNoInit
	}
	if err != nil {
		return InitRequest{}, fmt.Errorf("read the engine's last Init: %w", err)
	}
	var request InitRequest
	if err := json.Unmarshal(text, &request); err != nil {
		return InitRequest{}, fmt.Errorf("read the engine's last Init from %s: %w", a.opts.StateFile, err)
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
func writeFile(path string, content []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
