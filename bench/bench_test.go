package main

import (
	"archive/tar"
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLayerIsDeterministicAndOfTheSizeSaid(t *testing.T) {
	var first, second bytes.Buffer
	require.NoError(t, writeLayer(&first, 2000))
	require.NoError(t, writeLayer(&second, 2000))
	assert.Equal(t, first.Bytes(), second.Bytes())

	layer, err := makeLayer(filepath.Join(t.TempDir(), "layer.tar"), 2000)
	require.NoError(t, err)
	assert.Equal(t, 2000, layer.files)
	assert.InEpsilon(t, 2000*meanFileSize, layer.bytes, 0.1)
	assert.Equal(t, first.Bytes(), layer.data)
	assert.Len(t, layer.someFiles(3), 3)

	// The entries point at the contents of the files of their names.
	contents := make(map[string][]byte)
	tr := tar.NewReader(&first)
	for {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		contents[strings.TrimSuffix(header.Name, "/")], err = io.ReadAll(tr)
		require.NoError(t, err)
	}
	require.Len(t, layer.entries, len(contents))
	for _, e := range layer.entries {
		if !e.isDir {
			require.Equal(t, contents[e.name], e.data, e.name)
		}
	}
	require.NoError(t, layer.remove())
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		times []time.Duration
		want  time.Duration
	}{
		{nil, 0},
		{[]time.Duration{7}, 7},
		{[]time.Duration{9, 1}, 5},
		{[]time.Duration{9, 1, 2}, 2},
	} {
		assert.Equal(t, tc.want, median(tc.times), tc.times)
	}
}

func TestFormats(t *testing.T) {
	assert.Equal(t, "15.3 µs", short(15_300))
	assert.Equal(t, "1.00 ms", short(time.Millisecond))
	assert.Equal(t, "250 ms", short(250*time.Millisecond))
	assert.Equal(t, "3.64 s", short(3640*time.Millisecond))
	assert.Equal(t, "–", short(0))
	assert.Equal(t, "50.0×", ratio(100, 2))
	assert.Equal(t, "–", ratio(100, 0))
	assert.Equal(t, "1,234,567", thousands(1234567))
	assert.Equal(t, "123", thousands(123))
}

func testReport() *report {
	results := make([]*result, 0, 2)
	for _, n := range []int{50_000, 200_000} {
		results = append(results, &result{
			layer: layerFacts{files: n, bytes: 232 << 20},
			samples: map[string]samples{
				"cowshed": {opDiff: {4 * time.Millisecond, 5 * time.Millisecond, 6 * time.Millisecond}, opRemove: {time.Duration(n)}},
				"moby":    {opDiff: {500 * time.Millisecond}, opRemove: {40 * time.Duration(n)}},
			},
		})
	}
	return &report{filesystem: "btrfs", quota: "quotas off", rounds: 3, results: results, plots: []string{"a.svg", "b.svg"}}
}

func TestReport(t *testing.T) {
	var out strings.Builder
	testReport().write(&out)
	for _, line := range []string{
		"## Base of 50,000 files, 232 MiB",
		"| diff of 3 changes | 5.00 ms (4.00 ms – 6.00 ms) | 500 ms (500 ms – 500 ms) |",
		"| diff of 3 changes | 100× |",
		"| diff of 3 changes | 50× faster than moby | 100× | met |",
		"| remove a child | 50× faster than moby | 40.0× | **not met** |",
		"| remove a child | at most 1.3× slower on 200,000 files | 4.00× | **not met** |",
		"(b.svg)",
	} {
		assert.Contains(t, out.String(), line)
	}
}

func TestPlotIsXML(t *testing.T) {
	var out strings.Builder
	r := testReport()
	writePlot(&out, "times", r.columns(r.results[0]), r.results[0])
	decoder := xml.NewDecoder(strings.NewReader(out.String()))
	for {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	assert.Contains(t, out.String(), "5.00 ms")
}
