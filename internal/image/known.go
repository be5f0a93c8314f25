package image

import (
	"context"
	"encoding/json"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/atomicfile"
)

const (
	// knownSuffix ends the name of the file with the blobs that were made of a layer for registries.
	knownSuffix = ".blobs.json"
	// maxKnownSize is how long such a file may be.
	maxKnownSize = 64 << 10
)

// knownBlob is a blob that was made of a layer.
type knownBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

func (s *Store) knownFile(layer string) string { return s.path(tarSplitDir, layer+knownSuffix) }

// known are the blobs that were made of a layer, by their media types. There are none if the file cannot be read: it only spares work.
func (s *Store) known(layer string) map[string]knownBlob {
	blobs := make(map[string]knownBlob)
	f, err := os.Open(s.knownFile(layer))
	if err != nil {
		return blobs
	}
	defer f.Close()
	data, err := readDocument(f, maxKnownSize)
	if err != nil || decodeJSON(data, "blobs of layer "+layer, &blobs) != nil {
		return make(map[string]knownBlob)
	}
	return blobs
}

// noteBlob notes the blob that was made of a layer for a registry.
func (s *Store) noteBlob(layer string, dest destination, b *blob) {
	if _, ok := dest.(haver); !ok {
		return
	}
	blobs, is := s.known(layer), knownBlob{b.digest, b.size}
	if blobs[b.format.MediaType()] == is {
		return
	}
	blobs[b.format.MediaType()] = is
	data, err := json.Marshal(blobs)
	if err == nil {
		err = atomicfile.WriteAs(s.knownFile(layer), temporaryPrefix, append(data, '\n'), 0o600)
	}
	if err != nil {
		s.log.Info("the next push compresses the layer again", "layer", layer, "reason", err)
	}
}

// atPlace is the blob of a layer that was made before, if the place has it. Otherwise it is nil.
func (s *Store) atPlace(ctx context.Context, layer planLayer, dest destination, format layertar.Format) *blob {
	h, ok := dest.(haver)
	if !ok || layer.diffID == "" {
		return nil
	}
	b, ok := s.known(layer.top)[format.MediaType()]
	if !ok || checkDigest(b.Digest) != nil || !h.has(ctx, b.Digest, b.Size) {
		return nil
	}
	return &blob{digest: b.Digest, diffID: layer.diffID, size: b.Size, format: format}
}
