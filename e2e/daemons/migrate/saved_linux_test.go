package migrate

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// savedImage is an image in an archive of docker save.
type savedImage struct {
	config  digest.Digest // of the bytes
	diffIDs []string      // digests of the layers' tars
	names   []string
}

// savedImages is docker save of all these images. It returns them by the digest of the config.
func savedImages(t *testing.T, ctx context.Context, e *harness.Engine, ids []string) map[digest.Digest]savedImage {
	t.Helper()
	resp, err := e.ImageSave(ctx, ids)
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Close()) }()
	return readSaved(t, resp)
}

// readSaved reads an archive of docker save.
func readSaved(t *testing.T, archive io.Reader) map[digest.Digest]savedImage {
	t.Helper()
	digests := map[string]digest.Digest{} // by file, of the bytes after decompression
	links := map[string]string{}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	r := tar.NewReader(bufio.NewReaderSize(archive, 1<<20))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		switch {
		case h.Name == "manifest.json":
			require.NoError(t, json.NewDecoder(r).Decode(&manifest))
		case h.Typeflag == tar.TypeReg:
			digests[h.Name], err = digest.FromReader(decompress(t, r))
			require.NoError(t, err)
		case h.Typeflag == tar.TypeSymlink:
			links[h.Name] = path.Join(path.Dir(h.Name), h.Linkname)
		}
	}
	images := map[digest.Digest]savedImage{}
	for _, m := range manifest {
		img := savedImage{config: digests[m.Config], names: slices.Sorted(slices.Values(m.RepoTags))}
		for _, layer := range m.Layers {
			if to := links[layer]; to != "" {
				layer = to
			}
			img.diffIDs = append(img.diffIDs, digests[layer].String())
		}
		require.Contains(t, m.Config, img.config.Encoded())
		if earlier, ok := images[img.config]; ok {
			img.names = slices.Sorted(slices.Values(append(img.names, earlier.names...)))
		}
		images[img.config] = img
	}
	return images
}

// decompress returns a layer as it was before it was compressed, if it was.
func decompress(t *testing.T, r io.Reader) io.Reader {
	t.Helper()
	buffered := bufio.NewReader(r)
	magic, _ := buffered.Peek(4)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		gz, err := gzip.NewReader(buffered)
		require.NoError(t, err)
		return gz
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1))
		require.NoError(t, err)
		t.Cleanup(z.Close)
		return z
	}
	return buffered
}
