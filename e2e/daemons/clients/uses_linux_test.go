package clients

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// writing is a shell script that writes so many MiB to the root.
func writing(mib int) string {
	return fmt.Sprintf("dd if=/dev/urandom of=/big bs=1M count=%d conv=fsync", mib)
}

// building is a Dockerfile whose step writes so many MiB.
func building(image string, mib int) string {
	return fmt.Sprintf("FROM %s\nRUN --network=none %s\n", image, writing(mib))
}

// TestUses: real clients make builds, which have build_limit, and containers, which have default_limit. The long variant has builds by
// nerdctl too, which also are BuildKit's.
func TestUses(t *testing.T) {
	const container, between, build = 16, 32, 64 // the limits, and a size between them, in MiB
	h := harness.NewHost(t, testfs.Btrfs(t))
	registry := h.StartRegistry()
	image := registry + "/library/sample:1"
	push(t, harness.SampleImage(t, h.Programs), image)
	c := h.StartCowshed("containerd", fmt.Sprintf("default_limit = \"%dM\"\nbuild_limit = \"%dM\"", container, build))
	containerd := h.StartContainerd("containerd", c.Options())
	buildKit := startBuildKit(t, h, programs(t, "buildkit"), containerd, cowshed)
	nerdctl := nerdctlCommand(t, h, containerd, buildKit, cowshed)
	ctr := fmt.Sprintf("%s --address %s", filepath.Join(h.Programs.Built, "ctr"), containerd.Address)
	buildctl := fmt.Sprintf("%s --addr unix://%s build --frontend dockerfile.v0 --local context=. --local dockerfile=.",
		buildKit.buildctl, buildKit.address)
	work := t.TempDir()
	run := func(script string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, "bash", "-euxc", script)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "HOME="+work, "TMPDIR="+work)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run(nerdctl + " pull " + image)
	require.NoError(t, err, out)

	clients := []struct {
		name, use, other string
		limit, less      int
		write            func(mib int) string
	}{
		{"nerdctl run", "container", "build", container, container / 2, func(mib int) string {
			return fmt.Sprintf("%s run --rm --net none %s sh -c '%s'", nerdctl, image, writing(mib))
		}},
		{"ctr run", "container", "build", container, container / 2, func(mib int) string {
			return fmt.Sprintf("%s run --rm --snapshotter cowshed --runc-binary %s %s web sh -c '%s'",
				ctr, filepath.Join(h.Programs.Built, "runc"), image, writing(mib))
		}},
		{"buildctl build", "build", "container", build, between, func(mib int) string {
			return fmt.Sprintf("echo '%s' >Dockerfile; %s --no-cache", building(image, mib), buildctl)
		}},
		{"nerdctl build", "build", "container", build, between, func(mib int) string {
			return fmt.Sprintf("echo '%s' >Dockerfile; %s build --no-cache -t built:1 .", building(image, mib), nerdctl)
		}},
	}
	if !testfs.Long() {
		clients = clients[:3]
	}
	for _, client := range clients {
		t.Run(client.name, func(t *testing.T) {
			prepared := func(use string) int {
				n, err := c.Prepared(t.Context(), use)
				require.NoError(t, err)
				return n
			}
			own, other := prepared(client.use), prepared(client.other)
			out, err := run(client.write(client.less))
			require.NoError(t, err, out)
			assert.Greater(t, prepared(client.use), own)
			out, err = run(client.write(client.limit * 3 / 2))
			require.Error(t, err, out)
			assert.Contains(t, out, "Disk quota exceeded")
			assert.Equal(t, other, prepared(client.other))
		})
	}
}
