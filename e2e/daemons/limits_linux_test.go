package daemons

import (
	"context"
	"testing"

	"github.com/moby/moby/api/types/build"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
)

// limited are the engines on Cowshed with more settings.
func limited(settings ...string) []engine {
	return []engine{
		{"docker-cowshed", "", onSnapshotter(cowshed(settings...))},
		{"debian-cowshed", "", onPlugin(settings...)},
	}
}

// bigContext is a context whose image has the files of limitScript, in a layer of a step and in a copied layer.
func bigContext() []harness.File {
	return []harness.File{{Path: "Dockerfile", Data: `FROM cowshed/sample:1 AS made
RUN dd if=/dev/urandom of=/big bs=1M count=64 conv=fsync
FROM cowshed/sample:1
COPY --from=made /big /copied
RUN test "$(stat -c %s /copied)" = 67108864
`}}
}

// deniedContext is a context whose step succeeds if it cannot write the files of limitScript.
func deniedContext() []harness.File {
	return []harness.File{{Path: "Dockerfile", Data: `FROM cowshed/sample:1
RUN dd if=/dev/urandom of=/big bs=1M count=64 conv=fsync 2>&1 | grep "Disk quota exceeded"
`}}
}

// bigBuild builds the image of bigContext.
func bigBuild(ctx context.Context, e engineHost, builder build.BuilderVersion) error {
	return e.Build(ctx, "cowshed/big:1", bigContext(), builder)
}

// TestDockerBuildLimits: default_limit is for containers, which the classic builder's steps are too, and build_limit for
// BuildKit's.
func TestDockerBuildLimits(t *testing.T) {
	const denied = "Disk quota exceeded"
	t.Run("default_limit", func(t *testing.T) {
		inEach(t, limited(`default_limit = "32M"`), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
			require.NoError(t, bigBuild(ctx, e, build.BuilderBuildKit))
			require.ErrorContains(t, bigBuild(ctx, e, build.BuilderV1), "non-zero code")

			result, err := e.RunContainer(ctx, "one", "cowshed/big:1", limitScript, nil)
			require.NoError(t, err)
			assert.Contains(t, result.Output, denied)
			assert.Contains(t, result.Output, "and then: again\n")
			require.NoError(t, e.Commit(ctx, "one", "cowshed/committed:1"))
			result, err = e.RunContainer(ctx, "two", "cowshed/committed:1", "cat /small", nil)
			require.NoError(t, err)
			assert.Equal(t, harness.Result{Output: "again\n"}, result)
		})
	})
	t.Run("build_limit", func(t *testing.T) {
		inEach(t, limited(`build_limit = "32M"`), func(t *testing.T, ctx context.Context, _ engine, e engineHost) {
			require.ErrorContains(t, bigBuild(ctx, e, build.BuilderBuildKit), "exit code: 1")
			require.NoError(t, e.Build(ctx, "cowshed/denied:1", deniedContext(), build.BuilderBuildKit))

			result, err := e.RunContainer(ctx, "one", "cowshed/sample:1", limitScript, nil)
			require.NoError(t, err)
			assert.NotContains(t, result.Output, denied)
		})
	})
}

// TestContainerdLimits: layers that containerd's client unpacks do not have the limit of containers. An image that is
// larger than build_limit is refused with an error that says so.
func TestContainerdLimits(t *testing.T) {
	big := []harness.File{{Path: "big", Data: incompressible(24 << 20)}}
	inEachSnapshotter(t, []snapshotter{cowshed(`default_limit = "16M"`)}, func(t *testing.T, ctx context.Context, h containerdHost) {
		img, err := h.store.ImportFile(ctx, h.SaveImage(harness.BusyboxImage(t, h.Programs, big), "cowshed/big:1"))
		require.NoError(t, err)
		result, err := h.store.Run(ctx, "one", img, limitScript)
		require.NoError(t, err)
		assert.Contains(t, result.Output, "Disk quota exceeded")
		unpacked, err := h.cowshed.Prepared(ctx, "unpack")
		require.NoError(t, err)
		assert.Equal(t, 2, unpacked)
		containers, err := h.cowshed.Prepared(ctx, "container")
		require.NoError(t, err)
		assert.Equal(t, 1, containers)
	})
	inEachSnapshotter(t, []snapshotter{cowshed(`build_limit = "16M"`)}, func(t *testing.T, ctx context.Context, h containerdHost) {
		_, err := h.store.ImportFile(ctx, h.SaveImage(harness.BusyboxImage(t, h.Programs, big), "cowshed/big:1"))
		require.ErrorContains(t, err, "the snapshot is at its limit of 16MiB (build_limit, for builds and layers that are unpacked)")
		img, err := h.store.ImportFile(ctx, h.SaveImage(harness.SampleImage(t, h.Programs), "cowshed/sample:1"))
		require.NoError(t, err)
		result, err := h.store.Run(ctx, "one", img, limitScript)
		require.NoError(t, err)
		assert.NotContains(t, result.Output, "Disk quota exceeded")
		require.NoError(t, h.store.RemoveLeases(ctx))
	})
}

// incompressible is text of the given length that compression makes little of.
func incompressible(size int) string {
	text := make([]byte, size)
	state := uint64(1)
	for i := range text {
		state = state*6364136223846793005 + 1442695040888963407
		text[i] = byte(state >> 56)
	}
	return string(text)
}
