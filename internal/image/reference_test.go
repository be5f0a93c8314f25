package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseReference(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	require.NoError(t, os.Mkdir("layout", 0o755))
	require.NoError(t, os.WriteFile("layout/oci-layout", nil, 0o644))
	require.NoError(t, os.Mkdir("plain", 0o755))
	require.NoError(t, os.WriteFile("image.tar", nil, 0o644))
	require.NoError(t, os.WriteFile("a:b.tar", nil, 0o644))
	require.NoError(t, os.MkdirAll("reg.example/x", 0o755))
	require.NoError(t, os.WriteFile("reg.example/x/oci-layout", nil, 0o644))

	for in, want := range map[string]Reference{
		"docker://busybox":               {Transport: Registry, Path: "busybox"},
		"docker://reg.example:5000/a:1":  {Transport: Registry, Path: "reg.example:5000/a:1"},
		"oci:layout":                     {Transport: OCILayout, Path: "layout"},
		"oci:layout:v1":                  {Transport: OCILayout, Path: "layout", Image: "v1"},
		"oci:new/dir:v1":                 {Transport: OCILayout, Path: "new/dir", Image: "v1"},
		"oci-archive:x.tar":              {Transport: OCIArchive, Path: "x.tar"},
		"oci-archive:-:v1":               {Transport: OCIArchive, Path: "-", Image: "v1"},
		"docker-archive:x.tar:debian:12": {Transport: DockerArchive, Path: "x.tar", Image: "debian:12"},
		"docker-archive:a:b.tar":         {Transport: DockerArchive, Path: "a:b.tar"},
		"rootfs:a:c.tar":                 {Transport: RootFS, Path: "a:c.tar"},
		"rootfs:-":                       {Transport: RootFS, Path: "-"},
		"-":                              {Path: "-"},
		"image.tar":                      {Path: "image.tar"},
		"a:b.tar":                        {Path: "a:b.tar"},
		"layout":                         {Transport: OCILayout, Path: "layout"},
		"reg.example/x":                  {Transport: OCILayout, Path: "reg.example/x"},
		"reg.example/y:1":                {Transport: Registry, Path: "reg.example/y:1"},
		"localhost/y":                    {Transport: Registry, Path: "localhost/y"},
	} {
		t.Run(in, func(t *testing.T) {
			got, err := ParseReference(in)
			require.NoError(t, err)
			assert.Equal(t, want, got)
			if want.Transport != guessed {
				again, err := ParseReference(got.String())
				require.NoError(t, err)
				assert.Equal(t, got, again, "String gives what is parsed")
			}
		})
	}

	for in, want := range map[string]error{
		"":                    errdefs.ErrInvalidArgument,
		"docker://":           errdefs.ErrInvalidArgument,
		"docker://UPPER/case": errdefs.ErrInvalidArgument,
		"oci:":                errdefs.ErrInvalidArgument,
		"oci::tag":            errdefs.ErrInvalidArgument,
		"plain":               errdefs.ErrInvalidArgument, // a directory that is no layout
		"debain.tar":          errdefs.ErrNotFound,        // a slip, not an image in a registry
		"./reg.example/none":  errdefs.ErrNotFound,
		"debian:12":           errdefs.ErrNotFound,
	} {
		t.Run("bad "+in, func(t *testing.T) {
			_, err := ParseReference(in)
			require.ErrorIs(t, err, want)
		})
	}
}

func TestParseDestination(t *testing.T) {
	file := filepath.Join(t.TempDir(), "there.tar")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	for in, ok := range map[string]bool{
		"oci:dir": true, "oci-archive:f": true, "docker-archive:-:a:1": true, "docker://reg.example/a": true,
		"containerd://moby/app": true, "containerd://k8s.io/reg.example/team/app:2": true,
		"containerd://moby": false, "containerd:///app": false, "containerd://a b/app": false, "containerd:moby/app": false,
		"containerd://moby/UPPER": false, "containerd://moby/app@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": false,
		"": false, "dir": false, "rootfs:f": false, file: false, "reg.example/a": false, "ocu:dir": false,
	} {
		_, err := ParseDestination(in)
		if ok {
			assert.NoError(t, err, in)
		} else {
			assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, in)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"debian", "debian:12", "reg.example:5000/team/app@sha256:abc", "a_b+c"} {
		assert.NoError(t, CheckName(name), name)
	}
	long := ""
	for range 300 {
		long += "a"
	}
	for _, name := range []string{"", ".hidden", "/abs", "-flag", "a b", "a\nb", "a%2Fb", "a\x00", "é", long} {
		assert.ErrorIs(t, CheckName(name), errdefs.ErrInvalidArgument, name)
	}
}
