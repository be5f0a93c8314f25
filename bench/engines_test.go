package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestChooseImages(t *testing.T) {
	all, err := chooseImages("50000,10000", 64, "10,60")
	require.NoError(t, err)
	var keys []string
	for _, i := range all {
		keys = append(keys, i.key)
	}
	assert.Equal(t, []string{"50000-1", "10000-1", "large", "10000-10", "10000-60"}, keys)
	assert.Equal(t, "50,000 files in one layer", all[0].title)
	assert.Equal(t, "10,000 files in 60 layers", all[4].title)
	assert.Len(t, all[0].steps(), 2*len(allFormats)+1)
	assert.Len(t, all[4].steps(), 5)

	all, err = chooseImages("2000", 0, "0")
	require.NoError(t, err)
	assert.Len(t, all, 1)
	for _, bad := range [][2]string{{"many", "0"}, {"2", "0"}, {"", "0"}, {"2000", ""}, {"2000", "1"}, {"2000", "2001"}, {"2000", "few"}} {
		_, err := chooseImages(bad[0], 0, bad[1])
		require.Error(t, err, bad)
	}
}

func TestKeptReportOfEnginesNeedsRounds(t *testing.T) {
	err := runEngines([]string{"-root", t.TempDir(), "-rounds", "4", "-o", "x.md"}, io.Discard)
	require.ErrorContains(t, err, "5 rounds")
}

// TestCopiedFiles: the copies of an engine that has no other way are known beforehand.
func TestCopiedFiles(t *testing.T) {
	image := smallFilesImage(1000, 4, allFormats[:1])
	image.files = 1000
	steps := image.steps()
	assert.Equal(t, 250+500+750, steps[0].files)
	assert.Equal(t, 250+500+750+5000, steps[2].files)
	image = smallFilesImage(1000, 1, allFormats[:1])
	image.files = 1000
	assert.Zero(t, image.steps()[1].files)
}

// TestEngineImage reads the archives back: each is an OCI layout whose layers together have all files once.
func TestEngineImage(t *testing.T) {
	const files, layers = 1000, 3
	dir := t.TempDir()
	image := smallFilesImage(files, layers, allFormats)
	require.NoError(t, image.make(dir, "registry:5000", []harness.File{{Path: "bin/"}, {Path: "bin/sh", Data: "shell"}}))
	assert.Equal(t, files, image.files)
	assert.Len(t, image.changed, changedFiles)
	require.Len(t, image.archives, len(allFormats))

	for format, path := range image.archives {
		content := readTar(t, path)
		blob := func(d ocispec.Descriptor) []byte {
			data := content[blobPath(d.Digest)]
			require.Equal(t, d.Digest, digest.FromBytes(data))
			require.Len(t, data, int(d.Size))
			return data
		}
		var index ocispec.Index
		require.NoError(t, json.Unmarshal(content[ocispec.ImageIndexFile], &index))
		require.Len(t, index.Manifests, 1)
		assert.Contains(t, index.Manifests[0].Annotations, "io.containerd.image.name")
		assert.Equal(t, "registry:5000/bench:1000-3-"+format.String(), index.Manifests[0].Annotations["io.containerd.image.name"])
		var manifest ocispec.Manifest
		require.NoError(t, json.Unmarshal(blob(index.Manifests[0]), &manifest))
		var config ocispec.Image
		require.NoError(t, json.Unmarshal(blob(manifest.Config), &config))
		require.Len(t, manifest.Layers, layers)
		require.Len(t, config.RootFS.DiffIDs, layers)

		seen := make(map[string]bool)
		for n, l := range manifest.Layers {
			assert.Equal(t, format.MediaType(), l.MediaType)
			r, got, err := layertar.Decompress(strings.NewReader(string(blob(l))))
			require.NoError(t, err)
			assert.Equal(t, format, got)
			plain, err := io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			assert.Equal(t, config.RootFS.DiffIDs[n], digest.FromBytes(plain))
			tr := tar.NewReader(strings.NewReader(string(plain)))
			for {
				header, err := tr.Next()
				if err == io.EOF {
					break
				}
				require.NoError(t, err)
				if header.Typeflag == tar.TypeReg {
					require.False(t, seen[header.Name], header.Name)
					seen[header.Name] = true
				}
			}
		}
		assert.Len(t, seen, files+1)
		assert.Contains(t, seen, "bin/sh")
		for _, name := range image.changed {
			assert.Contains(t, seen, name)
		}
	}
	require.NoError(t, image.remove())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func readTar(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	content := make(map[string][]byte)
	for tr := tar.NewReader(f); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return content
		}
		require.NoError(t, err)
		content[header.Name], err = io.ReadAll(tr)
		require.NoError(t, err)
	}
}

func TestCPUOf(t *testing.T) {
	used, err := cpuOf("7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 99 99 20 0 1\n")
	require.NoError(t, err)
	assert.Equal(t, 3*time.Second, used)
	for _, bad := range []string{"", "7 (a) S 1 2", "7 (a) S 1 2 3 4 5 6 7 8 9 10 much 50"} {
		_, err := cpuOf(bad)
		require.Error(t, err, bad)
	}

	ofSelf := func() time.Duration {
		stat, err := os.ReadFile("/proc/self/stat")
		require.NoError(t, err)
		used, err := cpuOf(string(stat))
		require.NoError(t, err)
		return used
	}
	before := ofSelf()
	data := make([]byte, 1<<20)
	for ofSelf() == before {
		digest.FromBytes(data)
	}
}

func testEngineReport() *engineReport {
	times := func(load, diff time.Duration) samples {
		return samples{of(opLoad, layertar.Gzip): {load}, opContainerDiff: {diff}, opContainerGone: {time.Second}}
	}
	return &engineReport{rounds: 5, results: []*engineResult{{
		result: result{
			title: "50,000 files in one layer", layer: layerFacts{files: 50_000, bytes: 233 << 20},
			samples: map[string]samples{
				"cowshed": times(2*time.Second, 20*time.Millisecond), "btrfs": times(3*time.Second, time.Second),
				"overlayfs": times(time.Second, 10*time.Millisecond), "native": times(time.Second, time.Second),
				"floor": {of(opLoad, layertar.Gzip): {time.Second}},
			},
		},
		cpu: map[string]samples{
			"cowshed": {of(opLoad, layertar.Gzip): {1500 * time.Millisecond}, opContainerDiff: {0}},
			"btrfs":   {of(opLoad, layertar.Gzip): {2 * time.Second}, opContainerDiff: {0}},
		},
	}}}
}

func TestEngineReport(t *testing.T) {
	var out strings.Builder
	testEngineReport().write(&out)
	for _, line := range []string{
		"| image of 50,000 files in one layer | cowshed | btrfs | overlayfs | native | floor |\n|---|---|---|---|---|---|\n| load, gzip | 2.00 s | 3.00 s | 1.00 s | 1.00 s | 1.00 s |\n",
		"\n### 50,000 files in one layer\n\n233 MiB in 50,000 files.\n",
		"| operation | cowshed | btrfs | overlayfs | native | floor | btrfs / cowshed | overlayfs / cowshed |\n|---|---|---|---|---|---|---|---|\n",
		"| load, gzip | 2.00 s (2.00 s – 2.00 s) | 3.00 s (3.00 s – 3.00 s) | 1.00 s (1.00 s – 1.00 s) | 1.00 s (1.00 s – 1.00 s) | 1.00 s (1.00 s – 1.00 s) | 1.50× | 0.50× |\n",
		"| load, gzip | 1.50 s | 2.00 s | – | – | – |\n| diff of the container | < 10.0 ms | < 10.0 ms | – | – | – |\n",
		"| 50,000 files in one layer | load, gzip | 1.3× faster than btrfs | 1.50× | 3.00× | met |\n",
		"| 50,000 files in one layer | load, gzip | 1.3× faster than overlayfs | 0.50× | 1.00× | **not met** |\n",
		"| 50,000 files in one layer | diff of the container | 5× faster than btrfs | 50.0× | – | met |\n",
		"| 50,000 files in one layer | diff of the container | no slower than overlayfs | 0.50× | – | **not met** |\n",
	} {
		assert.Contains(t, out.String(), line)
	}
	assert.NotContains(t, out.String(), "| remove the container | < 10", "no use of processors was measured")
}

// TestEngineReportAdd: an image is added to a report, or replaces itself in it, and the rest stays.
func TestEngineReportAdd(t *testing.T) {
	var earlier, again, both, wrong strings.Builder
	testEngineReport().write(&earlier)
	more := testEngineReport()
	more.date, more.revision = "2026-12-01", "abc"
	require.NoError(t, more.addTo(earlier.String(), &again))
	assert.Equal(t, strings.Replace(earlier.String(), "\n\n233 MiB", "\n\nMeasured on 2026-12-01, of revision abc. 233 MiB", 1), again.String())

	more.results[0].title = "60 layers"
	require.NoError(t, more.addTo(earlier.String(), &both))
	text := both.String()
	sections := []string{"\n### 50,000 files in one layer\n", "\n### 60 layers\n", barsTitle, "\n| 50,000 files in one layer | load", "\n| 60 layers | load"}
	for i, section := range sections {
		require.Equal(t, 1+strings.Count(section, "| load"), strings.Count(text, section), section)
		if i > 0 {
			assert.Less(t, strings.Index(text, sections[i-1]), strings.Index(text, section), section)
		}
	}
	require.ErrorContains(t, more.addTo("## Another\n", &wrong), "measure all images")
	require.ErrorContains(t, runEngines([]string{"-root", t.TempDir(), "-add"}, io.Discard), "measure all images")
}

// TestUpdateDocument: each part can be written anew, whichever was there before, and is where it belongs.
func TestUpdateDocument(t *testing.T) {
	name := filepath.Join(t.TempDir(), "report.md")
	update := func(part, text string) string {
		t.Helper()
		require.NoError(t, updateDocument(name, documentTitle("btrfs"), part, func(w io.Writer) {
			_, err := io.WriteString(w, text)
			require.NoError(t, err)
		}))
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		return string(data)
	}
	const engines, layers = "\n<!-- engines -->\n\n", "\n<!-- layers -->\n\n"
	assert.Equal(t, "# Benchmarks on btrfs\n"+layers+"## L\n\nold\n", update(layersPart, "## L\n\nold\n"))
	assert.Equal(t, "# Benchmarks on btrfs\n"+engines+"## E\n"+layers+"## L\n\nold\n", update(enginesPart, "## E\n"))
	assert.Equal(t, "# Benchmarks on btrfs\n"+engines+"## E\n"+layers+"## L\n\nnew\n", update(layersPart, "## L\n\nnew\n"))
	assert.Equal(t, "# Benchmarks on btrfs\n"+engines+"## F\n"+layers+"## L\n\nnew\n", update(enginesPart, "## F\n"))

	require.NoError(t, os.WriteFile(name, []byte("# Notes\n"), 0o600))
	require.ErrorContains(t, updateDocument(name, documentTitle("btrfs"), layersPart, func(io.Writer) {}), name)
	require.ErrorContains(t, runEngines([]string{"-root", t.TempDir(), "-o", name}, io.Discard), name)
	require.ErrorContains(t, runBench([]string{"-root", t.TempDir(), "-o", name}, io.Discard), name)
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, "# Notes\n", string(data))
}
