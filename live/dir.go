package live

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon"
)

// DirsIn is the directory, in a root, that has a directory of records for each home.
func DirsIn(root string) string { return filepath.Join(root, "live") }

// Dir is the directory of the records of a driver's layers, in the root that the driver was opened with. Each home has
// a directory of its own. If the home of a driver does not tell the place of the volumes, each place has one: see
// cowcommon.Placer.
func Dir(root, driver string, backend cowcommon.Backend) string {
	name := driver
	if place := cowcommon.Place(backend); place != "" {
		sum := sha256.Sum256([]byte(place))
		name += "-" + hex.EncodeToString(sum[:6])
	}
	return filepath.Join(DirsIn(root), name)
}
