package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// lostLayers prints the layers of a graph driver plugin that the engine, in whose data root it is run, has no record of.
// docs/howto/docker-20.10-26.md has the same text.
const lostLayers = `for id in $(cowshed ls --names --root "$PWD/$name"); do
  grep -qrF "$id" "image/$name/layerdb" buildkit/snapshots.db || [ $? -ne 1 ] || echo "$id"
done`

// LostLayers lists the ids of layers on Cowshed that Debian's engine has no record of, and so never removes. Those that
// it is just making are among them.
func (c *Cowshed) LostLayers(ctx context.Context, e *Engine) ([]string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-ec", lostLayers)
	cmd.Dir = e.Root
	cmd.Env = append(os.Environ(), "name="+c.Plugin, path(filepath.Dir(c.program)))
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list lost layers: %w: %s", err, stderrOf(err))
	}
	return strings.Fields(string(out)), nil
}

// RemoveLayers removes layers on Cowshed that the engine does not know of.
func (c *Cowshed) RemoveLayers(ctx context.Context, e *Engine, ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	return c.Command(ctx, append([]string{"rm", "--root", filepath.Join(e.Root, c.Plugin)}, ids...)...)
}

// LostMounts lists layers that Debian's engine has forgotten because its driver failed: those that BuildKit has mounted and could
// not unmount, and those of containers that could not be made. Their parents are in the list too. The engine has no containers and no
// images. Its records of these layers are deleted: it is not running.
func (e *Engine) LostMounts() ([]string, error) {
	layers := filepath.Join(e.Root, "image", e.driver, "layerdb")
	mounts, err := filepath.Glob(filepath.Join(layers, "mounts", "*"))
	if err != nil {
		return nil, err
	}
	var lost []string
	seen := make(map[string]bool)
	for _, mount := range mounts {
		container := filepath.Join(e.Root, "containers", filepath.Base(mount))
		if _, err := os.Lstat(container); !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s is that of a container: %w", mount, err)
		}
		for dir, file := mount, "mount-id"; !seen[dir]; file = "cache-id" {
			seen[dir] = true
			id, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return nil, err
			}
			lost = append(lost, string(id))
			initial, err := os.ReadFile(filepath.Join(dir, "init-id"))
			if err == nil { // the layer below a container's
				lost = append(lost, string(initial))
			} else if !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
			parent, err := os.ReadFile(filepath.Join(dir, "parent"))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, err
			}
			if err := os.RemoveAll(dir); err != nil {
				return nil, err
			}
			if len(parent) == 0 {
				break
			}
			dir = filepath.Join(layers, strings.Replace(string(parent), ":", "/", 1))
		}
	}
	return lost, nil
}
