package image

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/layertar"
)

var _ holder = (*layoutWriter)(nil)

// maxHolders is how many images of a layout are searched for layers, the last ones.
const maxHolders = 100

// held implements holder. Images that cannot be read are passed over.
func (l *layoutWriter) held(_ context.Context, diffIDs []digest.Digest, format layertar.Format) (most []*blob) {
	index, err := l.readIndex()
	if err != nil {
		return nil // finish says so
	}
	dir, err := openDir(l.dir)
	if err != nil {
		return nil
	}
	defer dir.close()
	entries := index.Manifests[max(0, len(index.Manifests)-maxHolders):]
	for _, d := range slices.Backward(entries) {
		image := &Source{}
		if image.fromManifest(dir, d, OpenOptions{}) != nil {
			continue
		}
		if found := image.heldIn(dir, diffIDs, format); len(found) > len(most) {
			most = found
		}
		if len(most) == len(diffIDs) {
			break
		}
	}
	return most
}

// heldIn finds the lowest layers of an image that have these diff IDs.
func (s *Source) heldIn(f files, diffIDs []digest.Digest, format layertar.Format) (found []*blob) {
	config, err := parseConfig(s.config)
	if err != nil {
		return nil
	}
	for i, layer := range s.layers {
		if i == len(diffIDs) || config.RootFS.DiffIDs[i] != diffIDs[i] || layer.mediaType != format.MediaType() {
			break
		}
		r, size, err := f.open(blobPath(layer.digest))
		if err != nil || r.Close() != nil || size != layer.size {
			break
		}
		found = append(found, &blob{digest: layer.digest, diffID: diffIDs[i], size: size, format: format})
	}
	return found
}
