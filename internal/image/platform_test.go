package image

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParsePlatform(t *testing.T) {
	for s, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "linux/amd64/v1": "linux/amd64", "linux/amd64/v3": "linux/amd64/v3",
		"linux/aarch64": "linux/arm64", "linux/arm64/v8": "linux/arm64", "linux/arm": "linux/arm/v7", "linux/arm/v7": "linux/arm/v7",
		"linux/armhf": "linux/arm/v7", "linux/i386": "linux/386",
	} {
		p, err := ParsePlatform(s)
		require.NoError(t, err)
		assert.Equal(t, want, FormatPlatform(p), s)
	}
	for _, s := range []string{"", "linux/", "/amd64", "a/b/c/d", "linux/*"} {
		_, err := ParsePlatform(s)
		assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, s)
	}
}

func entryFor(t *testing.T, platform string) ocispec.Descriptor {
	t.Helper()
	p, err := ParsePlatform(platform)
	require.NoError(t, err)
	return ocispec.Descriptor{Platform: &p}
}

func TestChoosePlatform(t *testing.T) {
	list := func(platforms ...string) (list []ocispec.Descriptor) {
		for _, p := range platforms {
			list = append(list, entryFor(t, p))
		}
		return list
	}
	for _, test := range []struct {
		asked string
		there []ocispec.Descriptor
		want  string // "": none
	}{
		{"linux/amd64", list("linux/amd64/v3", "linux/amd64", "linux/arm64"), "linux/amd64"},
		{"linux/amd64/v3", list("linux/amd64", "linux/amd64/v3", "linux/amd64/v2"), "linux/amd64/v3"},
		{"linux/amd64/v3", list("linux/amd64", "linux/amd64/v2"), "linux/amd64/v2"},
		{"linux/amd64", list("linux/amd64/v2"), ""},
		{"linux/amd64", list("linux/386"), ""},
		{"linux/arm64", list("linux/arm64/v8"), "linux/arm64"},
		{"linux/arm64/v8", list("linux/arm64"), "linux/arm64"},
		{"linux/arm64", list("linux/arm/v7"), ""},
		{"linux/arm/v7", list("linux/arm/v6", "linux/arm/v7"), "linux/arm/v7"},
		{"linux/arm/v7", list("linux/arm/v6", "linux/amd64"), "linux/arm/v6"},
		{"linux/arm/v6", list("linux/arm/v7"), ""},
	} {
		asked, err := ParsePlatform(test.asked)
		require.NoError(t, err)
		d, err := choosePlatform(test.there, asked)
		if test.want == "" {
			require.ErrorIs(t, err, errdefs.ErrNotFound, test.asked)
			continue
		}
		require.NoError(t, err, test.asked)
		assert.Equal(t, test.want, FormatPlatform(*d.Platform), test.asked)
	}
}

// TestHostPlatform chooses for a processor of the third level: an image for any amd64, else one for this processor
// alone, the plainest.
func TestHostPlatform(t *testing.T) {
	host := ocispec.Platform{OS: "linux", Architecture: "amd64", Variant: "v3"}
	w := want(host)
	w.exact, w.plain = "", true
	best := func(platforms ...string) string {
		found := ""
		var least ocispec.Platform
		for _, s := range platforms {
			p := *entryFor(t, s).Platform
			if w.matches(p) && (found == "" || w.compare(p, least) < 0) {
				found, least = s, p
			}
		}
		return found
	}
	assert.Equal(t, "linux/amd64", best("linux/386", "linux/amd64/v3", "linux/amd64/v2", "linux/amd64"))
	assert.Equal(t, "linux/amd64/v2", best("linux/386", "linux/amd64/v3", "linux/amd64/v2"))
	assert.Equal(t, "linux/amd64/v3", best("linux/amd64/v4", "linux/386", "linux/amd64/v3"))
	assert.Equal(t, "linux/386", best("linux/amd64/v4", "linux/386"))
	assert.Empty(t, best("linux/amd64/v4", "linux/arm64"))
}

// TestPlatformCases opens layouts that name platforms in the ways of the world.
func TestPlatformCases(t *testing.T) {
	for _, test := range []struct{ layout, asked, arch, variant string }{
		{"amd64-v2v3", "linux/amd64", "amd64", ""},
		{"amd64-v2v3", "linux/x86_64", "amd64", ""},
		{"amd64-v2v3", "linux/amd64/v3", "amd64", "v3"},
		{"arm64-no-variant", "linux/arm64/v8", "arm64", ""},
		{"arm64-no-variant", "linux/aarch64", "arm64", ""},
		{"armv7-config-without-variant", "linux/arm/v7", "arm", ""},
		{"armv7-config-without-variant", "linux/arm/v6", "arm", ""},
		{"only-arm64-index", "linux/arm64/v8", "arm64", ""},
		{"only-arm64-index", "", "arm64", ""},
	} {
		var opts OpenOptions
		if test.asked != "" {
			var err error
			opts.Platform, err = ParsePlatform(test.asked)
			require.NoError(t, err)
		}
		dir := filepath.Join("testdata", test.layout)
		for _, ref := range []string{"oci:" + dir, "oci-archive:" + tarDir(t, dir, nil)} {
			src, err := Open(t.Context(), mustParse(t, ref), opts)
			require.NoError(t, err, "%s of %s", test.asked, test.layout)
			config, err := parseConfig(src.config)
			require.NoError(t, err)
			assert.Equal(t, test.arch, config.Architecture)
			assert.Equal(t, test.variant, config.Variant)
			require.NoError(t, src.Close())
		}
	}
	_, err := Open(t.Context(), mustParse(t, "oci:testdata/only-arm64-index"), OpenOptions{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	assert.ErrorContains(t, err, "linux/arm64")
}
