package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDropCached(t *testing.T) {
	const size = 1 << 20
	dir, err := os.MkdirTemp("/var/tmp", "bench-") // TMPDIR may be in memory, where files are nowhere else
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.RemoveAll(dir)) })
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, make([]byte, size), 0o600))
	require.NoError(t, onDir(dir, unix.Syncfs))
	for _, other := range []string{"one", "another"} { // names of the same file, as of files that share their pages
		require.NoError(t, os.Link(file, file+other))
	}
	require.NoError(t, read(file+"one"))
	n, err := dropCached(file + "one")
	require.NoError(t, err)
	assert.EqualValues(t, size, n)
	n, err = dropCached(file + "another")
	require.NoError(t, err)
	assert.Zero(t, n, "counted once")
}

func TestMemoryOf(t *testing.T) {
	used, err := pssOf(os.Getpid())
	require.NoError(t, err)
	assert.Greater(t, used.files, int64(1<<20))
	assert.Greater(t, used.all, used.files)
}

func TestContainersReport(t *testing.T) {
	seconds := func(op operation, n float64) []time.Duration {
		if op.isSize() {
			return []time.Duration{time.Duration(n * (1 << 20))}
		}
		return []time.Duration{time.Duration(n * float64(time.Second))}
	}
	shared, peer := make(samples), make(samples)
	for _, op := range []operation{opPageCache, opPSS, opOnePSS, opFilePSS, opOneFilePSS, opThirdStart, opRemove, opCommitMany, opBareRenames} {
		shared[op], peer[op] = seconds(op, 100), seconds(op, 100)
	}
	peer[opCommitFew], shared[opCommitFew] = []time.Duration{10 * time.Millisecond}, []time.Duration{14 * time.Millisecond}
	shared[opUsage] = []time.Duration{time.Millisecond}
	r := &report{results: []*result{{title: "Containers", samples: map[string]samples{
		"cowshed": peer, "cowshed-shared": shared, "containerd-overlayfs": peer,
	}}}}
	var out bytes.Buffer
	r.writeContainers(&out)
	assert.Contains(t, out.String(), "| page cache of 20 containers that read the same 100 MB | 100 MiB (100 MiB – 100 MiB) | 100 MiB")
	assert.Contains(t, out.String(), "| at most 1.1× containerd-overlayfs | 1.00× | met |")
	assert.Contains(t, out.String(), "| memory (PSS) of 20 containers that run the same program | at most 1.2× one such container | 1.00× | met |")
	assert.Contains(t, out.String(), "| memory of files (PSS) of 20 containers that run the same program | at most 1.2× one such container | 1.00× | met |")
	assert.Contains(t, out.String(), "| commit of 10,000 changes | at most 1.5× 10,000 bare renames, and a commit | 1.00× | met |")
	assert.Contains(t, out.String(), "| commit of 3 changes | at most 3.00 ms more than cowshed | 4.00 ms | **not met** |")
	assert.Contains(t, out.String(), "| remove a child | at most 0.1× containerd-overlayfs | 1.00× | **not met** |")
	assert.Contains(t, out.String(), "| usage of a child | at most 300 µs | 1.00 ms | **not met** |")
}
