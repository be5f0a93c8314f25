package changelist

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSorted(t *testing.T) {
	given := []archive.Change{{Path: "/b/c"}, {Path: "/a"}, {Path: "/b"}, {Path: "/b-c"}, {Path: "/a", Kind: archive.ChangeDelete}}
	got, err := Sorted(given)
	require.NoError(t, err)
	assert.Equal(t, []archive.Change{{Path: "/a"}, {Path: "/a", Kind: archive.ChangeDelete}, {Path: "/b"}, {Path: "/b-c"}, {Path: "/b/c"}}, got)
	assert.Equal(t, "/b/c", given[0].Path, "the list of the caller stays as it is")

	again, err := Sorted(got)
	require.NoError(t, err)
	assert.Equal(t, got, again)
}

func TestSortedRefuses(t *testing.T) {
	for _, path := range []string{"", "a", "/a/", "/a/../b", "//a", "/a/./b"} {
		_, err := Sorted([]archive.Change{{Path: "/"}, {Path: path}})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, path)
	}
}
