package migrate

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// maxLayers is the most that Docker Engine accepts, whatever the driver. It cannot have the image of 200 layers; podman has.
const maxLayers = 125

// image is an image that an engine loads.
type image struct {
	tags []string // none: it has no name
	v1.Image
}

// name is the image's first, or "".
func (img image) name() string { return strings.Join(img.tags[:min(1, len(img.tags))], "") }

// loadedImages are images with features that a migration may lose. All have a shell.
func loadedImages(t testing.TB, p harness.Programs) []image {
	t.Helper()
	base := harness.BusyboxImage(t, p)
	shared := withLayer(t, base, "shared", entry{path: "shared/"}, entry{path: "shared/file", data: "shared\n"})
	return []image{
		{tags("base:1"), base},
		{tags("shared:1"), shared},
		{tags("shared:2"), withLayer(t, shared, "more", entry{path: "shared/"}, entry{path: "shared/more", data: "more\n"})},
		{tags("hardlinks:1"), withLayer(t, base, "hard links",
			entry{path: "links/"},
			entry{path: "links/b", data: "one file\n", mode: 0o4755},
			entry{path: "links/a", kind: tar.TypeLink, link: "links/b"},
			entry{path: "links/sub/"},
			entry{path: "links/sub/c", kind: tar.TypeLink, link: "links/b"},
			entry{path: "links/soft", link: "sub/c"},
			entry{path: "links/softer", kind: tar.TypeLink, link: "links/soft"},
		)},
		{tags("devices:1"), withLayer(t, base, "devices",
			entry{path: "special/"},
			entry{path: "special/null", kind: tar.TypeChar, device: [2]int64{1, 3}, mode: 0o666},
			entry{path: "special/large", kind: tar.TypeChar, device: [2]int64{300, 70000}},
			entry{path: "special/disk", kind: tar.TypeBlock, device: [2]int64{7, 0}, mode: 0o660, uid: 6},
			entry{path: "special/pipe", kind: tar.TypeFifo},
		)},
		{tags("capabilities:1"), withLayer(t, base, "file capabilities",
			entry{path: "program", data: "#!/bin/sh\n", mode: 0o755, xattrs: map[string]string{"security.capability": capability()}},
		)},
		{tags("xattrs:1"), withLayer(t, base, "extended attributes",
			entry{path: "attributes/", xattrs: map[string]string{"user.directory": "yes"}},
			entry{path: "attributes/file", data: "x", xattrs: map[string]string{"user.one": "1", "user.binary": "a\x01\xff", "trusted.cowtest": "t"}},
		)},
		{tags("deleted:1"), withLayer(t,
			withLayer(t, base, "things to delete",
				entry{path: "gone/"}, entry{path: "gone/file", data: "1"}, entry{path: "gone/sub/"}, entry{path: "gone/sub/file", data: "2"},
				entry{path: "kept/"}, entry{path: "kept/one", data: "1"}, entry{path: "kept/two", data: "2"},
			), "deletions", entry{path: ".wh.gone"}, entry{path: "kept/"}, entry{path: "kept/.wh.one"})},
		{tags("replaced:1"), replaced(t, base)},
		{tags("deep:1"), deep(t, base, maxLayers)},
		{tags("twice:1"), twice(t, base)},
		{tags("volumes:1"), withConfig(t, withLayer(t, base, "a volume's files",
			entry{path: "volume/", mode: 0o1777}, entry{path: "volume/file", data: "from the image\n", uid: 1000},
		), func(c *v1.Config) { c.Volumes = map[string]struct{}{"/volume": {}} })},
		{tags("tags:1", "registry.example.com:5000/team/tags:other"), withConfig(t, base, func(c *v1.Config) {
			c.Labels, c.Env = map[string]string{"which": "tags"}, append(c.Env, "TAGS=two")
		})},
		{nil, withLayer(t, base, "nothing to call it", entry{path: "untagged", data: "untagged\n"})},
		{tags("times:1"), withLayer(t, base, "times",
			entry{path: "times/", time: time.Unix(1_000_000_000, 999_999_999)},
			entry{path: "times/epoch", time: time.Unix(0, 1)},
			entry{path: "times/future", time: time.Unix(4_000_000_000, 123_456_789)},
			entry{path: "times/link", link: "epoch", time: time.Unix(1_234_567_890, 987_654_321)},
		)},
		{tags("names:1"), withLayer(t, base, "odd names",
			entry{path: "names/"},
			entry{path: "names/with space\nand line", data: "1"},
			entry{path: "names/ünïcödé", data: "2"},
			entry{path: "names/" + strings.Repeat("long", 63), data: "3"},
			entry{path: "names/-rf", data: "4"},
			entry{path: "names/back\\slash\"quote", data: "5"},
			entry{path: "names/" + strings.Repeat(strings.Repeat("d", 100)+"/", 12), mode: 0o700},
		)},
		{tags("owners:1"), withLayer(t, base, "owners and modes",
			entry{path: "owners/", mode: 0o2770, uid: 100_000},
			entry{path: "owners/none", data: "n", mode: 0o1, uid: 65534},
			entry{path: "owners/all", data: "a", mode: 0o7777, uid: 4_000_000_000},
		)},
		{tags("data:1"), withLayer(t, base, "some data",
			entry{path: "zeros", data: strings.Repeat("\x00", 3<<20)},
			entry{path: "data", data: strings.Repeat("0123456789abcdef", 64<<10)},
			entry{path: "empty"},
		)},
		{tags("sample:1"), harness.SampleImage(t, p)},
	}
}

func tags(list ...string) []string {
	for i, tag := range list {
		if !strings.Contains(tag, "/") {
			list[i] = "cowtest/" + tag
		}
	}
	return list
}

// replaced has directories where files were, and the reverse, and directories that hide those below.
func replaced(t testing.TB, img v1.Image) v1.Image {
	t.Helper()
	img = withLayer(t, img, "things to replace",
		entry{path: "directory/"}, entry{path: "directory/a", data: "1"},
		entry{path: "file", data: "file\n"},
		entry{path: "opaque/"}, entry{path: "opaque/old", data: "old\n"}, entry{path: "opaque/sub/"}, entry{path: "opaque/sub/old", data: "old\n"},
		entry{path: "again/"}, entry{path: "again/sub/"}, entry{path: "again/sub/old", data: "old\n"},
		entry{path: "soft", link: "directory"},
	)
	return withLayer(t, img, "replacements",
		entry{path: "directory", data: "a file now\n"},
		entry{path: "file/"}, entry{path: "file/inside", data: "a directory now\n"},
		entry{path: "opaque/", mode: 0o700}, entry{path: "opaque/.wh..wh..opq"}, entry{path: "opaque/new", data: "new\n"},
		entry{path: "opaque/sub/"}, entry{path: "opaque/sub/new", data: "new\n"},
		entry{path: "again/"}, entry{path: "again/.wh.sub"},
		entry{path: "soft/"}, entry{path: "soft/inside", data: "no longer a link\n"},
	)
}

// deep has as many layers as are asked for, each of which changes a file of the layer below.
func deep(t testing.TB, img v1.Image, layers int) v1.Image {
	t.Helper()
	have, err := img.Layers()
	require.NoError(t, err)
	for n := len(have) + 1; n <= layers; n++ {
		img = withLayer(t, img, fmt.Sprintf("layer %d", n),
			entry{path: "deep/"},
			entry{path: "deep/last", data: fmt.Sprintf("%d\n", n)},
			entry{path: fmt.Sprintf("deep/%03d", n), data: fmt.Sprintf("%d\n", n)},
			entry{path: fmt.Sprintf("deep/.wh.%03d", n-2)},
		)
	}
	return img
}

// twice has a layer twice, with another one between, a layer of nothing, and an instruction without a layer.
func twice(t testing.TB, img v1.Image) v1.Image {
	t.Helper()
	same := tarOf(t, []entry{{path: "twice/"}, {path: "twice/file", data: "1\n"}})
	img = withTar(t, img, "first time", same)
	img = withLayer(t, img, "between", entry{path: "twice/"}, entry{path: "twice/file", data: "2\n"}, entry{path: "twice/more"})
	img = withTar(t, img, "second time", same)
	img = withTar(t, img, "nothing", make([]byte, 1024))
	return withEmptyLayer(t, img, "LABEL nothing")
}

// loadImages has the engine load the images, all from one archive.
func loadImages(t *testing.T, ctx context.Context, e *harness.Engine, dir string, images []image) {
	t.Helper()
	archive := filepath.Join(dir, "images.tar")
	saveImages(t, archive, images)
	require.NoError(t, e.Load(ctx, archive))
	require.NoError(t, os.Remove(archive))
}

// saveImages writes the images in the format of docker save.
func saveImages(t testing.TB, archive string, images []image) {
	t.Helper()
	refs := make(map[name.Reference]v1.Image)
	for _, img := range images {
		for _, tag := range img.tags {
			ref, err := name.NewTag(tag, name.WithDefaultRegistry("docker.io"))
			require.NoError(t, err)
			refs[ref] = img.Image
		}
		if len(img.tags) == 0 {
			digest, err := img.Digest()
			require.NoError(t, err)
			ref, err := name.NewDigest("cowtest/untagged@" + digest.String())
			require.NoError(t, err)
			refs[ref] = img.Image
		}
	}
	require.NoError(t, tarball.MultiRefWriteToFile(archive, refs))
}

// importImage is docker import of a root filesystem.
func importImage(t *testing.T, ctx context.Context, e *harness.Engine, reference string, data []byte, changes ...string) {
	t.Helper()
	resp, err := e.ImageImport(ctx, client.ImageImportSource{Source: bytes.NewReader(data), SourceName: "-"}, reference,
		client.ImageImportOptions{Changes: changes, Message: "imported"})
	require.NoError(t, err)
	var out bytes.Buffer
	_, err = out.ReadFrom(resp)
	require.NoError(t, err)
	require.NoError(t, resp.Close())
	require.NotContains(t, out.String(), `"error"`)
}

// importedRoot is the tar that importImage imports.
func importedRoot(t testing.TB, p harness.Programs) []byte {
	t.Helper()
	files, err := harness.BusyboxFiles(p)
	require.NoError(t, err)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(t, harness.WriteFiles(w, files))
	for _, e := range []entry{{path: "imported", data: "imported\n"}, {path: "imported.hard", kind: tar.TypeLink, link: "imported"}} {
		require.NoError(t, w.WriteHeader(e.header()))
		_, err := w.Write([]byte(e.data))
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return buf.Bytes()
}

// buildImage builds an image of two instructions in the classic builder. The engine keeps an image of the first, without a
// name.
func buildImage(ctx context.Context, e *harness.Engine) error {
	return e.Build(ctx, "cowtest/built:1", []harness.File{{Path: "Dockerfile", Data: `FROM cowtest/base:1
RUN mkdir /built && echo first >/built/first && ln /built/first /built/link
RUN echo second >/built/second && rm /built/link
`}}, build.BuilderV1)
}
