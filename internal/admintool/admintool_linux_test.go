package admintool

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLook(t *testing.T) {
	dir := t.TempDir()
	const name = "cowshed-test-tool"
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755))
	t.Setenv("PATH", dir)
	path, err := Look(name)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, name), path)

	path, err = Look("ldconfig") // of libc-bin, in no user's PATH
	require.NoError(t, err)
	assert.Equal(t, "sbin", filepath.Base(filepath.Dir(path)))

	_, err = Look("cowshed-no-such-tool")
	require.ErrorIs(t, err, exec.ErrNotFound)
}
