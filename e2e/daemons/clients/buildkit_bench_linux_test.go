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

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkBuildKitExport measures how long BuildKit takes to make the layer of a RUN step that changes three files of an
// image of 20,000: its status "exporting layers". Each round makes one layer with each snapshotter in turn.
func BenchmarkBuildKitExport(b *testing.B) {
	built := programs(b, "buildkit")
	h := harness.NewHost(b, testfs.Btrfs(b, testfs.WithSize(16<<30)))
	c := h.StartCowshed("containerd")
	containerd := h.StartContainerd("containerd", c.Options())
	registry := h.StartRegistry()
	push(b, busybox(b, h.Programs, harness.ManyFiles(20_000)...), registry+"/many:1")

	snapshotters := []string{cowshed, overlay}
	daemons := make(map[string]buildKit)
	for _, snapshotter := range snapshotters {
		daemons[snapshotter] = startBuildKit(b, h, built, containerd, snapshotter)
	}
	build := 0
	for _, compression := range []string{"uncompressed", "gzip", "gzip,compression-level=6", "zstd", "estargz"} {
		b.Run(strings.ReplaceAll(compression, ",compression-", "-"), func(b *testing.B) {
			total := make(map[string]time.Duration)
			for b.Loop() {
				for _, snapshotter := range snapshotters {
					build++
					total[snapshotter] += daemons[snapshotter].exportLayer(b, registry+"/many:1", compression, build)
				}
			}
			for _, snapshotter := range snapshotters {
				b.ReportMetric(float64(total[snapshotter].Milliseconds())/float64(b.N), snapshotter+"-ms/layer")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// buildKit is a buildkitd of a host.
type buildKit struct {
	*harness.Daemon
	address, buildctl, dir string
}

// startBuildKit runs a buildkitd whose containerd worker has the snapshotter.
func startBuildKit(t testing.TB, h *harness.Host, built string, containerd *harness.Containerd, snapshotter string) buildKit {
	t.Helper()
	name := "buildkitd-" + snapshotter
	dir := filepath.Join(h.Dir, name)
	require.NoError(t, os.Mkdir(dir, 0o711))
	k := buildKit{address: filepath.Join(dir, "b.sock"), buildctl: filepath.Join(built, "buildctl"), dir: dir}
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

// exportLayer builds an image that no build has made before, and returns how long its layers took to make.
func (k buildKit) exportLayer(t testing.TB, base, compression string, build int) time.Duration {
	t.Helper()
	source := t.TempDir()
	dockerfile := fmt.Sprintf("FROM %s\nRUN echo %d >/files/0001/000123 && rm /files/0002/000200 && echo %d >/files/0100/new\n", base, build, build)
	require.NoError(t, os.WriteFile(filepath.Join(source, "Dockerfile"), []byte(dockerfile), 0o644))
	cmd := exec.Command(k.buildctl, "--addr", "unix://"+k.address, "build", "--progress=rawjson", "--frontend", "dockerfile.v0",
		"--local", "context="+source, "--local", "dockerfile="+source,
		"--output", fmt.Sprintf("type=image,name=made:%d,oci-mediatypes=true,compression=%s", build, compression))
	var progress, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stderr, io.MultiWriter(&progress, &stderr)
	require.NoError(t, cmd.Run(), "%s", &stderr)
	taken, err := exporting(&progress)
	require.NoError(t, err)
	return taken
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
