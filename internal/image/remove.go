package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// Removed is the result of Remove.
type Removed struct {
	Layers []string // that were removed, top first
	Kept   []string // that stay, top first: the uppermost since something needs it, the others as they are below it
	Needed []string // users of the uppermost of Kept, such as "image app:1" and "layer web"; sorted
}

// Remove removes an image, and those of its layers that no other image has and no other layer was made from. It needs
// no space. A removal that fails or is stopped half-way leaves the image listed, though perhaps without its upper
// layers. It can be removed again. Returns errdefs.ErrNotFound if there is no such image. Returns
// errdefs.ErrFailedPrecondition if a layer is in use, or if another process is importing or exporting.
func (s *Store) Remove(ctx context.Context, name string) (_ *Removed, err error) {
	image, err := s.Get(name)
	if err != nil {
		return nil, fmt.Errorf("remove image: %w", err)
	}
	lock, err := s.lockExclusive()
	if err != nil {
		return nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	// The record goes last: without it nobody would find the layers that are left.
	removed, err := s.removeUnused(ctx, image.Layers(), name)
	if err != nil {
		return nil, fmt.Errorf("remove layers of image %s: %w", name, err)
	}
	if err := os.Remove(s.path(recordsDir, recordFile(name))); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", name, asNotFound(err))
	}
	if err := syncdir.Sync(s.path(recordsDir)); err != nil {
		return nil, fmt.Errorf("remove image %s: %w", name, err)
	}
	return removed, nil
}

// RemoveLayer removes a layer that no image has any more, with the stored parts of its tar. Returns
// errdefs.ErrFailedPrecondition if an image has it, or if another process is importing or exporting.
func (s *Store) RemoveLayer(ctx context.Context, id string) (err error) {
	lock, err := s.lockExclusive()
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	users, err := s.Users()
	if err != nil {
		return fmt.Errorf("remove layer %s: %w", id, err)
	}
	if user, ok := users[id]; ok {
		return fault.New(errdefs.ErrFailedPrecondition, "remove layer %s: it is part of %s", id, user)
	}
	return s.removeLayer(ctx, id)
}

// removeUnused removes layers, given base first, from the top down to the first that others need. The image of that
// name, which may be "", does not count.
func (s *Store) removeUnused(ctx context.Context, layers []string, image string) (*Removed, error) {
	needed, err := s.needed(ctx, layers, image)
	if err != nil {
		return nil, err
	}
	removed := &Removed{}
	for i := len(layers) - 1; i >= 0; i-- {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if by, ok := needed[layers[i]]; ok {
			slices.Sort(by)
			removed.Kept, removed.Needed = slices.Clone(layers[:i+1]), by
			slices.Reverse(removed.Kept)
			break
		}
		if err := s.removeLayer(ctx, layers[i]); err != nil {
			return nil, err
		}
		removed.Layers = append(removed.Layers, layers[i])
	}
	return removed, nil
}

// needed returns the users of each layer: images other than that of the given name, and layers other than those given
// that were made from it or share it.
func (s *Store) needed(ctx context.Context, except []string, exceptImage string) (map[string][]string, error) {
	users, err := s.users(exceptImage)
	if err != nil {
		return nil, err
	}
	needed := make(map[string][]string)
	skip := make(map[string]bool, len(except))
	for _, id := range except {
		skip[id] = true
	}
	for v, err := range s.driver.Backend().Volumes(ctx) {
		if err != nil {
			return nil, err
		}
		if v.Parent != "" && !skip[v.Name] {
			needed[v.Parent] = append(needed[v.Parent], "layer "+short(v.Name))
		}
	}
	sharers, err := cowcommon.Sharers(ctx, s.driver.Backend())
	if err != nil {
		return nil, err
	}
	for id, names := range sharers {
		for _, name := range names {
			// A shared root may have another parent, such as the snapshot of a fork.
			if by := "layer " + short(name); !skip[name] && !slices.Contains(needed[id], by) {
				needed[id] = append(needed[id], by)
			}
		}
	}
	for id, user := range users {
		needed[id] = append(needed[id], user)
	}
	return needed, nil
}

// Users says of each layer that is part of an image which image that is. An unreadable record is an error:
// it might be of any image.
func (s *Store) Users() (map[string]string, error) { return s.users("") }

func (s *Store) users(except string) (map[string]string, error) {
	images, err := s.List()
	if err != nil {
		return nil, err
	}
	users := make(map[string]string)
	for _, image := range images {
		if image.Name == except {
			continue
		}
		for _, id := range image.Layers() {
			users[id] = "image " + image.Name
		}
	}
	return users, nil
}

// Problem is something in a store that is not as it should be.
type Problem struct {
	What   string
	Advice string // what to do about it
	Severe bool   // an image cannot be used
}

// Check looks for four problems: records that cannot be read, images whose layers are gone, layers that no image has,
// and remains of imports that were cut off.
func (s *Store) Check(ctx context.Context) ([]Problem, error) {
	var problems []Problem
	images, err := s.List()
	if err != nil {
		problems = append(problems, Problem{What: err.Error(), Advice: "delete the record and import the image again", Severe: true})
	}
	volumes := make(map[string]bool)
	for v, err := range s.driver.Backend().Volumes(ctx) {
		if err != nil {
			return problems, err
		}
		volumes[v.Name] = true
	}

	used := make(map[string]bool)
	for _, image := range images {
		for _, id := range image.Layers() {
			used[id] = true
			if !volumes[id] {
				problems = append(problems, Problem{
					What:   fmt.Sprintf("image %s has no layer %s any more", image.Name, short(id)),
					Advice: "import the image again with --replace, or remove it with cowshed rmi " + image.Name,
					Severe: true,
				})
				break
			}
		}
	}
	partial := 0
	for id := range volumes {
		if IsPartial(id) {
			partial++
		}
	}
	if partial > 0 && s.idle() {
		problems = append(problems, Problem{
			What:   fmt.Sprintf("%d layers are left of imports that were cut off", partial),
			Advice: "they are removed by the next cowshed import",
		})
	}
	if err == nil {
		problems = append(problems, s.unused(volumes, used)...)
	}
	return problems, nil
}

// unused reports layers that were imported and that no image has.
func (s *Store) unused(volumes, used map[string]bool) []Problem {
	var problems []Problem
	for _, id := range slices.Sorted(maps.Keys(volumes)) {
		if !IsLayerName(id) || used[id] {
			continue
		}
		if _, err := os.Stat(s.splitFile(id)); err != nil {
			continue // not known to have been imported
		}
		problems = append(problems, Problem{
			What:   fmt.Sprintf("layer %s was imported, and no image has it", short(id)),
			Advice: "if nothing was made from it, remove it: cowshed rm " + id,
		})
	}
	return problems
}

// idle reports whether no import, export or removal is under way.
func (s *Store) idle() bool {
	if _, err := os.Stat(s.dir); err != nil {
		return true
	}
	l, err := s.lockExclusive()
	if errdefs.IsFailedPrecondition(err) {
		return false
	}
	return err == nil && l.Close() == nil
}
