package image

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT], such as linux/arm64 or linux/arm/v7.
// The error is errdefs.ErrInvalidArgument.
func ParsePlatform(s string) (ocispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return ocispec.Platform{}, fmt.Errorf("platform %q is not OS/ARCHITECTURE[/VARIANT]: %w", clip(s), errdefs.ErrInvalidArgument)
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// FormatPlatform writes p as ParsePlatform reads it.
func FormatPlatform(p ocispec.Platform) string {
	s := clip(p.OS + "/" + p.Architecture)
	if p.Variant != "" {
		s += "/" + clip(p.Variant)
	}
	return s
}

// satisfies reports whether p is what want asks for; what want leaves open may be anything.
func satisfies(p, want ocispec.Platform) bool {
	return (want.OS == "" || p.OS == want.OS) &&
		(want.Architecture == "" || p.Architecture == want.Architecture) &&
		(want.Variant == "" || p.Variant == want.Variant)
}

// choosePlatform returns the manifest of an index for that platform, or the only one there is if the caller
// asked for none in particular.
func choosePlatform(manifests []ocispec.Descriptor, asked ocispec.Platform) (ocispec.Descriptor, error) {
	want := asked
	if want.Architecture == "" {
		want = HostPlatform()
	}
	var offered []string
	var images []ocispec.Descriptor
	for _, d := range manifests {
		if !isImage(d) {
			continue
		}
		images = append(images, d)
		if d.Platform == nil {
			continue
		}
		if satisfies(*d.Platform, want) {
			return d, nil
		}
		offered = append(offered, FormatPlatform(*d.Platform))
	}
	if len(images) == 1 && (asked.Architecture == "" || images[0].Platform == nil) {
		return images[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image for platform %s; there are %s: %w",
		FormatPlatform(want), clip(strings.Join(offered, ", ")), errdefs.ErrNotFound)
}

// isImage reports whether an entry of an index is an image rather than an attestation or another attachment.
// The artifact type of an image is the media type of its config (image-spec, descriptor.md).
func isImage(d ocispec.Descriptor) bool {
	switch d.ArtifactType {
	case "", ocispec.MediaTypeImageConfig, dockerConfigType:
		return d.Annotations["vnd.docker.reference.type"] == ""
	}
	return false
}
