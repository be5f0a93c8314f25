package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkBuildKitExport measures how long BuildKit takes to make the layer of a step that changes three files of a large
// image: its status "exporting layers".
func BenchmarkBuildKitExport(b *testing.B) {
	h := newBuildKitHost(b)
	for _, compression := range []string{"uncompressed", "gzip", "gzip,compression-level=6", "zstd", "estargz"} {
		b.Run(strings.ReplaceAll(compression, ",compression-", "-"), func(b *testing.B) {
			h.inTurn(b, func(k buildKit, build int) time.Duration {
				output := fmt.Sprintf("type=image,name=made:%d,oci-mediatypes=true,compression=%s", build, compression)
				change := fmt.Sprintf("RUN echo %d >/files/0001/000123 && rm /files/0002/000200 && echo %d >/files/0100/new", build, build)
				taken, err := exporting(k.build(b, "FROM "+h.image+"\n"+change+"\n", "--output", output))
				require.NoError(b, err)
				return taken
			})
		})
	}
}

// BenchmarkBuildKitMerge measures how long a build takes that copies a file into a large image, with and without --link,
// and runs something on that.
func BenchmarkBuildKitMerge(b *testing.B) {
	h := newBuildKitHost(b)
	for _, copying := range []string{"COPY", "COPY --link"} {
		b.Run(strings.ReplaceAll(copying, " ", ""), func(b *testing.B) {
			h.inTurn(b, func(k buildKit, build int) time.Duration {
				dockerfile := fmt.Sprintf("FROM %s\n%s Dockerfile /copied\nRUN echo %d\n", h.image, copying, build)
				begun := time.Now()
				k.build(b, dockerfile)
				return time.Since(begun)
			})
		})
	}
}

// buildKitHost is a host with a BuildKit for each snapshotter, and a large image that both have unpacked.
type buildKitHost struct {
	image   string
	daemons map[string]buildKit
	builds  int
}

func newBuildKitHost(b *testing.B) *buildKitHost {
	b.Helper()
	built := programs(b, "buildkit")
	h := harness.NewHost(b, testfs.Btrfs(b, testfs.WithSize(16<<30)))
	c := h.StartCowshed("containerd")
	containerd := h.StartContainerd("containerd", c.Options())
	registry := h.StartRegistry()
	bh := &buildKitHost{image: registry + "/many:1", daemons: make(map[string]buildKit)}
	push(b, busybox(b, h.Programs, harness.ManyFiles(20_000)...), bh.image)
	for _, snapshotter := range []string{cowshed, overlay} {
		bh.daemons[snapshotter] = startBuildKit(b, h, built, containerd, snapshotter)
		bh.daemons[snapshotter].build(b, "FROM "+bh.image+"\nRUN true\n")
	}
	return bh
}

// inTurn measures with each snapshotter in turn, one build that has not been made before at a time. Buffers of the
// filesystem are written out before.
func (h *buildKitHost) inTurn(b *testing.B, measure func(k buildKit, build int) time.Duration) {
	b.Helper()
	total := make(map[string]time.Duration)
	for b.Loop() {
		for _, snapshotter := range []string{cowshed, overlay} {
			h.builds++
			unix.Sync()
			total[snapshotter] += measure(h.daemons[snapshotter], h.builds)
		}
	}
	for snapshotter, taken := range total {
		b.ReportMetric(float64(taken.Milliseconds())/float64(b.N), snapshotter+"-ms/build")
	}
	b.ReportMetric(0, "ns/op")
}

// buildKit is a buildkitd of a host.
type buildKit struct {
	*harness.Daemon
	address, buildctl string
}

// startBuildKit runs a buildkitd whose containerd worker has the snapshotter.
func startBuildKit(t testing.TB, h *harness.Host, built string, containerd *harness.Containerd, snapshotter string) buildKit {
	t.Helper()
	name := "buildkitd-" + snapshotter
	dir := filepath.Join(h.Dir, name)
	require.NoError(t, os.Mkdir(dir, 0o711))
	k := buildKit{address: filepath.Join(dir, "b.sock"), buildctl: filepath.Join(built, "buildctl")}
	config := filepath.Join(dir, "buildkitd.toml")
	require.NoError(t, os.WriteFile(config, nil, 0o644))
	k.Daemon = h.Start(harness.Spec{
		Name: name, Program: filepath.Join(built, "buildkitd"),
		Args: []string{
			"--config", config, "--root", filepath.Join(h.Data, name), "--addr", "unix://" + k.address,
			"--otel-socket-path", filepath.Join(dir, "otel.sock"),
			"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr", containerd.Address,
			"--containerd-worker-snapshotter", snapshotter, "--containerd-worker-namespace", name,
			"--containerd-worker-net", "host", "--containerd-cni-config-path", filepath.Join(dir, "cni.json"),
		},
		Env:       []string{"PATH=" + h.Programs.Built + ":" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir},
		NoHandler: true,
		Ready: func(ctx context.Context) error {
			var d net.Dialer
			conn, err := d.DialContext(ctx, "unix", k.address)
			if err != nil {
				return err
			}
			return conn.Close()
		},
	})
	return k
}

// build builds from a Dockerfile that may copy itself, and returns the progress as JSON.
func (k buildKit) build(t testing.TB, dockerfile string, args ...string) io.Reader {
	t.Helper()
	source := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(source, "Dockerfile"), []byte(dockerfile), 0o644))
	cmd := exec.CommandContext(bounded(t), k.buildctl, append([]string{"--addr", "unix://" + k.address, "build", "--progress=rawjson",
		"--frontend", "dockerfile.v0", "--local", "context=" + source, "--local", "dockerfile=" + source}, args...)...)
	var progress, stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &progress
	require.NoError(t, cmd.Run(), "%s%s", &stdout, &progress)
	return &progress
}

// exporting reads from a build's progress how long the layers took.
func exporting(progress io.Reader) (time.Duration, error) {
	for lines := json.NewDecoder(progress); ; {
		var line struct {
			Statuses []struct {
				ID                 string
				Started, Completed *time.Time
			}
		}
		if err := lines.Decode(&line); errors.Is(err, io.EOF) {
			return 0, errors.New("the build has not said when its layers were made")
		} else if err != nil {
			return 0, fmt.Errorf("read progress: %w", err)
		}
		for _, s := range line.Statuses {
			if s.ID == "exporting layers" && s.Started != nil && s.Completed != nil {
				return s.Completed.Sub(*s.Started), nil
			}
		}
	}
}
