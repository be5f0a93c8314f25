package daemons

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// sampleImage is an image of three layers: busybox, files, and changes to those.
func sampleImage(t *testing.T, h *harness.Host) v1.Image {
	t.Helper()
	return harness.BusyboxImage(t, h.Programs,
		append(harness.ManyFiles(300),
			harness.File{Path: "data/"},
			harness.File{Path: "data/change", Data: "first\n"},
			harness.File{Path: "data/remove", Data: "first\n"},
			harness.File{Path: "data/lower", Data: "first\n"},
			harness.File{Path: "data/move/"},
			harness.File{Path: "data/move/file", Data: "first\n"},
			harness.File{Path: "data/tree/"},
			harness.File{Path: "data/tree/file", Data: "first\n"},
			harness.File{Path: "data/setuid", Data: "x", Mode: 0o4755},
		),
		[]harness.File{
			{Path: "data/"},
			{Path: "data/lower", Data: "second\n"},
			{Path: "data/.wh.remove"},
		},
	)
}

// changeScript changes a container of the sample image in each way that there is, and says so.
const changeScript = `set -e
test ! -e /data/remove
test "$(cat /data/lower)" = second
echo second >/data/change
rm -r /data/tree
mkdir /data/new
echo new >/data/new/file
ln /data/new/file /data/new/hard
ln -s file /data/new/soft
chmod 0711 /data/setuid
mv /data/move /data/moved
echo same bytes >/data/same; chown 1000:1000 /data/same
touch /changed
echo changed`

// checkScript tells whether a container has what changeScript did.
const checkScript = `set -e
test "$(cat /data/change)" = second
test ! -e /data/tree
test "$(cat /data/new/soft)" = new
test /data/new/hard -ef /data/new/file
test "$(stat -c %a /data/setuid)" = 711
test "$(stat -c %u:%g /data/same)" = 1000:1000
test ! -e /data/move
test "$(cat /data/moved/file)" = first
test "$(cat /files/0001/000123)" = "file 123"
echo as committed`

// intactScript tells whether a container has what the sample image has, and nothing of changeScript.
const intactScript = `set -e
test "$(cat /data/change)" = first
test "$(cat /data/lower)" = second
test "$(cat /data/tree/file /data/move/file)" = "$(printf 'first\nfirst')"
test ! -e /data/remove
test "$(find /files -type f | wc -l)" -eq 300
test "$(find /files -type f | sort | xargs cat | md5sum)" = "$(seq 0 299 | while read n; do echo "file $n"; done | md5sum)"
echo intact`

// changedPaths are the changes of changeScript as docker diff names them, sorted by path.
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
