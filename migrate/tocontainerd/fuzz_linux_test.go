package tocontainerd

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/image"
)

// FuzzTree: parts of a tar that an attacker has made read nothing outside of the tree.
func FuzzTree(f *testing.F) {
	for _, seed := range []string{
		`{"type":2,"payload":"aGVhZGVy","position":0}` + "\n" + `{"type":1,"name":"file","size":4,"payload":"2eXLbvJ8t4w=","position":1}` + "\n",
		`{"type":1,"name":"link/secret","size":6,"payload":"AAAAAAAAAAA=","position":0}`,
		`{"type":1,"name":"../secret","size":6}`, `{"type":1,"name":"/pipe","size":6}`, `{"type":1,"name_raw":"AA==","size":-1,"payload":"AAA="}`, "{", "",
	} {
		f.Add([]byte(seed))
	}
	top := f.TempDir()
	files := filepath.Join(top, "tree")
	require.NoError(f, os.Mkdir(files, 0o700))
	require.NoError(f, os.WriteFile(filepath.Join(files, "file"), []byte("data"), 0o600))
	require.NoError(f, os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600))
	require.NoError(f, os.Symlink(top, filepath.Join(files, "link")))
	require.NoError(f, unix.Mkfifo(filepath.Join(files, "pipe"), 0o600))
	f.Fuzz(func(t *testing.T, parts []byte) {
		dir, err := os.Open(files)
		require.NoError(t, err)
		defer dir.Close()
		var out bytes.Buffer
		if err := image.JoinParts(t.Context(), &out, tree{dir}, bytes.NewReader(parts)); err == nil {
			assert.LessOrEqual(t, out.Len(), len(parts)+len("data")*len(parts))
		}
		if !bytes.Contains(parts, []byte("c2VjcmV0")) { // in base64
			assert.NotContains(t, out.String(), "secret")
		}
	})
}
