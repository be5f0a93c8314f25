package harness

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// SampleImage is an image of three layers: busybox, files, and changes to those.
func SampleImage(t testing.TB, p Programs) v1.Image {
	t.Helper()
	return BusyboxImage(t, p,
		append(ManyFiles(300),
			File{Path: "data/"},
			File{Path: "data/change", Data: "first\n"},
			File{Path: "data/remove", Data: "first\n"},
			File{Path: "data/lower", Data: "first\n"},
			File{Path: "data/move/"},
			File{Path: "data/move/file", Data: "first\n"},
			File{Path: "data/tree/"},
			File{Path: "data/tree/file", Data: "first\n"},
			File{Path: "data/setuid", Data: "x", Mode: 0o4755},
		),
		[]File{
			{Path: "data/"},
			{Path: "data/lower", Data: "second\n"},
			{Path: "data/.wh.remove"},
		},
	)
}

// ChangeScript changes a container of the sample image in all possible ways, and says so.
const ChangeScript = `set -e
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

// CheckScript tells whether a container has the changes of ChangeScript.
const CheckScript = `set -e
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

// IntactScript tells whether a container has the files of the sample image, and nothing of ChangeScript.
const IntactScript = `set -e
test "$(cat /data/change)" = first
test "$(cat /data/lower)" = second
test "$(cat /data/tree/file /data/move/file)" = "$(printf 'first\nfirst')"
test ! -e /data/remove
test "$(find /files -type f | wc -l)" -eq 300
test "$(find /files -type f | sort | xargs cat | md5sum)" = "$(seq 0 299 | while read n; do echo "file $n"; done | md5sum)"
echo intact`
