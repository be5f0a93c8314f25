package oldgraph

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func isKind(err, kind error) bool { return errors.Is(err, kind) }

func runCopy(from, to string) (string, error) {
	out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput()
	return string(out), err
}

// readTree has the text of each file, the target of each symbolic link, and "c" for a device.
func readTree(t testing.TB, dir string) map[string]string {
	tree := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		require.NoError(t, err)
		name := strings.TrimPrefix(path, dir)
		switch entry.Type() {
		case fs.ModeDir:
		case 0:
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			tree[name] = string(text)
		case fs.ModeSymlink:
			tree[name], err = os.Readlink(path)
			require.NoError(t, err)
		default:
			tree[name] = "c"
		}
		return nil
	}))
	return tree
}
