package image

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// importThree imports an image of three layers as "app:1", and returns where it was imported from.
func importThree(t *testing.T, s *Store) (*Imported, string) {
	t.Helper()
	third := makeTar(t, entry{name: "third", data: "third"})
	archive := writeDockerArchive(t, map[string]v1.Image{"app:1": makeImage(t, baseTar(t), upperTar(t), third)})
	return s.mustImport(t, "docker-archive:"+archive, ImportOptions{Name: "app:1"}), archive
}

func assertGone(t *testing.T, s *Store) {
	t.Helper()
	assert.Empty(t, s.layerNames(t))
	images, err := s.List()
	require.NoError(t, err)
	assert.Empty(t, images)
	for _, dir := range []string{recordsDir, tarSplitDir} {
		entries, err := os.ReadDir(s.path(dir))
		require.NoError(t, err)
		assert.Empty(t, entries)
	}
}

// A removal that fails at any of the layers, or is stopped, leaves an image that is listed and can be removed.
func TestRemoveThatFails(t *testing.T) {
	for i, which := range []string{"base", "middle", "top"} {
		t.Run(which, func(t *testing.T) {
			s := newTestStore(t)
			imported, archive := importThree(t, s)
			layers := imported.Image.Layers()
			_, err := s.driver.Get(layers[i], "")
			require.NoError(t, err)
			_, err = s.Remove(t.Context(), "app:1")
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
			_, err = s.Get("app:1")
			require.NoError(t, err, "it is listed")
			assert.ElementsMatch(t, layers[:i+1], s.layerNames(t))
			require.NoError(t, s.driver.Put(layers[i]))

			if which == "base" {
				s.mustImport(t, "docker-archive:"+archive, ImportOptions{Name: "app:1"})
				assert.Len(t, s.layerNames(t), 3, "it can be made whole again")
			}
			_, err = s.Remove(t.Context(), "app:1")
			require.NoError(t, err)
			assertGone(t, s)
		})
	}
	t.Run("stopped", func(t *testing.T) {
		s := newTestStore(t)
		importThree(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Remove(ctx, "app:1")
		require.ErrorIs(t, err, context.Canceled)
		_, err = s.Get("app:1")
		require.NoError(t, err)
		assert.Len(t, s.layerNames(t), 3)
	})
}

func TestFullFilesystem(t *testing.T) {
	ways := map[string][]testfs.BtrfsOption{"simple quotas": {testfs.WithSimpleQuota()}}
	if testfs.Long() {
		ways["no quotas"], ways["classic quotas"] = nil, []testfs.BtrfsOption{testfs.WithClassicQuota()}
	}
	for name, quota := range ways {
		t.Run(name, func(t *testing.T) {
			mnt := testfs.Btrfs(t, append(quota, testfs.WithSize(256<<20))...)
			s := newTestStoreOn(t, mnt)
			importThree(t, s)
			big := make([]byte, 1<<20)
			_, _ = rand.Read(big) // never fails
			archive := writeDockerArchive(t, map[string]v1.Image{"big:1": makeImage(t, baseTar(t), makeTar(t, entry{name: "big", data: string(big)}))})
			before := s.layerNames(t)

			for _, space := range []testfs.Space{testfs.Data, testfs.Metadata} {
				testfs.Fill(t, mnt, space, 100)
				_, err := s.importRef(t, "docker-archive:"+archive, ImportOptions{Name: "big:1"})
				require.ErrorIs(t, err, unix.ENOSPC)
				assert.Equal(t, before, s.layerNames(t), "a failed import leaves nothing")
				_, err = s.Get("big:1")
				require.ErrorIs(t, err, errdefs.ErrNotFound)
			}
			_, err := s.Remove(t.Context(), "app:1")
			require.NoError(t, err)
			assertGone(t, s)

			require.NoError(t, os.RemoveAll(filepath.Join(mnt, "filler")))
			s.mustImport(t, "docker-archive:"+archive, ImportOptions{Name: "big:1"})
		})
	}
}
