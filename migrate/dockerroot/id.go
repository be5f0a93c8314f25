package dockerroot

import (
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/printable"
)

// idLength is the length of an ID: of 32 bytes in hexadecimal digits.
const idLength = 64

// initSuffix ends the ID of a layer that Docker makes between an image and a container.
const initSuffix = "-init"

// isID reports whether s is an ID of a container, or a digest without its algorithm.
func isID(s string) bool {
	return len(s) == idLength && strings.Trim(s, "0123456789abcdef") == ""
}

// isCacheID reports whether s is the ID that an image's layer has in the driver. BuildKit makes IDs of its own.
func isCacheID(s string) bool { return isID(s) || isBuildID(s) }

// isBuildID reports whether s is an ID of BuildKit: 25 digits to the base 36.
func isBuildID(s string) bool {
	return len(s) == 25 && strings.Trim(s, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}

// isMountID reports whether s is the ID that a container's layer has in the driver.
func isMountID(s string) bool { return isID(strings.TrimSuffix(s, initSuffix)) }

// isLayerID reports whether s is the ID that a layer has in the driver.
func isLayerID(s string) bool { return isCacheID(s) || isMountID(s) }

// parseID checks an ID that a file holds.
func parseID(data []byte, is func(string) bool) (string, error) {
	s := strings.TrimSpace(string(data))
	if !is(s) {
		return "", fault.New(errdefs.ErrInvalidArgument, "%s is no ID", shown(s))
	}
	return s, nil
}

// parseDigest checks a digest. Docker has no others than those of SHA-256.
func parseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(strings.TrimSpace(s))
	if algorithm, encoded, ok := strings.Cut(string(d), ":"); !ok || algorithm != string(digest.SHA256) || !isID(encoded) {
		return "", fault.New(errdefs.ErrInvalidArgument, "%s is no SHA-256 digest", shown(s))
	}
	return d, nil
}

// maxShown is how much of a name is shown.
const maxShown = 256

// shown makes text from the root fit for a message.
func shown(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown] + "..."
	}
	if s == "" {
		return `""`
	}
	return printable.Path(s)
}
