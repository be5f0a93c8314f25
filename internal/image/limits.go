package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Limits on the memory for an image that is not trusted. They are far above those of real images: registries refuse
// manifests of more than 4 MiB.
const (
	maxManifestSize   = 4 << 20 // bytes; manifest, index, manifest.json
	maxConfigSize     = 8 << 20 // bytes
	maxArchiveEntries = 100_000 // entries in the tar of an image; not of a layer
	maxIndexDepth     = 4       // indexes that name indexes
)

// ErrMalformed says that the input cannot be an image.
var ErrMalformed = errors.New("not a readable image")

var errTooLarge = fmt.Errorf("too large: %w", ErrMalformed)

// asMalformed makes an error for a part of an image that is not there one of the image.
func asMalformed(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, ErrMalformed)
	}
	return err
}

// readDocument reads all of r, which may have up to limit bytes.
func readDocument(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes: %w", limit, errTooLarge)
	}
	return data, nil
}

// spoolDir is where large temporary files go: TMPDIR, or else /var/tmp, which unlike /tmp is hardly ever
// in memory.
func spoolDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	if info, err := os.Stat("/var/tmp"); err == nil && info.IsDir() {
		return "/var/tmp"
	}
	return os.TempDir()
}

// newSpool makes a temporary file without a name where that can be, so that nothing is left of it however
// the process ends. close removes it.
func newSpool() (f *os.File, remove func() error, err error) {
	f, err = os.CreateTemp(spoolDir(), "cowshed-")
	if err != nil {
		return nil, nil, fmt.Errorf("make temporary file: %w", err)
	}
	unlinked := os.Remove(f.Name()) == nil // not on Windows, where an open file keeps its name
	return f, func() error {
		err := f.Close()
		if !unlinked {
			err = errors.Join(err, os.Remove(f.Name()))
		}
		return err
	}, nil
}
