package live

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon"
)

// DirsIn is the directory, in a root, that has a directory of records for each home.
func DirsIn(root string) string { return filepath.Join(root, "live") }

// Dir is the directory of the records of a driver's layers, in the root that the driver was opened with. Each home has its own,
// and each place of a driver whose home does not tell the place.
func Dir(root, driver string, backend cowcommon.Backend) string {
	name := driver
	if place := cowcommon.Place(backend); place != "" {
		sum := sha256.Sum256([]byte(place))
		name += "-" + hex.EncodeToString(sum[:6])
	}
	return filepath.Join(DirsIn(root), name)
}
