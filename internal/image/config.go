package image

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// maxLayers is far more than the 127 that the kernel's overlay filesystem allowed images to have.
const maxLayers = 1024

// parseConfig reads an image's config and checks the fields that later steps rely on.
func parseConfig(raw []byte) (*ocispec.Image, error) {
	var config ocispec.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("config: %w: %w", err, ErrMalformed)
	}
	if config.OS == "windows" {
		return nil, fault.New(errdefs.ErrNotImplemented, "config: the image is for Windows")
	}
	if config.RootFS.Type != "layers" {
		return nil, fmt.Errorf("config: rootfs.type is %q, not \"layers\": %w", clip(config.RootFS.Type), ErrMalformed)
	}
	if n := len(config.RootFS.DiffIDs); n > maxLayers {
		return nil, fmt.Errorf("config: %d layers, more than %d: %w", n, maxLayers, ErrMalformed)
	}
	for i, id := range config.RootFS.DiffIDs {
		if err := checkDigest(id); err != nil {
			return nil, fmt.Errorf("config: rootfs.diff_ids[%d]: %w", i, err)
		}
	}
	return &config, nil
}

// layerIDs returns the names of the layers that an image with these diff IDs has, base first: the
// hexadecimal digits of their chain IDs.
func layerIDs(diffIDs []digest.Digest) []string {
	chain := identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
	ids := make([]string, len(chain))
	for i, id := range chain {
		ids[i] = id.Encoded()
	}
	return ids
}

// newConfig makes the config of an image that has none.
func newConfig(platform ocispec.Platform, created time.Time, history []ocispec.History, diffIDs []digest.Digest) ([]byte, error) {
	return json.Marshal(ocispec.Image{
		Created:  &created,
		Platform: platform,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
		History:  history,
	})
}

// missingHistory makes entries for those layers that a history, which need not be complete, has none for: readers take the
// entries that are not of empty layers for those of the layers, in order.
func missingHistory(history []json.RawMessage, layers int) ([]ocispec.History, error) {
	for _, entry := range history {
		var h ocispec.History
		if err := json.Unmarshal(entry, &h); err != nil {
			return nil, fmt.Errorf("config: history: %w", err)
		}
		if !h.EmptyLayer {
			layers--
		}
	}
	var missing []ocispec.History
	for range layers { // none if there are more entries than layers
		missing = append(missing, ocispec.History{Comment: "the image has no history for this layer"})
	}
	return missing, nil
}

// amendConfig returns raw with other diff IDs, with history added, and with created as its time unless that
// is zero. Whatever else the config says, members unknown here too, stays.
func amendConfig(raw []byte, created time.Time, added []ocispec.History, diffIDs []digest.Digest) ([]byte, error) {
	config := make(map[string]json.RawMessage)
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	rootfs := make(map[string]json.RawMessage)
	if err := json.Unmarshal(config["rootfs"], &rootfs); err != nil {
		return nil, fmt.Errorf("config: rootfs: %w", err)
	}
	var history []json.RawMessage
	if h, ok := config["history"]; ok {
		if err := json.Unmarshal(h, &history); err != nil {
			return nil, fmt.Errorf("config: history: %w", err)
		}
	}
	missing, err := missingHistory(history, len(diffIDs)-len(added))
	if err != nil {
		return nil, err
	}
	if len(added) == 0 {
		missing = nil // it stays as it came
	}
	for _, h := range append(missing, added...) {
		entry, err := json.Marshal(h)
		if err != nil {
			return nil, err
		}
		history = append(history, entry)
	}

	set := func(object map[string]json.RawMessage, member string, value any) (err error) {
		object[member], err = json.Marshal(value)
		return err
	}
	if err := set(rootfs, "diff_ids", diffIDs); err != nil {
		return nil, err
	}
	if err := set(config, "rootfs", rootfs); err != nil {
		return nil, err
	}
	if history != nil {
		if err := set(config, "history", history); err != nil {
			return nil, err
		}
	}
	if !created.IsZero() {
		if err := set(config, "created", created); err != nil {
			return nil, err
		}
	}
	return json.Marshal(config)
}
