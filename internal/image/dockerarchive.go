package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"

	"github.com/opencontainers/go-digest"
)

// Files in the tar of docker save (moby's image-spec v1.2).
const (
	dockerManifest     = "manifest.json" // lists the images
	dockerRepositories = "repositories"  // the same for engines before 1.10
)

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
	entry, tag, err := chooseEntry(entries, ref)
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

// chooseEntry returns the image that is meant, or the only one, and its tag.
func chooseEntry(entries []dockerManifestEntry, ref Reference) (dockerManifestEntry, string, error) {
	if len(entries) == 0 {
		return dockerManifestEntry{}, "", fmt.Errorf("%s lists no images: %w", dockerManifest, ErrMalformed)
	}
	var all []candidate
	for _, e := range entries {
		all = append(all, candidate{names: e.RepoTags, digest: nameDigest(e.Config)})
	}
	places := choose(all, ref.Image)
	switch len(places) {
	case 0:
		return dockerManifestEntry{}, "", errNoImage(ref, all)
	case 1:
		entry := entries[places[0]]
		return entry, entry.tag(ref.Image), nil
	}
	return dockerManifestEntry{}, "", errSeveral(ref, all, places)
}

// tag is the tag that is meant by image, or else the first, "" if the image has none.
func (e dockerManifestEntry) tag(image string) string {
	for _, tag := range e.RepoTags {
		if (candidate{names: []string{tag}}).matches(-1, image) {
			return tag
		}
	}
	if len(e.RepoTags) == 0 {
		return ""
	}
	return e.RepoTags[0]
}

// digestName matches file names that contain the digest of the file: of a blob in a layout, and of the config in
// archives of older engines and of go-containerregistry.
var digestName = regexp.MustCompile(`^(?:blobs/sha256/([0-9a-f]{64})|sha256:([0-9a-f]{64})|([0-9a-f]{64})\.json)$`)

// nameDigest is the digest that the file's name says it has, or "".
func nameDigest(name string) digest.Digest {
	m := digestName.FindStringSubmatch(path.Clean(name))
	if m == nil {
		return ""
	}
	return digest.NewDigestFromEncoded(digest.SHA256, m[1]+m[2]+m[3])
}
