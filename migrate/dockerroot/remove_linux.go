package dockerroot

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate/internal/removal"
)

// Remove implements migrate.Source. It removes the directory of the driver, then that of its images. So a removal that was
// interrupted can be repeated: as long as there is something to remove, Open finds the driver. Directories of containers
// stay.
func (s *Source) Remove(ctx context.Context) (err error) {
	defer func() { err = fault.Wrap("remove graph driver "+s.driver+" from", s.root.Path(), err) }()
	if err := s.InUse(ctx); err != nil {
		return err
	}
	if err := s.keeper.remove(ctx); err != nil {
		return err
	}
	// Open looks for the layerdb, so it goes last.
	names, err := s.root.List(s.image, maxEntries)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	others := slices.DeleteFunc(names, func(name string) bool { return name == "layerdb" })
	if err := removal.In(ctx, s.root, s.image, others...); err != nil {
		return err
	}
	if err := removal.Sync(s.root, s.image); err != nil {
		return err
	}
	return removal.Tree(ctx, s.root, s.image)
}
