package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// fromRegistry finds the image in a registry. Blobs are fetched when they are read.
func (s *Source) fromRegistry(ctx context.Context, ref Reference, opts OpenOptions) error {
	at, err := registryName(ref, opts.Registries)
	if err != nil {
		return err
	}
	img, err := s.chooseRemote(ctx, at, opts)
	if err != nil {
		return registryError(err)
	}
	manifest, err := img.Manifest()
	if err != nil {
		return registryError(err)
	}
	for i, d := range manifest.Layers {
		layer := ocispec.Descriptor{MediaType: string(d.MediaType), Digest: digest.Digest(d.Digest.String()), Size: d.Size}
		if err := checkLayer(layer); err != nil {
			return fmt.Errorf("layer %d: %w", i+1, err)
		}
		s.layers = append(s.layers, sourceLayer{digest: layer.Digest, size: layer.Size, open: func(ctx context.Context) (io.ReadCloser, error) {
			return fetch(ctx, at.Context().Digest(d.Digest.String()), opts.Registries)
		}})
	}
	if manifest.Config.Size > maxConfigSize {
		return fmt.Errorf("config of %d bytes, more than %d: %w", manifest.Config.Size, maxConfigSize, errTooLarge)
	}
	config, err := img.RawConfigFile() // at most as long as the manifest says, and with the digest it says
	if err != nil {
		return registryError(err)
	}
	s.Name = ref.Path
	return s.setConfig(config, opts)
}

// chooseRemote finds the image, which may be in an index of platforms that has the name.
func (s *Source) chooseRemote(ctx context.Context, at name.Reference, opts OpenOptions) (v1.Image, error) {
	for range maxIndexDepth + 1 {
		there, err := remote.Get(at, remoteOptions(ctx, opts.Registries)...)
		if err != nil {
			return nil, err
		}
		if !there.MediaType.IsIndex() {
			return there.Image()
		}
		var index ocispec.Index
		if err := decodeJSON(there.Manifest, "index", &index); err != nil {
			return nil, err
		}
		chosen, err := choosePlatform(index.Manifests, opts.Platform)
		if err != nil {
			return nil, err
		}
		if err := checkDigest(chosen.Digest); err != nil {
			return nil, err
		}
		s.platform = chosen.Platform
		at = at.Context().Digest(chosen.Digest.String())
	}
	return nil, fmt.Errorf("index in index, more than %d deep: %w", maxIndexDepth, ErrMalformed)
}

// fetch opens a blob.
func fetch(ctx context.Context, blob name.Digest, opts RegistryOptions) (io.ReadCloser, error) {
	layer, err := remote.Layer(blob, remoteOptions(ctx, opts)...)
	if err != nil {
		return nil, registryError(err)
	}
	r, err := layer.Compressed()
	return r, registryError(err)
}

func registryName(ref Reference, opts RegistryOptions) (name.Reference, error) {
	var options []name.Option
	if opts.Insecure {
		options = append(options, name.Insecure)
	}
	at, err := name.ParseReference(ref.Path, options...)
	if err != nil {
		return nil, fault.As(errdefs.ErrInvalidArgument, err)
	}
	return at, nil
}

// remoteOptions has credentials taken from where docker login keeps them.
func remoteOptions(ctx context.Context, opts RegistryOptions) []remote.Option {
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("cowshed")}
	switch {
	case opts.Transport != nil:
		options = append(options, remote.WithTransport(opts.Transport))
	case opts.Insecure:
		insecure := remote.DefaultTransport.(*http.Transport).Clone()
		insecure.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // Insecure asks for this
		options = append(options, remote.WithTransport(insecure))
	}
	return options
}

// registryError gives a registry's error the type that it has elsewhere.
func registryError(err error) error {
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return fault.As(errdefs.ErrNotFound, err)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.New(errdefs.ErrPermissionDenied, "%w (credentials are taken from where docker login keeps them)", err)
	}
	return err
}
