package doclinks

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTree: no document, comment or script of this tree has a reference that leads nowhere.
func TestTree(t *testing.T) {
	dead, err := Dead("../../..")
	require.NoError(t, err)
	assert.Empty(t, dead)
}

func TestDead(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"README.md": "# One two\n[a](#one-two) [b](#three) [c](d/a.md#a-b)\n[d](d/a.md#x) [e](none.md) [f](https://x/y#z)\n" +
			"```\n[g](none.md)\n# Three\n```\n`[h](none.md)`\n",
		"d/a.md":         "## a, `b`\n## a b\n[a](../README.md) [b](#a-b-1) [c](#a-b-2)\n",
		"x.go":           "// docs/" + "none.md\n",
		"testdata/x.txt": "docs/" + "none.md",
	} {
		file := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	}
	dead, err := Dead(root)
	require.NoError(t, err)
	assert.Equal(t, []string{
		"README.md:2: #three", "README.md:3: d/a.md#x", "README.md:3: none.md",
		"d/a.md:3: #a-b-2", "x.go:1: docs/" + "none.md",
	}, dead)
}

func TestAnchor(t *testing.T) {
	assert.Equal(t, "upgrade-from-versions-without-build_limit", Anchor("Upgrade from versions without `build_limit`"))
	assert.Equal(t, "can-a-container-escape-default_limit", Anchor("Can a container escape `default_limit`?"))
	assert.Equal(t, "a-b", Anchor("[a](x.md) b"))
}
