package main

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"github.com/cowshed/cowshed/internal/image"
)

const referencesHelp = `An image is named by the kind of its place, and the place:

  docker://NAME               in a registry; credentials are those of docker login
  oci:DIR[:IMAGE]             in an OCI layout in a directory
  oci-archive:FILE[:IMAGE]    in an OCI layout in a tar
  docker-archive:FILE[:IMAGE] in a tar of docker save

IMAGE is a name, a digest, or @0, @1 and so on: the place in the list of images.`

type importFlags struct {
	name     string
	platform string
	replace  bool
	insecure bool
	json     bool
}

func newImportCommand(a *app) *cobra.Command {
	f := importFlags{}
	cmd := &cobra.Command{
		Use:   "import SOURCE",
		Short: "Import an image as layers",
		Long: `Makes the layers of an image, and prints its name. Layers that another image has made are used again.
All digests are checked. An import that fails or is stopped leaves nothing.

` + referencesHelp + `

With rootfs:FILE a tar of a root filesystem becomes an image of one layer. For FILE, - is standard input, and the
tar may be compressed with gzip, zstd, bzip2 or, where the program xz is installed, xz. It is read as GNU tar does,
with a warning for ignored parts.

Without a prefix, SOURCE is a file or directory, whose content shows the kind. If the first part of SOURCE is a host,
it is an image in a registry. A tar with the files of an image in it is an image.`,
		Example: `  docker save debian:12 | cowshed import -
  cowshed import rootfs:debian.tar.zst --name debian:12
  cowshed import docker://registry.example/team/app:1.2 --platform linux/arm64`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(s *store) error { return s.importImage(cmd, args[0], f) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", "", "name of the image here; as in SOURCE if not given")
	flags.StringVar(&f.platform, "platform", "", "which one of an image for several platforms, as OS/ARCH[/VARIANT]; this machine's if not given")
	flags.BoolVar(&f.replace, "replace", false, "let the name stand for this image if another one has it")
	flags.BoolVar(&f.insecure, "insecure", false, "talk to a registry without TLS, or without checking its certificate")
	addJSON(cmd, &f.json)
	return cmd
}

func (s *store) importImage(cmd *cobra.Command, source string, f importFlags) (err error) {
	ref, err := image.ParseReference(source)
	if err != nil {
		return err
	}
	opts := image.OpenOptions{Registries: image.RegistryOptions{Insecure: f.insecure}}
	if ref.Path == image.Stdio {
		opts.Stdin = standardInput(cmd.Context(), cmd.InOrStdin())
	}
	if f.platform != "" {
		if opts.Platform, err = image.ParsePlatform(f.platform); err != nil {
			return err
		}
	}
	if opts.Created, err = sourceDateEpoch(); err != nil {
		return err
	}
	src, err := image.Open(cmd.Context(), ref, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()

	imported, err := s.runImport(cmd, src, f)
	if errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("%w; choose another name with --name, or use --replace", err)
	}
	if err != nil {
		return err
	}
	if src.Kind == image.RootFS && ref.Transport != image.RootFS && !f.json {
		fmt.Fprintf(cmd.ErrOrStderr(), "cowshed: taken for %s:%s, since nothing of an image is in it\n", image.RootFS, source)
	}
	return printImported(cmd, imported, src.Kind, f.json)
}

// printImported tells of an image that is now in the store.
func printImported(cmd *cobra.Command, imported *image.Imported, kind image.Transport, asJSON bool) error {
	if asJSON {
		return printJSON(cmd, struct {
			imageInfo
			Kind   image.Transport `json:"kind"`
			Made   []string        `json:"made"`
			Reused []string        `json:"reused"`
		}{describeImage(imported.Image), kind, orEmpty(imported.Made), orEmpty(imported.Reused)})
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), imported.Image.Name)
	return err
}

func (s *store) runImport(cmd *cobra.Command, src *image.Source, f importFlags) (*image.Imported, error) {
	bars := s.progress(cmd)
	defer bars.wait()
	return s.Images.Import(cmd.Context(), src, image.ImportOptions{Name: f.name, Replace: f.replace, Progress: bars})
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
