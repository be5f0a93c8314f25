package dockerroot

import (
	"context"
	"encoding/json"
	"path"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// addImages adds the images, with their names.
func (l *lister) addImages(ctx context.Context) error {
	names, err := l.readNames()
	if err != nil {
		return err
	}
	dir := path.Join(l.image, "imagedb/content/sha256")
	total := int64(0)
	err = l.eachID(ctx, dir, whatImage, func(file string) error {
		id := digest.NewDigestFromEncoded(digest.SHA256, file)
		named := names.take(id)
		image, err := l.readImage(path.Join(dir, file), id)
		if err != nil {
			l.problem(whatImage, string(id), named.first(), err)
			return nil
		}
		if total += int64(len(image.Config)); total > maxConfigs {
			return fault.New(errdefs.ErrResourceExhausted, "the configurations of images have more than %d bytes", maxConfigs)
		}
		image.Names, image.Digests = named.tags, named.digests
		l.inv.Images = append(l.inv.Images, *image)
		return nil
	})
	if err != nil {
		return err
	}
	l.addParents()
	for _, id := range names.ids() {
		l.problem(whatImage, string(id), names[id].first(), fault.New(errdefs.ErrNotFound, "%s has a name, but no configuration", id))
	}
	return nil
}

// addParents notes from which images others were made, as far as both are there. Docker follows parents to their end, so
// that there must be one.
func (l *lister) addParents() {
	parents := make(map[digest.Digest]digest.Digest)
	for _, image := range l.inv.Images {
		data, err := l.root.ReadFile(path.Join(l.image, "imagedb/metadata/sha256", image.ID.Encoded(), "parent"), maxLine)
		if err != nil {
			continue // most images have none
		}
		if parent, err := parseDigest(string(data)); err == nil {
			parents[image.ID] = parent
		}
	}
	there := make(map[digest.Digest]bool, len(l.inv.Images))
	for _, image := range l.inv.Images {
		there[image.ID] = true
	}
	ends := make(map[digest.Digest]bool, len(parents))
	for i := range l.inv.Images {
		image := &l.inv.Images[i]
		if parent := parents[image.ID]; there[parent] && hasEnd(parents, image.ID, ends) {
			image.Parent = parent
		}
	}
}

// hasEnd reports whether the way from an image to its last parent has an end. known are the answers so far.
func hasEnd(parents map[digest.Digest]digest.Digest, id digest.Digest, known map[digest.Digest]bool) bool {
	var way []digest.Digest
	var end bool
	for {
		answer, seen := known[id]
		if seen || parents[id] == "" {
			end = answer || !seen
			break
		}
		known[id] = false // until the end is found: a way that comes here again goes round
		way = append(way, id)
		id = parents[id]
	}
	for _, id := range way {
		known[id] = end
	}
	return end
}

// readImage reads an image, and finds its layers.
func (l *lister) readImage(file string, id digest.Digest) (*migrate.Image, error) {
	config, err := l.root.ReadFile(file, maxConfig)
	if err != nil {
		return nil, rootdir.NotFound(err)
	}
	if is := digest.FromBytes(config); is != id {
		return nil, fault.New(errdefs.ErrDataLoss, "the configuration is damaged: its digest is %s", is)
	}
	diffs, err := diffIDs(config)
	if err != nil {
		return nil, err
	}
	// A layer that is found by its chain ID has the right diff ID, and so have those below.
	chain := digest.Digest("")
	for _, diff := range diffs {
		chain = (&imageLayer{diff: diff, parent: chain}).computeChain()
		if _, err := l.layers.idOf(chain); err != nil {
			return nil, err
		}
	}
	return &migrate.Image{ID: id, Config: config, Layers: l.layers.idsOf(chain)}, nil
}

// diffIDs reads the diff IDs of an image's layers, base first.
func diffIDs(config []byte) ([]digest.Digest, error) {
	var image struct {
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &image); err != nil {
		return nil, notJSON(err)
	}
	if image.RootFS.Type != "layers" {
		return nil, fault.New(errdefs.ErrNotImplemented, "the root filesystem has the type %s", shown(image.RootFS.Type))
	}
	if n := len(image.RootFS.DiffIDs); n > maxDepth {
		return nil, fault.New(errdefs.ErrResourceExhausted, "it has %d layers", n)
	}
	var diffs []digest.Digest
	for _, s := range image.RootFS.DiffIDs {
		diff, err := parseDigest(s)
		if err != nil {
			return nil, fault.Wrap("read", "diff IDs", err)
		}
		diffs = append(diffs, diff)
	}
	return diffs, nil
}

// notJSON is the error of a file that should be JSON.
func notJSON(err error) error {
	return fault.New(errdefs.ErrDataLoss, "it is damaged: %w", err)
}
