package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerstore"
)

// imageInfo is an image as images --json prints it.
type imageInfo struct {
	Name     string          `json:"name"`
	ID       digest.Digest   `json:"id"`
	Platform string          `json:"platform"`
	Origin   string          `json:"origin,omitempty"`
	Imported time.Time       `json:"imported"`
	Layers   []string        `json:"layers"` // names, base first
	DiffIDs  []digest.Digest `json:"diffIDs"`
}

func describeImage(img *image.Image) imageInfo {
	return imageInfo{
		Name: img.Name, ID: img.ID(), Platform: image.FormatPlatform(img.Platform()), Origin: img.Origin,
		Imported: img.Imported, Layers: orEmpty(img.Layers()), DiffIDs: img.DiffIDs(),
	}
}

func newImagesCommand(a *app) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List images",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(s *store) error { return s.listImages(cmd, asJSON) })
		},
	}
	addJSON(cmd, &asJSON)
	return cmd
}

func (s *store) listImages(cmd *cobra.Command, asJSON bool) error {
	images, err := s.Images.List()
	if err != nil {
		return err
	}
	infos := make([]imageInfo, 0, len(images))
	for _, img := range images {
		infos = append(infos, describeImage(img))
	}
	if asJSON {
		return printJSON(cmd, infos)
	}
	rows := make([][]string, 0, len(infos))
	for _, info := range infos {
		rows = append(rows, []string{
			info.Name, info.ID.Encoded()[:12], info.Platform, strconv.Itoa(len(info.Layers)), info.Imported.Local().Format(time.DateTime),
		})
	}
	return table(cmd.OutOrStdout(), []string{"NAME", "ID", "PLATFORM", "LAYERS", "IMPORTED"}, rows)
}

func newRmiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images and the layers that only they have",
		Long: `Removes images, and those of their layers that no other image has and no other layer was made from. The command
lists layers that stay because of such a layer. Remove these later with cowshed rm.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(s *store) error { return s.rmi(cmd, args) })
		},
		ValidArgsFunction: completeImages(a, -1),
	}
}

func (s *store) rmi(cmd *cobra.Command, names []string) error {
	s.Sweep(cmd.Context()) // forks that have expired need no image
	for _, name := range names {
		img, err := s.image(cmd.Context(), name)
		if err != nil {
			return err
		}
		for _, id := range img.Layers() {
			v, err := s.Driver.Backend().Stat(cmd.Context(), id)
			if err != nil {
				continue // gone already
			}
			if err := s.CheckUnmounted(cmd.Context(), v); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		removed, err := s.Images.Remove(cmd.Context(), name)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), name); err != nil {
			return err
		}
		if len(removed.Kept) > 0 && !s.quiet {
			fmt.Fprintln(cmd.ErrOrStderr(), keptText(name, removed))
		}
	}
	return nil
}

// image finds the image of that name.
func (s *store) image(ctx context.Context, name string) (*image.Image, error) {
	img, err := s.Images.Get(name)
	if errdefs.IsNotFound(err) {
		if v, layerErr := s.LayerAlone(ctx, name); layerErr == nil {
			err = failf(errdefs.ErrNotFound, "there is no image %s, but a layer; to remove that: cowshed rm %s", name, v.Name)
		}
	}
	return img, err
}

// maxNeeded is how many of those that need a layer are named.
const maxNeeded = 3

// keptText says which layers of an image stay, and why.
func keptText(name string, removed *image.Removed) string {
	needed := strings.Join(removed.Needed, ", ")
	if more := len(removed.Needed) - maxNeeded; more > 0 {
		needed = fmt.Sprintf("%s and %d more", strings.Join(removed.Needed[:maxNeeded], ", "), more)
	}
	text := fmt.Sprintf("kept of %s: layer %s, needed by %s", name, layerstore.ShortName(removed.Kept[0]), needed)
	if below := removed.Kept[1:]; len(below) > 0 {
		short := make([]string, 0, len(below))
		for _, layer := range below {
			short = append(short, layerstore.ShortName(layer))
		}
		text += "; below it: " + strings.Join(short, ", ")
	}
	return text
}
