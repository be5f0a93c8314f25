package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/loopstore"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// initFlags describe the store to make.
type initFlags struct {
	loop   string
	always bool
	force  bool
	json   bool

	size uint64 // of an embedded store in bytes; 0 if none may be made
}

func newInitCommand(a *app) *cobra.Command {
	f := initFlags{}
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a store",
		Long: `Makes the store in the directory --root, whose filesystem has to be btrfs or ZFS. On another filesystem, --loop SIZE
makes an embedded store: a btrfs in the sparse file <root>.img, mounted on <root>. With --always it makes an embedded
store on btrfs and ZFS too, so that quotas are turned on in it alone.

An embedded store takes space for its content, up to SIZE. The first command after a reboot mounts it again. Running
init once more with a larger SIZE grows it; it never shrinks.

The filesystem of <root>.img has to have room for all of SIZE: if it is full before the store is, the store becomes
read-only. With --force it need not.

An existing store stays as it is: init can be run any number of times.`,
		Example: "  cowshed init\n  cowshed init --loop 20G",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (f.always || f.force) && f.loop == "" {
				return usagef("--always and --force need --loop SIZE")
			}
			if f.loop != "" {
				var err error
				if f.size, err = quota.ParseSize(f.loop); err != nil {
					return err
				}
			}
			return a.init(cmd, f)
		},
	}
	cmd.Flags().StringVar(&f.loop, "loop", "", "size of the embedded store, where one is needed, such as 20G")
	cmd.Flags().BoolVar(&f.always, "always", false, "make the embedded store also where none is needed")
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "let SIZE exceed the free space")
	addJSON(cmd, &f.json)
	return cmd
}

// initResult is the output of init --json.
type initResult struct {
	Root     string   `json:"root"`
	Driver   string   `json:"driver"`
	Embedded string   `json:"embedded,omitempty"` // the image file
	Done     []string `json:"done"`               // the steps taken, for people
}

func (a *app) init(cmd *cobra.Command, f initFlags) (err error) {
	result := &initResult{Done: []string{}}
	s, err := a.initStore(cmd, f, result)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Driver.Cleanup()) }()
	result.Root, result.Driver = s.Root, s.Driver.String()
	if f.json {
		return printJSON(cmd, result)
	}
	for _, done := range append(result.Done, fmt.Sprintf("the store %s is ready, with the driver %s", s.Root, s.Driver)) {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), done); err != nil {
			return err
		}
	}
	return nil
}

// initStore makes and opens the store.
func (a *app) initStore(cmd *cobra.Command, f initFlags, result *initResult) (*store, error) {
	if err := a.checkDriver(cmd.Context()); err != nil {
		return nil, err
	}
	embedded, err := loopstore.At(a.root)
	if err != nil {
		return nil, err
	}
	state, err := embedded.State()
	if err != nil {
		return nil, err
	}
	initialised, err := a.initialised()
	if err != nil {
		return nil, err
	}
	if state == loopstore.Absent && (initialised || !f.always) {
		s, err := a.openOrMake(cmd.Context())
		switch {
		case err == nil:
			a.sayMade(s, initialised, f, result)
			return s, nil
		case !graphdriver.IsDriverNotSupported(err):
			return nil, err
		case f.size == 0:
			return nil, fmt.Errorf("%w\nAn embedded store needs no such filesystem: cowshed init --loop 20G", err)
		}
		result.Done = append(result.Done, fmt.Sprintf("%s is not on %s, so an embedded store is needed", embedded.Root, cowdriver.Filesystems()))
	}

	made, err := embedded.Make(cmd.Context(), f.size, f.force)
	if errors.Is(err, loopstore.ErrNoRoom) {
		err = fmt.Errorf("%w; choose a smaller SIZE, or add --force", err)
	}
	if err != nil {
		return nil, err
	}
	result.Embedded = embedded.Image
	result.sayEmbedded(embedded, made, f.size)
	return a.openOrMake(cmd.Context())
}

func (a *app) sayMade(s *store, initialised bool, f initFlags, result *initResult) {
	if !initialised {
		result.Done = append(result.Done, fmt.Sprintf("made %s", s.Home()))
	}
	if f.size != 0 {
		result.Done = append(result.Done, fmt.Sprintf("%s is on %s, so no embedded store is needed and none was made", s.Root, s.Driver))
	}
}

func (r *initResult) sayEmbedded(embedded loopstore.Store, made loopstore.Made, size uint64) {
	if made.Image {
		r.Done = append(r.Done, fmt.Sprintf("made %s, a btrfs of up to %s", embedded.Image, quota.FormatSize(size)))
	}
	if made.Grown {
		r.Done = append(r.Done, fmt.Sprintf("made %s larger: up to %s", embedded.Image, quota.FormatSize(made.Size)))
	}
	if size != 0 && size < made.Size {
		r.Done = append(r.Done, fmt.Sprintf("%s keeps its size of up to %s, since a store is never made smaller",
			embedded.Image, quota.FormatSize(made.Size)))
	}
	if made.Mount {
		r.Done = append(r.Done, fmt.Sprintf("mounted %s on %s", embedded.Image, embedded.Root))
	}
}

func newDeinitCommand(a *app) *cobra.Command {
	yes := false
	cmd := &cobra.Command{
		Use:   "deinit",
		Short: "Delete a store",
		Long: `Deletes a store. An embedded store goes with all that is in it: its image file, and the directory
that it is mounted on. Another store has to be empty first, of layers and images; then its directories go.

Nothing is deleted without --yes, and nothing that init did not make.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.deinit(cmd, yes) },
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "really delete it")
	return cmd
}

func (a *app) deinit(cmd *cobra.Command, yes bool) error {
	embedded, err := loopstore.At(a.root)
	if err != nil {
		return err
	}
	state, err := embedded.State()
	if err != nil {
		return err
	}
	if state == loopstore.Absent {
		return a.deinitDirectories(cmd, yes)
	}
	if !yes {
		return usagef("this deletes %s with all layers and images in it; to do so, add --yes", embedded.Image)
	}
	if err := embedded.Remove(cmd.Context()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "deleted %s\n", embedded.Image)
	return err
}

// deinitDirectories takes away an empty store that is not embedded.
func (a *app) deinitDirectories(cmd *cobra.Command, yes bool) error {
	home, root, driver := "", "", ""
	err := a.with(cmd.Context(), func(s *store) error {
		home, root, driver = s.Home(), s.Root, s.Driver.String()
		layers, err := s.List(cmd.Context(), nil)
		if err != nil {
			return err
		}
		images, err := s.Images.List()
		if err != nil {
			return err
		}
		if len(layers)+len(images) > 0 {
			return failf(errdefs.ErrFailedPrecondition, "there are %d layers and %d images in %s; remove them first, with cowshed rmi and cowshed rm",
				len(layers), len(images), s.Root)
		}
		if !yes {
			return usagef("this deletes the empty store in %s; to do so, add --yes", home)
		}
		return errors.Join(s.Live.Delete(cmd.Context()), s.Images.Delete(cmd.Context()))
	})
	if err != nil {
		return err
	}
	// Only empty directories are deleted.
	if err := errors.Join(deleteHome(home, driver), removeIfThere(filepath.Join(root, mountsDir))); err != nil {
		return err
	}
	for _, dir := range []string{live.DirsIn(root), root} { // another driver may have one
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			a.log.Info("the directory stays", "path", dir, "reason", err)
		}
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "deleted the store in %s\n", root)
	return err
}

// deleteHome deletes the directories that a driver has made, which are empty, and its files.
func deleteHome(home, driver string) error {
	registration, _ := cowdriver.Lookup(driver)
	entries, err := os.ReadDir(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(home, entry.Name())
		if info, err := entry.Info(); err != nil || !entry.IsDir() && info.Size() > 0 && !slices.Contains(registration.Files, entry.Name()) {
			return failf(errdefs.ErrFailedPrecondition, "%s was not made by init", path)
		}
		if err := removeIfThere(path); err != nil {
			return err
		}
	}
	return removeIfThere(home)
}

// removeIfThere deletes a file or an empty directory.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
