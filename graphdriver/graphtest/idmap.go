//go:build linux

package graphtest

import (
	"archive/tar"
	"bytes"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var idMapTests = []Test{
	{"IDMap", idMapped},
}

// idMapped: files are owned by the host's ids in the layers and by the container's ids in tars.
func idMapped(t testing.TB, c Config) {
	if c.NewIDMapped == nil {
		return // Run says so
	}
	const hostUID, hostGID, count = 100000, 200000, 65536
	l := layers{t, c.NewIDMapped(t, user.IdentityMapping{
		UIDMaps: []user.IDMap{{ID: 0, ParentID: hostUID, Count: count}},
		GIDMaps: []user.IDMap{{ID: 0, ParentID: hostGID, Count: count}},
	})}
	owner := func(e entry) [2]uint32 { return [2]uint32{e.uid, e.gid} }

	id := l.layer("")
	assert.Equal(t, [2]uint32{hostUID, hostGID}, owner(l.scan(id)["."]), "the root of an empty layer")

	l.apply(id, "", makeTar(t,
		tar.Header{Name: "root", Typeflag: tar.TypeReg, Mode: 0o4755, Size: 1},
		tar.Header{Name: "user", Typeflag: tar.TypeReg, Uid: 1000, Gid: 1001},
		tar.Header{Name: "last/", Typeflag: tar.TypeDir, Uid: count - 1, Gid: count - 1, Mode: 0o755},
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "x", Uid: 5, Gid: 6},
		regular("made/f", 1),
	))
	applied := l.scan(id)
	for name, want := range map[string][2]uint32{
		"root":   {hostUID, hostGID},
		"user":   {hostUID + 1000, hostGID + 1001},
		"last":   {hostUID + count - 1, hostGID + count - 1},
		"link":   {hostUID + 5, hostGID + 6},
		"made":   {hostUID, hostGID},
		"made/f": {hostUID, hostGID},
	} {
		assert.Equal(t, want, owner(applied[name]), "host owner of %s", name)
	}
	assert.Equal(t, uint32(unix.S_IFREG|0o4755), applied["root"].mode, "setuid survives the change of owner")

	child := l.layer(id)
	assertSameTree(t, applied, l.scan(child), "the child")
	l.edit(child, func(w tree) {
		w = w.at(editTime)
		w.file("new", "x")
		w.chown("new", hostUID+33, hostGID+44)
		w.chown("root", hostUID+1, hostGID+2)
	})
	assert.Equal(t, []string{"A /new", "C /root"}, l.agree(child, id, loss{}))
	got := map[string][2]int{}
	for _, h := range headers(t, l.diff(child, "")) {
		got[h.Name] = [2]int{h.Uid, h.Gid}
	}
	assert.Equal(t, map[string][2]int{
		"root": {1, 2}, "user": {1000, 1001}, "last/": {count - 1, count - 1}, "link": {5, 6}, "made/": {0, 0}, "made/f": {0, 0}, "new": {33, 44},
	}, got, "container owners in the tar")

	unmapped := newID()
	require.NoError(t, l.Create(unmapped, "", nil))
	_, err := l.ApplyDiff(unmapped, "", bytes.NewReader(makeTar(t, tar.Header{Name: "f", Typeflag: tar.TypeReg, Uid: count})))
	require.Error(t, err, "an owner that the map does not have")
	require.NoError(t, l.Remove(unmapped))

	foreign := l.filled("", func(w tree) { w.file("f", "x") }) // owned by the host's root
	_, err = readDiff(l.Driver, foreign, "")
	require.Error(t, err, "an owner that the map does not have")
}
