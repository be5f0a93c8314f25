package image

import (
	"cmp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// HostPlatform is the platform whose images run on this machine.
func HostPlatform() ocispec.Platform {
	p := normal(platforms.DefaultSpec())
	p.OS = "linux"
	return p
}

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT], such as linux/arm64 or linux/arm/v7, or one of OS and architecture, and
// normalises it: linux/aarch64 and linux/arm64/v8 are linux/arm64. The error is errdefs.ErrInvalidArgument.
func ParsePlatform(s string) (ocispec.Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil {
		return ocispec.Platform{}, fault.New(errdefs.ErrInvalidArgument, "platform %q is not OS/ARCHITECTURE[/VARIANT]: %w", clip(s), err)
	}
	return normal(p), nil
}

// FormatPlatform writes p as ParsePlatform reads it.
func FormatPlatform(p ocispec.Platform) string { return clip(platforms.Format(normal(p))) }

// normal is a platform by the names that OCI has for it, without version and features of the system.
func normal(p ocispec.Platform) ocispec.Platform {
	p.OSVersion, p.OSFeatures = "", nil
	return platforms.Normalize(p)
}

// wanted says which platforms will do, and which are better.
type wanted struct {
	matcher platforms.MatchComparer
	said    string // the platform asked for, or the host's
	// exact: only that architecture, as somebody has asked for it. A host runs others too, as 386 on amd64.
	exact string
	plain bool // an image for any processor of the architecture is better than an image for this one alone
}

// want is the platform that somebody has asked for or, if none, that of this machine.
func want(asked ocispec.Platform) wanted {
	if asked.Architecture != "" {
		asked = normal(asked)
		return wanted{matcher: platforms.Only(asked), said: FormatPlatform(asked), exact: asked.Architecture}
	}
	host := HostPlatform()
	said := FormatPlatform(host)
	if host.Architecture == "amd64" {
		host.Variant = amd64Level()
	}
	return wanted{matcher: platforms.Only(host), said: said, plain: true}
}

func (w wanted) matches(p ocispec.Platform) bool {
	p = normal(p)
	return (w.exact == "" || p.Architecture == w.exact) && w.matcher.Match(p)
}

// compare orders platforms that match, the best first.
func (w wanted) compare(a, b ocispec.Platform) int {
	a, b = normal(a), normal(b)
	if w.plain && a.Architecture == "amd64" && b.Architecture == "amd64" {
		return cmp.Compare(a.Variant, b.Variant)
	}
	switch {
	case w.matcher.Less(a, b):
		return -1
	case w.matcher.Less(b, a):
		return 1
	}
	return 0
}

// amd64Level is the level of x86-64 that this machine's processor has (System V psABI, 3.1.1), "" for the first.
func amd64Level() string {
	x := cpu.X86
	switch {
	case x.HasAVX512F && x.HasAVX512BW && x.HasAVX512CD && x.HasAVX512DQ && x.HasAVX512VL:
		return "v4"
	case x.HasAVX2 && x.HasBMI1 && x.HasBMI2 && x.HasFMA:
		return "v3"
	case x.HasCX16 && x.HasPOPCNT && x.HasSSE42 && x.HasSSSE3:
		return "v2"
	}
	return ""
}

// choosePlatform returns the manifest of an index for that platform, or the only one there is if the caller
// asked for none in particular.
func choosePlatform(manifests []ocispec.Descriptor, asked ocispec.Platform) (ocispec.Descriptor, error) {
	w := want(asked)
	var offered []string
	var images, found []ocispec.Descriptor
	for _, d := range manifests {
		if !isImage(d) {
			continue
		}
		images = append(images, d)
		if d.Platform == nil {
			continue
		}
		if w.matches(*d.Platform) {
			found = append(found, d)
		}
		offered = append(offered, FormatPlatform(*d.Platform))
	}
	if len(found) > 0 {
		return slices.MinFunc(found, func(a, b ocispec.Descriptor) int { return w.compare(*a.Platform, *b.Platform) }), nil
	}
	if len(images) == 1 && (asked.Architecture == "" || images[0].Platform == nil) {
		return images[0], nil
	}
	return ocispec.Descriptor{}, fault.New(errdefs.ErrNotFound, "no image for platform %s; there are %s", w.said, clip(strings.Join(offered, ", ")))
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
