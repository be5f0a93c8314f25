//go:build linux

package graphtest

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// Benchmark is one benchmark of the suite.
type Benchmark struct {
	Name string
	run  func(b *testing.B, c Config, files int)
}

// Run runs the benchmark with a driver of its own. files is the number of files in the base layer, of 500
// to 4400 bytes each, at least 2; benchmarks that have no big base do not look at it.
func (benchmark Benchmark) Run(b *testing.B, c Config, files int) { benchmark.run(b, c, files) }

// RunBenchmarks runs all benchmarks, each with a driver of its own, for each of the given sizes of base
// layer, as sub-benchmarks "files=N/Name".
func RunBenchmarks(b *testing.B, c Config, files ...int) {
	for _, n := range files {
		for _, benchmark := range Benchmarks() {
			b.Run(fmt.Sprintf("files=%d/%s", n, benchmark.Name), func(b *testing.B) { benchmark.Run(b, c, n) })
		}
	}
}

// Benchmarks are the benchmarks of the suite, for callers that want only some.
func Benchmarks() []Benchmark {
	return []Benchmark{
		{"Create", benchCreate},
		{"CreateDeep", benchCreateDeep},
		{"Remove", benchRemove},
		{"Exists", benchExists},
		{"GetPut", benchGetPut},
		{"ChangesSmall", benchChangesSmall},
		{"DiffSizeSmall", benchDiffSizeSmall},
		{"DiffSmall", benchDiffSmall},
		{"DiffFull", benchDiffFull},
		{"ApplyDiff", benchApplyDiff},
	}
}

// manyFiles fills a layer with files in directories of 100.
func manyFiles(files int) func(w tree) {
	return func(w tree) {
		for i := range files {
			if i%100 == 0 {
				w.mkdir(fmt.Sprintf("d%d", i/100))
			}
			w.file(fmt.Sprintf("d%d/f%d", i/100, i), string(randomBytes(uint64(i), 500+i%40*100)))
		}
	}
}

// smallChange makes three changes far apart.
func smallChange(files int) func(w tree) {
	return func(w tree) {
		w = w.at(editTime)
		w.file("d0/f0", "changed")
		w.file("new", "x")
		w.remove(fmt.Sprintf("d%d/f%d", (files-1)/100, files-1))
	}
}

// bigBase makes a base of that many files and a child with three changes.
func bigBase(b *testing.B, c Config, files int) (l layers, base, child string) {
	b.Helper()
	require.GreaterOrEqual(b, files, 2)
	l = c.open(b)
	base = l.filled("", manyFiles(files))
	return l, base, l.filled(base, smallChange(files))
}

func benchCreate(b *testing.B, c Config, files int) {
	l, base, _ := bigBase(b, c, files)
	benchCreateOn(b, l, base)
}

// benchCreateDeep creates on top of a chain of layers instead of a big one.
func benchCreateDeep(b *testing.B, c Config, _ int) {
	l := c.open(b)
	top := l.filled("", someContent)
	for range 50 {
		top = l.layer(top)
	}
	benchCreateOn(b, l, top)
}

func benchCreateOn(b *testing.B, l layers, parent string) {
	b.Helper()
	for b.Loop() {
		id := newID()
		require.NoError(b, l.CreateReadWrite(id, parent, nil))
		b.StopTimer()
		require.NoError(b, l.Remove(id))
		b.StartTimer()
	}
}

func benchRemove(b *testing.B, c Config, files int) {
	l, base, _ := bigBase(b, c, files)
	for b.Loop() {
		b.StopTimer()
		id := newID()
		require.NoError(b, l.CreateReadWrite(id, base, nil))
		l.edit(id, smallChange(files))
		b.StartTimer()
		require.NoError(b, l.Remove(id))
	}
}

func benchExists(b *testing.B, c Config, _ int) {
	l := c.open(b)
	id := l.layer("")
	for b.Loop() {
		if !l.Exists(id) {
			b.Fatal("the layer does not exist")
		}
	}
}

func benchGetPut(b *testing.B, c Config, _ int) {
	l := c.open(b)
	id := l.layer("")
	for b.Loop() {
		_, err := l.Get(id, "")
		require.NoError(b, err)
		require.NoError(b, l.Put(id))
	}
}

func benchChangesSmall(b *testing.B, c Config, files int) {
	l, base, child := bigBase(b, c, files)
	for b.Loop() {
		_, err := l.Changes(child, base)
		require.NoError(b, err)
	}
}

func benchDiffSizeSmall(b *testing.B, c Config, files int) {
	l, base, child := bigBase(b, c, files)
	for b.Loop() {
		_, err := l.Driver.DiffSize(child, base)
		require.NoError(b, err)
	}
}

func benchDiffSmall(b *testing.B, c Config, files int) {
	l, base, child := bigBase(b, c, files)
	benchDiff(b, l, child, base)
}

func benchDiffFull(b *testing.B, c Config, files int) {
	l, base, _ := bigBase(b, c, files)
	benchDiff(b, l, base, "")
}

func benchDiff(b *testing.B, l layers, id, parent string) {
	b.Helper()
	for b.Loop() {
		r, err := l.Diff(id, parent)
		require.NoError(b, err)
		n, err := io.Copy(io.Discard, r)
		require.NoError(b, err)
		require.NoError(b, r.Close())
		b.SetBytes(n)
	}
}

func benchApplyDiff(b *testing.B, c Config, files int) {
	l, base, _ := bigBase(b, c, files)
	layerTar := l.diff(base, "")
	b.SetBytes(int64(len(layerTar)))
	for b.Loop() {
		b.StopTimer()
		id := newID()
		require.NoError(b, l.Create(id, "", nil))
		b.StartTimer()
		_, err := l.ApplyDiff(id, "", bytes.NewReader(layerTar))
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, l.Remove(id))
		b.StartTimer()
	}
}
