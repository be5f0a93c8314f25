package main

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/image"
)

type exportFlags struct {
	compress string
	level    int
	name     string
	force    bool
	exact    bool
	insecure bool
	json     bool
}

func newExportCommand(a *app) *cobra.Command {
	f := exportFlags{}
	cmd := &cobra.Command{
		Use:   "export IMAGE|LAYER DESTINATION",
		Short: "Export an image, or a layer as an image",
		Long: `Writes an image, or a layer as an image. An image that was imported keeps its layers' digests and its ID. A
layer that was made from an image becomes that image with a layer more. Any other layer becomes an image of its
own. The same layers give the same bytes. With SOURCE_DATE_EPOCH in the environment no time in new layers is
later than that. If an image and a layer have the same name, say image:NAME or layer:NAME.

` + referencesHelp + `

With containerd://NAMESPACE/NAME it becomes an image of containerd, in a namespace such as default, moby (Docker's) or
k8s.io. If containerd has the name already, --force gives it to the new image.

For FILE, - and /dev/stdout are standard output, a pipe is written to, and a symbolic link is followed; devices
are refused. Images that are in a layout already stay there, unless one has the same name. The image keeps its
name, unless IMAGE or --name gives another. Docker, containerd and podman read that name.`,
		Example: `  cowshed export web docker-archive:web.tar:web:1 && docker load < web.tar
  cowshed export web docker://registry.example/team/web:1 --compress zstd`,
		Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := image.ParseDestination(args[1])
			if err != nil {
				return usageError{err}
			}
			if err := checkOutput(cmd, ref); err != nil {
				return err
			}
			return a.withLayers(cmd, args[:1], func(s *store) error {
				a.reachContainerd(cmd, s)
				return s.exportImage(cmd, args[0], ref, f)
			})
		},
		ValidArgsFunction: completeLayers(a, 1, true),
	}
	f.add(cmd)
	addContainers(a, cmd)
	flags := cmd.Flags()
	flags.BoolVarP(&f.force, "force", "f", false, "write over a file that is there")
	flags.BoolVar(&f.exact, "exact", false, "fail if an image that was imported would come out with another ID")
	return cmd
}

// add adds the flags that say how an image is written.
func (f *exportFlags) add(cmd *cobra.Command) {
	addCompression(cmd, &f.compress, &f.level, "")
	flags := cmd.Flags()
	flags.Lookup("compress").Usage += " (default none for docker-archive, else gzip)"
	flags.StringVar(&f.name, "name", "", "name of the image in the layout or archive; as here if not given")
	flags.BoolVar(&f.insecure, "insecure", false, "talk to a registry without TLS, or without checking its certificate")
	addJSON(cmd, &f.json)
}

// checkOutput refuses to write a tar to a terminal.
func checkOutput(cmd *cobra.Command, ref image.Reference) error {
	if ref.Path == image.Stdio && isTerminal(cmd.OutOrStdout()) {
		return usagef("a tar is not for the terminal: use a file, or a pipe")
	}
	return nil
}

func (s *store) exportImage(cmd *cobra.Command, what string, ref image.Reference, f exportFlags) error {
	epoch, err := sourceDateEpoch()
	if err != nil {
		return err
	}
	img, v, err := s.ImageOrLayer(cmd.Context(), what)
	if err != nil {
		return err
	}
	what = v.Name
	if img != nil {
		what = img.Name
	}
	return s.writeImage(cmd, what, ref, f, func(opts image.ExportOptions) (*image.Exported, error) {
		opts.Epoch, opts.Exact = epoch, f.exact
		if img == nil {
			return s.Images.ExportLayer(cmd.Context(), v.Name, nil, ref, opts)
		}
		return s.Images.Export(cmd.Context(), what, ref, opts)
	})
}

// writeImage calls export with the options of the flags, and tells of the result.
func (s *store) writeImage(cmd *cobra.Command, what string, ref image.Reference, f exportFlags, export func(image.ExportOptions) (*image.Exported, error)) error {
	if f.compress == "" && ref.Transport != image.DockerArchive {
		f.compress = layertar.Gzip.String()
	}
	format, err := layertar.ParseFormat(f.compress)
	if err != nil {
		return err
	}
	bars := s.progress(cmd)
	exported, err := export(image.ExportOptions{
		Format: format, Level: f.level, Name: f.name, Replace: f.force, Stdout: cmd.OutOrStdout(), Progress: bars,
		Registries: image.RegistryOptions{Insecure: f.insecure}, Containerd: s.Containerd,
	})
	bars.wait()
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w; use another, or --force", err)
	}
	if err != nil {
		return err
	}
	if exported.Was != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: image %s has the ID %s now\n", exported.Was, exported.Image)
	}
	for _, change := range exported.Changes {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: %s\n", change)
	}
	for _, old := range exported.Replaced {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: another image %s was there, and is no longer listed: %s\n", exported.Name, old)
	}
	if exported.Name == "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: %q is no name that an image can have elsewhere: it is known by its digest there, unless --name is given\n", what)
	}
	if ref.Path == image.Stdio {
		return nil // the output is the image
	}
	if f.json {
		return printJSON(cmd, map[string]any{
			"name": exported.Name, "id": exported.Image, "manifest": exported.Manifest, "diffIDs": exported.Layers, "size": exported.Size, "was": exported.Was, "changes": orEmpty(exported.Changes), "replaced": orEmpty(exported.Replaced),
		})
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), exported.Manifest)
	return err
}
