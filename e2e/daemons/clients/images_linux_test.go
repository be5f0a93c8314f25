package clients

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// busybox is an image of one layer like the official images that suites use: all commands of a Debian busybox, and
// the files that each system has. more lies beside it.
func busybox(t testing.TB, p harness.Programs, more ...harness.File) v1.Image {
	t.Helper()
	program, err := p.Busybox()
	require.NoError(t, err)
	data, err := os.ReadFile(program)
	require.NoError(t, err)
	commands, err := exec.Command(program, "--list").Output()
	require.NoError(t, err)
	files := []harness.File{
		{Path: "bin/"}, {Path: "bin/busybox", Data: string(data), Mode: 0o755},
		{Path: "dev/"}, {Path: "etc/"},
		{Path: "etc/passwd", Data: "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"},
		{Path: "etc/group", Data: "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n"},
		{Path: "etc/shadow", Data: "root::10933:0:99999:7:::\n", Mode: 0o600},
		{Path: "home/"}, {Path: "root/", Mode: 0o700}, {Path: "tmp/", Mode: 0o1777},
		{Path: "usr/"}, {Path: "usr/bin/"}, {Path: "usr/bin/env", Link: "../../bin/env"}, {Path: "usr/sbin/"},
		{Path: "var/"}, {Path: "var/tmp/", Mode: 0o1777},
	}
	for _, command := range strings.Fields(string(commands)) {
		if command != "busybox" {
			files = append(files, harness.File{Path: "bin/" + command, Link: "busybox"})
		}
	}
	config := v1.Config{
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Cmd: []string{"sh"},
	}
	return harness.LayerImage(t, config, append(files, more...))
}

// push puts an image into a registry without TLS.
func push(t testing.TB, img v1.Image, reference string) {
	t.Helper()
	ref, err := name.ParseReference(reference, name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.Write(ref, img, remote.WithContext(t.Context())))
}

// configured is the image with changes to its configuration.
func configured(t testing.TB, img v1.Image, change func(*v1.Config)) v1.Image {
	t.Helper()
	file, err := img.ConfigFile()
	require.NoError(t, err)
	config := *file.Config.DeepCopy()
	change(&config)
	img, err = mutate.Config(img, config)
	require.NoError(t, err)
	return img
}

// pushIndex puts an index into a registry that has an image for this platform and another for another, and returns its
// digest.
func pushIndex(t testing.TB, img, other v1.Image, reference string) v1.Hash {
	t.Helper()
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for architecture, img := range map[string]v1.Image{runtime.GOARCH: img, "s390x": other} {
		file, err := img.ConfigFile()
		require.NoError(t, err)
		file = file.DeepCopy()
		file.Architecture = architecture
		img, err = mutate.ConfigFile(img, file)
		require.NoError(t, err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: architecture}},
		})
	}
	ref, err := name.ParseReference(reference, name.Insecure)
	require.NoError(t, err)
	require.NoError(t, remote.WriteIndex(ref, index, remote.WithContext(t.Context())))
	digest, err := index.Digest()
	require.NoError(t, err)
	return digest
}
