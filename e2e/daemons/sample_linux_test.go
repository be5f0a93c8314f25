package daemons

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// changedPaths are the changes of harness.ChangeScript as docker diff names them, sorted by path.
var changedPaths = []string{
	"A /changed", "C /data", "C /data/change", "D /data/move", "A /data/moved", "A /data/moved/file", "A /data/new",
	"A /data/new/file", "A /data/new/hard", "A /data/new/soft", "A /data/same", "C /data/setuid", "D /data/tree",
}

// manyImage is an image of 50,000 files.
func manyImage(t *testing.T, h *harness.Host) v1.Image {
	t.Helper()
	return harness.BusyboxImage(t, h.Programs, harness.ManyFiles(50_000))
}

// fewChangesScript makes three changes in a container of manyImage, fewChangedPaths as docker diff names them.
const fewChangesScript = `set -e
echo changed >/files/0100/010000
rm /files/0200/020000
echo new >/files/new
echo changed`

var fewChangedPaths = []string{
	"C /files", "C /files/0100", "C /files/0100/010000", "C /files/0200", "D /files/0200/020000", "A /files/new",
}

// sameLayer compares trees as far as layers carry them.
var sameLayer = treecmp.Options{WholeSeconds: true}
