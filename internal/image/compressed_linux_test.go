package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestImportCompressed imports a root filesystem and an image, each compressed as tar would read it.
func TestImportCompressed(t *testing.T) {
	s := newTestStore(t)
	rootfs := filepath.Join(t.TempDir(), "debian.tar")
	require.NoError(t, os.WriteFile(rootfs, baseTar(t), 0o600))
	img := makeImage(t, baseTar(t))
	archive := writeDockerArchive(t, map[string]v1.Image{"app:1": img})
	for _, program := range []string{"bzip2", "xz"} {
		for _, path := range []string{rootfs, archive} {
			require.NoError(t, exec.Command(program, "--keep", path).Run())
			suffix := map[string]string{"bzip2": ".bz2", "xz": ".xz"}[program]
			imported := s.mustImport(t, path+suffix, ImportOptions{Replace: true})
			assert.Equal(t, diffIDs(t, img), imported.Image.DiffIDs())
			assert.Equal(t, map[string]string{rootfs: "debian", archive: "app:1"}[path], imported.Image.Name)
		}
	}
}
