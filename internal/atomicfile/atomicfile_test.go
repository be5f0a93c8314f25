package atomicfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const pattern = ".new-*"

// filesIn maps the names of files to their contents.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	files := make(map[string]string)
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		require.NoError(t, err)
		files[entry.Name()] = string(content)
	}
	return files
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, content := range []string{"first", "second"} {
		require.NoError(t, Write(path, []byte(content), 0o640))
		assert.Equal(t, map[string]string{"file": content}, filesIn(t, dir))
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o640), info.Mode())

	require.ErrorIs(t, Write(filepath.Join(dir, "none", "file"), nil, 0o600), fs.ErrNotExist)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "sub", "full", "x"), 0o700))
	require.Error(t, Write(filepath.Join(dir, "sub", "full"), nil, 0o600), "a directory is in the way")
	entries, err := os.ReadDir(filepath.Join(dir, "sub"))
	require.NoError(t, err)
	assert.Len(t, entries, 1, "the temporary file is gone")
}

func TestCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	make := func(content string) *File {
		f, err := Create(dir, pattern)
		require.NoError(t, err)
		_, err = f.WriteString(content)
		require.NoError(t, err)
		return f
	}
	f := make("discarded")
	assert.Len(t, filesIn(t, dir), 1)
	require.NoError(t, f.Discard())
	assert.Empty(t, filesIn(t, dir))

	require.NoError(t, make("first").CommitNew(path))
	require.ErrorIs(t, make("second").CommitNew(path), fs.ErrExist)
	assert.Equal(t, map[string]string{"file": "first"}, filesIn(t, dir))
	require.NoError(t, make("third").Commit(path))
	assert.Equal(t, map[string]string{"file": "third"}, filesIn(t, dir))
}
