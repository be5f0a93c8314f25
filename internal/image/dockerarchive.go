package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// dockerManifest is the file that lists the images in the tar of docker save (moby's image-spec v1.2).
const dockerManifest = "manifest.json"

type dockerManifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// fromDockerArchive finds the image in the tar of docker save.
func (s *Source) fromDockerArchive(f files, ref Reference, opts OpenOptions) error {
	var entries []dockerManifestEntry
	if err := readJSON(f, dockerManifest, &entries); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("not an archive of docker save: it has no file %s: %w", dockerManifest, ErrMalformed)
		}
		return err
	}
	entry, tag, err := chooseEntry(entries, ref.Image)
	if err != nil {
		return err
	}
	s.Name = tag
	if s.Name == "" && ref.Path != Stdio {
		s.Name = fileBase(ref.Path)
	}

	for i, name := range entry.Layers {
		size, err := sizeOf(f, name)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i+1, asMalformed(err))
		}
		s.layers = append(s.layers, sourceLayer{digest: nameDigest(name), size: size, open: func(context.Context) (io.ReadCloser, error) {
			r, _, err := f.open(name)
			return r, err
		}})
	}
	config, err := readFile(f, entry.Config, maxConfigSize)
	if err != nil {
		return fmt.Errorf("config: %w", asMalformed(err))
	}
	if want := nameDigest(entry.Config); want != "" && digest.FromBytes(config) != want {
		return mismatch("config", digest.FromBytes(config), want)
	}
	return s.setConfig(config, opts)
}

func sizeOf(f files, name string) (int64, error) {
	r, size, err := f.open(name)
	if err != nil {
		return 0, err
	}
	return size, r.Close()
}

// chooseEntry returns the image with that tag, or the only one, and the tag.
func chooseEntry(entries []dockerManifestEntry, image string) (dockerManifestEntry, string, error) {
	if len(entries) == 0 {
		return dockerManifestEntry{}, "", fmt.Errorf("%s lists no images: %w", dockerManifest, ErrMalformed)
	}
	if len(entries) == 1 && image == "" {
		tag := ""
		if len(entries[0].RepoTags) > 0 {
			tag = entries[0].RepoTags[0]
		}
		return entries[0], tag, nil
	}
	var tags []string
	for _, e := range entries {
		for _, tag := range e.RepoTags {
			if image != "" && (tag == image || tag == image+":latest") {
				return e, tag, nil
			}
			tags = append(tags, clip(tag))
		}
	}
	if image == "" {
		return dockerManifestEntry{}, "", fmt.Errorf("the archive has %d images: add :NAME to the reference, with one of %s: %w",
			len(entries), strings.Join(tags, ", "), errdefs.ErrInvalidArgument)
	}
	return dockerManifestEntry{}, "", fmt.Errorf("no image %q in the archive; it has %s: %w", image, strings.Join(tags, ", "), errdefs.ErrNotFound)
}

// digestName matches file names that say what the digest of the file is: of a blob in a layout, and of the
// config in archives of older engines and of go-containerregistry.
var digestName = regexp.MustCompile(`^(?:blobs/sha256/([0-9a-f]{64})|sha256:([0-9a-f]{64})|([0-9a-f]{64})\.json)$`)

// nameDigest is the digest that the file's name says it has, or "".
func nameDigest(name string) digest.Digest {
	m := digestName.FindStringSubmatch(path.Clean(name))
	if m == nil {
		return ""
	}
	return digest.NewDigestFromEncoded(digest.SHA256, m[1]+m[2]+m[3])
}
