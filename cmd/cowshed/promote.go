package main

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/internal/layerstore"
)

type promoteFlags struct {
	exportFlags
	message string
}

func newPromoteCommand(a *app) *cobra.Command {
	f := promoteFlags{}
	cmd := &cobra.Command{
		Use:   "promote LAYER IMAGE|DESTINATION",
		Short: "Make an image of a layer as it is now, in use or not",
		Long: `Makes a new image of a layer, a fork or a snapshot (LAYER@SNAPSHOT), and prints its name. The changes since the
uppermost layer of the image that it was made from become one new layer. The layers below, and the config with an entry
more in its history, are those of that image. A layer that was not made from an image becomes an image of one layer.

The layer may be in use. It is held for one moment only, and the changes are read from that moment. With
SOURCE_DATE_EPOCH in the environment no time in the new layer is later than that.

IMAGE is a name in this store. With the prefix of a kind of place, it is a DESTINATION instead. The image is written
there as by cowshed export, and is not in this store then. cowshed help export lists the kinds. Layers that a layout,
a registry or containerd has already are not written again.

The layer can be a container. The new image has the config and the layers of the container's image, and the container's
changes since. With containerd://NAMESPACE/NAME it is an image of containerd, from which containers can be run at once.

Promoting fails if another image has the name, or if the file is there, unless --force is given.`,
		Example: `  cowshed promote web web:2 -m "as of the upgrade"
  cowshed promote web@before docker://registry.example/team/web:1
  cowshed promote docker:web containerd://moby/web:2
  cowshed promote cri:4f1c docker://registry.example/team/web:2`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := layerstore.PromotionTarget(args[1])
			if err != nil {
				return usageError{err}
			}
			if err := checkOutput(cmd, ref); err != nil {
				return err
			}
			return a.withLayers(cmd, args[:1], func(s *store) error {
				a.reachContainerd(cmd, s)
				if ref.Transport != "" || s.Containers == nil {
					return s.promote(cmd, s, args[0], args[1], ref, f)
				}
				return a.with(cmd.Context(), func(into *store) error { return s.promote(cmd, into, args[0], args[1], ref, f) })
			})
		},
		ValidArgsFunction: completeLayers(a, 1, false),
	}
	f.add(cmd)
	addContainers(a, cmd)
	cmd.Flags().BoolVarP(&f.force, "force", "f", false, "write over a file that is there, or take the name of another image")
	cmd.Flags().StringVarP(&f.message, "message", "m", "", "text for the image's history")
	return cmd
}

// promote writes the image to ref, or makes it in the store into if ref is the zero Reference.
func (s *store) promote(cmd *cobra.Command, into *store, what, to string, ref image.Reference, f promoteFlags) (err error) {
	epoch, err := sourceDateEpoch()
	if err != nil {
		return err
	}
	v, err := s.Layer(cmd.Context(), what)
	if err != nil {
		return err
	}
	p, err := s.Promotion(cmd.Context(), v, what, f.message, epoch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if ref.Transport != "" {
		return s.writeImage(cmd, p.Name, ref, f.exportFlags, func(opts image.ExportOptions) (*image.Exported, error) {
			return s.ExportPromotion(cmd.Context(), p, ref, opts)
		})
	}
	bars := s.progress(cmd)
	imported, err := s.Promote(cmd.Context(), into.Store, p, image.ImportOptions{Name: to, Replace: f.force, Progress: bars})
	bars.wait()
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w; choose another name, or use --force", err)
	}
	if err != nil {
		return err
	}
	return printImported(cmd, imported, image.PromotedLayer, f.json)
}
