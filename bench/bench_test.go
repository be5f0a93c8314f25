package main

import (
	"archive/tar"
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLayerIsDeterministicAndOfTheSizeSaid(t *testing.T) {
	var first, second bytes.Buffer
	require.NoError(t, writeLayer(&first, 2000))
	require.NoError(t, writeLayer(&second, 2000))
	assert.Equal(t, first.Bytes(), second.Bytes())

	layer, err := makeLayer(filepath.Join(t.TempDir(), "layer.tar"), allFormats, func(w io.Writer) error { return writeLayer(w, 2000) })
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

func TestLargeLayer(t *testing.T) {
	layer, err := makeLayer(filepath.Join(t.TempDir(), "layer.tar"), allFormats, func(w io.Writer) error { return writeLarge(w, 3, 3<<20) })
	require.NoError(t, err)
	assert.Equal(t, 3, layer.files)
	assert.Equal(t, int64(9<<20), layer.bytes)
	last := layer.entries[2]
	assert.Less(t, len(bytes.Trim(last.data, "\x00")), 2<<20, "most of it is a hole")
	assert.NotZero(t, last.data[len(last.data)-1])

	// The compressed forms are of the same tar.
	for _, format := range layer.formats {
		f, err := layer.open(format)
		require.NoError(t, err)
		r, got, err := layertar.Decompress(f)
		require.NoError(t, err)
		assert.Equal(t, format, got)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(layer.data, data), format)
		require.NoError(t, r.Close())
		require.NoError(t, f.Close())
	}
	require.NoError(t, layer.remove())
	assert.NoFileExists(t, layer.file(layertar.Gzip))
}

func TestChooseWorkloads(t *testing.T) {
	all, err := chooseWorkloads("btrfs", "50000,200000", 256, 5000)
	require.NoError(t, err)
	var keys []string
	for _, w := range all {
		keys = append(keys, w.key)
	}
	assert.Equal(t, []string{"50000", "200000", "large", "layers", "snapshotters", "snapshots"}, keys)
	assert.Len(t, all[0].steps, len(all[1].steps)+1, "100 children only once")
	assert.Equal(t, "remove", all[0].steps[len(all[0].steps)-1].name)

	assert.Equal(t, "Snapshotters of containerd on a base of 50,000 files", all[4].title)
	assert.Equal(t, "Snapshotters of containerd with 10 other snapshots and with 2,000", all[5].title)

	all, err = chooseWorkloads("btrfs", "", 0, 200)
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, "With 200 layers", all[0].title)
	assert.Equal(t, 200, all[1].others)
	all, err = chooseWorkloads("btrfs", "", 0, fewSnapshots)
	require.NoError(t, err)
	assert.Len(t, all, 1, "no more others than at first")
	all, err = chooseWorkloads("btrfs", "2000", 0, 0)
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Equal(t, "snapshotters", all[1].key)
	_, err = chooseWorkloads("btrfs", "5,many", 0, 0)
	require.ErrorContains(t, err, "many")
}

func TestKeptReportNeedsRounds(t *testing.T) {
	err := runBench([]string{"-root", t.TempDir(), "-rounds", "2", "-o", "x.md"}, io.Discard)
	require.ErrorContains(t, err, "3 rounds")
}

func TestPeakMemory(t *testing.T) {
	require.NoError(t, resetPeak())
	before, err := peakMemory()
	require.NoError(t, err)
	b := make([]byte, 64<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	after, err := peakMemory()
	require.NoError(t, err)
	assert.Greater(t, after, before+32<<20)
	assert.Equal(t, byte(1), b[0])
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
			title: "Base of " + thousands(n) + " files",
			layer: layerFacts{files: n, bytes: 232 << 20},
			samples: map[string]samples{
				"cowshed": {
					opDiff: {4 * time.Millisecond, 5 * time.Millisecond, 6 * time.Millisecond}, opRemove: {time.Duration(n)},
					opApplyDurable: {12 * time.Second}, opExport: {time.Second},
				},
				"moby":   {opDiff: {500 * time.Millisecond}, opRemove: {40 * time.Duration(n)}, opApplyDurable: {24 * time.Second}, opExport: {3 * time.Second}},
				"podman": {opApplyDurable: {18 * time.Second}, opExport: {1900 * time.Millisecond}},
				"floor":  {opApplyDurable: {10 * time.Second}},
			},
			memory: map[string]memory{"cowshed": {apply: 20 << 20, export: 30<<20 + 600<<10}},
		})
	}
	results = append(results, &result{
		title: "With 5,000 layers", samples: map[string]samples{"cowshed": {opStart: {20 * time.Millisecond}}, "floor": {}},
	})
	return &report{filesystem: "btrfs", quota: "quotas off", rounds: 3, results: results, plots: []string{"a.svg", "b.svg", "c.svg"}}
}

// snapshotResults are those of the snapshotters.
func snapshotResults() []*result {
	alone := &result{
		title: "Snapshotters",
		layer: layerFacts{files: 50_000},
		samples: map[string]samples{
			"cowshed": {
				opCompare: {4 * time.Millisecond}, opPrepare: {time.Millisecond}, opSnapshotUsage: {20 * time.Microsecond},
				opSnapshotCommit: {10 * time.Millisecond}, opSnapshotRemove: {5 * time.Millisecond},
			},
			"containerd": {
				opCompare: {4 * time.Second}, opPrepare: {2 * time.Millisecond}, opSnapshotUsage: {2 * time.Second},
				opSnapshotCommit: {199 * time.Millisecond}, opSnapshotRemove: {time.Second},
			},
		},
	}
	beside := &result{
		title: "Beside others", others: 2000,
		samples: map[string]samples{
			"cowshed": {
				opPrepare + besideFew: {10}, opPrepare + besideMany: {13},
				opSnapshotUsage + besideFew: {10}, opSnapshotUsage + besideMany: {9},
				opSnapshotCommit + besideFew: {10}, opSnapshotCommit + besideMany: {14},
				opSnapshotRemove + besideFew: {10}, opSnapshotRemove + besideMany: {11},
			},
			"containerd": {opPrepare + besideFew: {100}, opPrepare + besideMany: {250}},
		},
	}
	return []*result{alone, beside}
}

func TestReportOfSnapshotters(t *testing.T) {
	r := testReport()
	r.results = append(r.results, snapshotResults()...)
	r.plots = append(r.plots, "d.svg", "e.svg")
	var out strings.Builder
	r.write(&out)
	assert.Contains(t, out.String(), `
## Snapshotters

| operation | cowshed | containerd |
|---|---|---|
| Compare, 3 changes | 4.00 ms (4.00 ms – 4.00 ms) | 4.00 s (4.00 s – 4.00 s) |
`)
	assert.Contains(t, out.String(), `
## From 10 other snapshots to 2,000

How many times as long each operation takes:

| operation | cowshed | containerd |
|---|---|---|
| Prepare | 1.30× | 2.50× |
| Usage, 3 changes | 0.90× | – |
| Commit, 3 changes | 1.40× | – |
| Remove and Cleanup, 3 changes | 1.10× | – |
`)
	assert.Contains(t, out.String(), `
| Compare, 3 changes | 100× faster than containerd | 1000× | met |
| Usage, 3 changes | 1000× faster than containerd | 100000× | met |
| Remove and Cleanup, 3 changes | 200× faster than containerd | 200× | met |
| Commit, 3 changes | 20× faster than containerd | 19.9× | **not met** |
`)
	assert.Contains(t, out.String(), `
| Prepare | at most 1.3× slower beside 2,000 snapshots than beside 10 | 1.30× | met |
| Usage, 3 changes | at most 1.3× slower beside 2,000 snapshots than beside 10 | 0.90× | met |
| Commit, 3 changes | at most 1.3× slower beside 2,000 snapshots than beside 10 | 1.40× | **not met** |
| Remove and Cleanup, 3 changes | at most 1.3× slower beside 2,000 snapshots than beside 10 | 1.10× | met |
`)
	assert.Contains(t, out.String(), "## From 50,000 files to 200,000\n", "they are of graph drivers")

	r.results[3].layer.files = 2000
	out.Reset()
	r.write(&out)
	assert.NotContains(t, out.String(), "100× faster than containerd", "the bars are for 50,000 files")
}

func TestReport(t *testing.T) {
	r := testReport()
	r.plots = append(r.plots, "large.svg")
	r.results = append(r.results, &result{
		title: "Base of large files", key: largeKey, layer: layerFacts{files: 4, bytes: 1 << 30},
		samples: map[string]samples{
			"cowshed": {opApplyGzip: {4 * time.Second}}, "moby": {opApplyGzip: {time.Second}},
			"containerd": {opApplyGzip: {5 * time.Second}},
		},
	})
	var out strings.Builder
	r.write(&out)
	for _, line := range []string{
		"## Base of 50,000 files",
		"| diff of 3 changes | 5.00 ms (4.00 ms – 6.00 ms) | 500 ms (500 ms – 500 ms) |",
		"| diff of 3 changes | 100× |",
		"| diff of 3 changes | 50× faster than moby | 100× | met |",
		"| remove a child | 50× faster than moby | 40.0× | **not met** |",
		"| remove a child | at most 1.3× slower on 200,000 files | 4.00× | **not met** |",
		"| apply the base, durable | 1.3× faster than podman | 1.50× | met |",
		"| apply the base, durable | 2× faster than moby | 2.00× | met |",
		"| apply the base, durable | at most 1.15× the floor | 1.20× | **not met** |",
		"| apply the base, gzip, durable, 4 large files | 1.3× faster than containerd | 1.25× | **not met** |",
		"| export the base | 2× faster than podman | 1.90× | **not met** |",
		"| memory to export | 31 MiB | – | – | – |",
		"| start, with 5,000 layers | less than 1 s | 20.0 ms | met |",
		"(b.svg)",
		"(large.svg)",
	} {
		assert.Contains(t, out.String(), line)
	}
}

func TestReportOnZFS(t *testing.T) {
	r := testReport()
	r.filesystem, r.quota, r.note = "zfs", "", "The machine is emulated."
	r.processes = processes{"cowshed": {opCreate: 1, opRemove: 1}, "moby": {opCreate: 6, opRemove: 1}}
	var out strings.Builder
	r.write(&out)
	for _, line := range []string{
		"\nThe machine is emulated.\n",
		"| create a child | 1 | 6 |",
		"| mount a child and unmount it | 0 | 0 |",
	} {
		assert.Contains(t, out.String(), line)
	}
	assert.NotContains(t, out.String(), "50× faster than moby", "the bars are those of btrfs")
}

// TestBarsOnZFS: the report has a row for each promise, for the sizes that these are about.
func TestBarsOnZFS(t *testing.T) {
	with := func(layers int, created time.Duration) *result {
		w := manyLayersOnZFS(layers)
		return &result{title: w.title, key: w.key, others: w.others, samples: map[string]samples{
			"cowshed": {opStart: {10}, opStartCreate: {created}}, "moby": {opStart: {30}, opStartCreate: {80}},
		}}
	}
	files := &result{title: "Base of 2,000 files", layer: layerFacts{files: 2000}, samples: map[string]samples{"cowshed": {}, "moby": {}}}
	for _, b := range zfsBars {
		files.samples["cowshed"].add(b.op, 1000)
		files.samples["moby"].add(b.op, time.Duration(1000*b.want+0.5))
	}
	files.samples["moby"][opRemove] = []time.Duration{3990}
	r := &report{filesystem: "zfs", results: []*result{files, with(2000, 13), with(10, 10)}, plots: []string{"a", "b", "c"}}
	var out strings.Builder
	r.write(&out)
	assert.Contains(t, out.String(), `
## Against the bar

| operation | bar | measured | |
|---|---|---|---|
| create a child, 2,000 files | 8× faster than moby | 8.00× | met |
| create a child with a limit, 2,000 files | 10× faster than moby | 10.0× | met |
| remove a child, 2,000 files | 4× faster than moby | 3.99× | **not met** |
| usage of a child, 2,000 files | 500× faster than moby | 500× | met |
| list 3 changes, 2,000 files | 6× faster than moby | 6.00× | met |
| apply the base, 2,000 files | 1.6× faster than moby | 1.60× | met |
| export the base, 2,000 files | 8.3× faster than moby | 8.30× | met |
| create a child after it, with 2,000 layers | 8× faster than moby | 6.15× | **not met** |
| start, with 2,000 layers | 3× faster than moby | 3.00× | met |
| create a child after it, with 2,000 layers | at most 1.2× its own time beside 10 | 1.30× | **not met** |
`)

	files.layer.files, r.results[1] = 500, with(200, 13)
	out.Reset()
	r.write(&out)
	assert.NotContains(t, out.String(), "faster than", "the bars are for other sizes")
}

func TestWorkloadsOnZFS(t *testing.T) {
	all, err := chooseWorkloads("zfs", "5000", 0, 2000)
	require.NoError(t, err)
	require.Len(t, all, 3)
	assert.Len(t, all[0].steps, len(zfsSteps))
	assert.Equal(t, "With 2,000 layers", all[1].title)
	assert.Equal(t, "With 10 layers", all[2].title)
	assert.NotEqual(t, all[1].key, all[2].key, "of their plots")
	all, err = chooseWorkloads("zfs", "", 0, fewSnapshots)
	require.NoError(t, err)
	assert.Len(t, all, 1, "they are few")
}

// TestCounting has this program, under another name, count itself and become the real one.
func TestCounting(t *testing.T) {
	dir, installed := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(installed, "zfs"), []byte("#!/bin/sh\necho \"$@\"\n"), 0o700))
	t.Setenv("PATH", installed+":"+os.Getenv("PATH"))
	restore, err := countIn(dir)
	require.NoError(t, err)
	for i := range 3 {
		out, err := zfs("list", "-H")
		require.NoError(t, err)
		assert.Equal(t, "list -H", out)
		n, err := countSoFar()
		require.NoError(t, err)
		assert.Equal(t, i+1, n)
	}
	require.NoError(t, restore())
	_, err = zfs("list")
	require.NoError(t, err)
	content, err := os.ReadFile(filepath.Join(dir, "count"))
	require.NoError(t, err)
	assert.Len(t, content, 3)
}

// TestNvlist is an example of the encoding, made with libnvpair's rules by hand.
func TestNvlist(t *testing.T) {
	var inner, outer nvlist
	inner.addString("a", "legacy")
	inner.addUint64("n", 2)
	outer.addList("props", inner)
	assert.Equal(t, []byte{
		1, 1, 0, 0, // XDR, little-endian host
		0, 0, 0, 0, 0, 0, 0, 1, // version, unique names
		0, 0, 0, 0x70, 0, 0, 0, 0x30, // sizes of the pair, encoded and in memory: 24 + 24
		0, 0, 0, 5, 'p', 'r', 'o', 'p', 's', 0, 0, 0,
		0, 0, 0, 19, 0, 0, 0, 1, // a list, one of it
		0, 0, 0, 0, 0, 0, 0, 1,
		0, 0, 0, 0x24, 0, 0, 0, 0x20, // 24 + 8
		0, 0, 0, 1, 'a', 0, 0, 0,
		0, 0, 0, 9, 0, 0, 0, 1,
		0, 0, 0, 6, 'l', 'e', 'g', 'a', 'c', 'y', 0, 0,
		0, 0, 0, 0x20, 0, 0, 0, 0x20, // 24 + 8
		0, 0, 0, 1, 'n', 0, 0, 0,
		0, 0, 0, 8, 0, 0, 0, 1,
		0, 0, 0, 0, 0, 0, 0, 2,
		0, 0, 0, 0, 0, 0, 0, 0, // end of the inner list
		0, 0, 0, 0, 0, 0, 0, 0,
	}, outer.pack())
}

func TestMain(m *testing.M) {
	if isCounter(os.Args[0]) {
		if err := countAndRun(os.Args); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
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
