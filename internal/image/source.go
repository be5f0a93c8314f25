package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/closers"
)

// Source is an image that can be imported.
type Source struct {
	Name   string // the name of the image at its place; "" if it has none
	Origin string // the place
	// Kind is the kind of the place, as Open recognised it.
	Kind Transport

	guessed  bool              // whether Kind was found out by looking
	platform *ocispec.Platform // the platform in an index's entry for the image; nil: none
	config   []byte            // nil: there is none, as for a plain root filesystem
	layers   []sourceLayer
	// below are the diff IDs of the layers below the last one. They are in the store, unless they are among the layers. With
	// config, there are none.
	below []digest.Digest
	// describe makes the config of an image that has none, once its diff IDs are known.
	describe func(diffIDs []digest.Digest) ([]byte, error)
	closers  closers.Closers
}

// sourceLayer is a layer tar, compressed or not.
type sourceLayer struct {
	digest digest.Digest // of the tar as it is stored; "": not known
	size   int64         // bytes as it is stored; negative: not known
	// mediaType is that of the manifest; "": there is none.
	mediaType string
	// made: the tar is made of volumes now, and need not have the diff ID that it once had.
	made bool
	// unverified: no digest would tell that something of the tar is missing.
	unverified bool
	// open reads the tar from its start. It can be called again, unless that is a stream: errReadOnce.
	open func(ctx context.Context) (io.ReadCloser, error)
}

// Close releases the resources of the source.
func (s *Source) Close() error { return s.closers.Close() }

// OpenOptions says how a source is opened.
type OpenOptions struct {
	// Platform chooses from an image for several platforms, and an image for one must be for it. The zero
	// value stands for the host's, and takes an image for one platform whichever that is.
	Platform ocispec.Platform
	// Stdin is read where the reference says so; nil stands for os.Stdin.
	Stdin io.Reader
	// Created is the time given to an image that has none; nil stands for the current time.
	Created *time.Time
	// Registries says how a registry is talked to.
	Registries RegistryOptions
}

// RegistryOptions says how registries are talked to.
type RegistryOptions struct {
	Insecure  bool              // without TLS, or without checking the certificate
	Transport http.RoundTripper // nil: the default one
}

// Open finds the image that ref names. The caller closes the result.
//
// Returns errdefs.ErrNotFound if there is no such place, or no such image in it. Returns ErrMalformed if the place
// has no image, and errdefs.ErrInvalidArgument if ref does not say which of several images. Returns
// errdefs.ErrNotImplemented for kinds of images that are not read here. Returns errdefs.ErrDataLoss if content has
// another digest than it should.
func Open(ctx context.Context, ref Reference, opts OpenOptions) (_ *Source, err error) {
	s := &Source{Origin: ref.String(), Kind: ref.Transport}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open image %s: %w", ref, errors.Join(err, s.Close()))
		}
	}()

	switch ref.Transport {
	case Registry:
		return s, s.fromRegistry(ctx, ref, opts)
	case OCILayout:
		dir, err := openDir(ref.Path)
		if err != nil {
			return nil, asNotFound(err)
		}
		s.closers.Add(dir.close)
		return s, s.fromLayout(ctx, dir, ref, opts)
	}

	in, err := openInput(ref.Path, opts.Stdin)
	if err != nil {
		return nil, asNotFound(err)
	}
	s.closers.Add(in.close)
	return s, s.fromInput(ctx, in, ref, opts)
}

// fromInput finds the image in a file or stream.
func (s *Source) fromInput(ctx context.Context, in *input, ref Reference, opts OpenOptions) error {
	transport := ref.Transport
	s.guessed = transport == guessed
	if s.guessed {
		isArchive, err := in.holdsImage()
		if err != nil {
			return err
		}
		if !isArchive {
			transport = RootFS
		}
	}
	if transport == RootFS {
		s.Kind = RootFS
		return s.fromRootFS(in, ref, opts)
	}

	archive, err := in.index(ctx)
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	s.closers.Add(archive.close)
	err = s.fromArchive(ctx, archive, ref, opts)
	if s.guessed && errors.Is(err, ErrMalformed) {
		err = fmt.Errorf("%w; if it is a root filesystem, write %s", err, Reference{Transport: RootFS, Path: ref.Path})
	}
	return err
}

// fromArchive finds the image in a tar. docker save writes a tar that is a layout too. Of an image for several
// platforms, it lists platforms in one way that it does not list in the other.
func (s *Source) fromArchive(ctx context.Context, archive *tarFiles, ref Reference, opts OpenOptions) error {
	kinds := []Transport{OCIArchive, DockerArchive}
	isLayout, isDocker := has(archive, ocispec.ImageLayoutFile), has(archive, dockerManifest)
	switch {
	case ref.Transport == DockerArchive && isLayout:
		kinds = []Transport{DockerArchive, OCIArchive}
	case ref.Transport == DockerArchive, ref.Transport == guessed && isDocker && !isLayout:
		kinds = kinds[1:]
	case !isDocker:
		kinds = kinds[:1]
	}
	if !isLayout && !isDocker && has(archive, dockerRepositories) {
		return fault.New(errdefs.ErrNotImplemented, "an archive of docker save before 1.10, with %s and no %s, is not read; load it into Docker 1.10 to 24 and save it again", dockerRepositories, dockerManifest)
	}
	// manifest.json may list another platform than this machine's, and index.json this machine's too.
	if len(kinds) > 1 && kinds[0] == DockerArchive && opts.Platform.Architecture == "" {
		here := opts
		here.Platform = HostPlatform()
		if err := s.fromEither(ctx, archive, kinds, ref, here); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return s.fromEither(ctx, archive, kinds, ref, opts)
}

// fromEither finds the image in the first list that has it, of those that kinds of archives have.
func (s *Source) fromEither(ctx context.Context, archive *tarFiles, kinds []Transport, ref Reference, opts OpenOptions) error {
	var errs []error
	for _, kind := range kinds {
		s.Name, s.layers, s.platform, s.Kind, ref.Transport = "", nil, nil, kind, kind
		var err error
		if kind == DockerArchive {
			err = s.fromDockerArchive(archive, ref, opts)
		} else {
			err = s.fromLayout(ctx, archive, ref, opts)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errs[0]
}

// setConfig takes the config, and checks it against the layers that were found.
func (s *Source) setConfig(raw []byte, opts OpenOptions) error {
	config, err := parseConfig(raw)
	if err != nil {
		return err
	}
	if have, want := len(s.layers), len(config.RootFS.DiffIDs); have != want {
		return fmt.Errorf("the manifest has %d layers and the config %d: %w", have, want, ErrMalformed)
	}
	// An index that has chosen the image knows its variant, which many configs do not say.
	is := config.Platform
	if s.platform != nil && normal(*s.platform).Architecture == normal(is).Architecture {
		is = *s.platform
	}
	if asked := opts.Platform; asked.Architecture != "" && !want(asked).matches(is) {
		return fault.New(errdefs.ErrNotFound, "the image is for %s, not %s", FormatPlatform(is), FormatPlatform(asked))
	}
	s.config = raw
	return nil
}

// asNotFound makes errors for files that are not there match errdefs.ErrNotFound.
func asNotFound(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fault.As(errdefs.ErrNotFound, err)
	}
	return err
}
