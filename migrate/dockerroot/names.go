package dockerroot

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// repositoriesFile has the names of all images.
const repositoriesFile = "repositories.json"

// names are the names of images, by ID.
type names map[digest.Digest]imageNames

// imageNames are the normalised names of an image, sorted.
type imageNames struct {
	tags, digests []string
}

// first is a name for people, "" if there is none.
func (n imageNames) first() string {
	if len(n.tags) > 0 {
		return n.tags[0]
	}
	if len(n.digests) > 0 {
		return n.digests[0]
	}
	return ""
}

// take returns the names of an image, and forgets them.
func (n names) take(id digest.Digest) imageNames {
	named := n[id]
	delete(n, id)
	return named
}

// ids are the IDs that have names, sorted.
func (n names) ids() []digest.Digest { return slices.Sorted(maps.Keys(n)) }

// readNames reads the names of images. Without the file, or if it is damaged, images have no names.
func (l *lister) readNames() (names, error) {
	data, err := l.root.ReadFile(path.Join(l.image, repositoriesFile), maxRepositories)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	named, bad, err := parseNames(data)
	if err != nil {
		l.problem(whatImage, repositoriesFile, "the names of all images", err)
	}
	for _, b := range bad {
		l.problem(whatImage, b.id, b.name, b.err)
	}
	return named, nil
}

// badName is a name that is not taken.
type badName struct {
	id, name string
	err      error
}

// parseNames reads the file with the names. It has them by repository:
//
//	{"Repositories": {"debian": {"debian:12": "sha256:...", "debian@sha256:...": "sha256:..."}}}
func parseNames(data []byte) (names, []badName, error) {
	var file struct {
		Repositories map[string]map[string]string
	}
	// As Docker does, it takes the first value alone.
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&file); err != nil {
		return nil, nil, notJSON(err)
	}
	var bad []badName
	taken := map[string]digest.Digest{}
	for _, repository := range slices.Sorted(maps.Keys(file.Repositories)) {
		refs := file.Repositories[repository]
		for _, ref := range slices.Sorted(maps.Keys(refs)) {
			if err := takeName(taken, ref, refs[ref]); err != nil {
				bad = append(bad, badName{id: shown(refs[ref]), name: shown(ref), err: err})
			}
		}
	}
	return byImage(taken), bad, nil
}

// takeName adds a name to those that are taken.
func takeName(taken map[string]digest.Digest, ref, image string) error {
	id, err := parseDigest(image)
	if err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return fault.New(errdefs.ErrInvalidArgument, "name %s: %w", shown(ref), err)
	}
	if digested, ok := named.(reference.Digested); ok {
		// Beside a digest, a tag says nothing.
		if named, err = reference.WithDigest(reference.TrimNamed(named), digested.Digest()); err != nil {
			return fault.New(errdefs.ErrInvalidArgument, "name %s: %w", shown(ref), err)
		}
	}
	name := reference.TagNameOnly(named).String()
	if other, ok := taken[name]; ok && other != id {
		return fault.New(errdefs.ErrAlreadyExists, "%s is the name of image %s too", name, other)
	}
	taken[name] = id
	return nil
}

// byImage arranges names by image.
func byImage(taken map[string]digest.Digest) names {
	all := names{}
	for _, name := range slices.Sorted(maps.Keys(taken)) {
		of := all[taken[name]]
		if ref, err := reference.ParseNamed(name); err == nil && isDigested(ref) {
			of.digests = append(of.digests, name)
		} else {
			of.tags = append(of.tags, name)
		}
		all[taken[name]] = of
	}
	return all
}

func isDigested(ref reference.Named) bool {
	_, ok := ref.(reference.Digested)
	return ok
}
