package layertar

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treeat"
)

// The benchmarks run on a btrfs of their own where there is root, and else in the temporary directory.
// LAYERTAR_FILES sets the number of files.

// benchFiles is a layer of many small files, 4.7 KiB on average as in a Debian image.
func benchFiles(b *testing.B) []ent {
	b.Helper()
	n := 10_000
	if s := os.Getenv("LAYERTAR_FILES"); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(b, err)
	}
	noise := make([]byte, 16<<10)
	for i := range noise {
		noise[i] = byte(i*i>>3) | 1
	}
	entries := []ent{folder("usr"), folder("usr/lib")}
	for i := range n {
		if i%1000 == 0 {
			entries = append(entries, folder(fmt.Sprintf("usr/lib/p%03d", i/1000)))
		}
		if i%50 == 0 {
			entries = append(entries, folder(fmt.Sprintf("usr/lib/p%03d/d%02d", i/1000, i/50%20)))
		}
		name := fmt.Sprintf("usr/lib/p%03d/d%02d/f%05d", i/1000, i/50%20, i)
		entries = append(entries, file(name, string(noise[:i*7919%9600])))
	}
	return entries
}

// benchDir returns a directory on the filesystem to measure.
func benchDir(b *testing.B) string {
	b.Helper()
	if os.Getuid() != 0 {
		return b.TempDir()
	}
	return testfs.Btrfs(b, testfs.WithSize(8<<30))
}

// benchApply measures fn in an empty directory.
func benchApply(b *testing.B, base string, size int, fn func(dir string) error) {
	b.Helper()
	b.ReportAllocs()
	b.SetBytes(int64(size))
	for b.Loop() {
		b.StopTimer()
		dir, err := os.MkdirTemp(base, "x")
		require.NoError(b, err)
		unix.Sync()
		b.StartTimer()
		err = fn(dir)
		b.StopTimer()
		require.NoError(b, err)
		require.NoError(b, os.RemoveAll(dir))
		unix.Sync()
		b.StartTimer()
	}
}

func BenchmarkApply(b *testing.B) {
	entries := benchFiles(b)
	layer := tarOf(b, entries...)
	base := benchDir(b)
	b.Run("floor", func(b *testing.B) {
		benchApply(b, base, len(layer), func(dir string) error { return applyFloor(dir, entries) })
	})
	for _, opts := range []ApplyOptions{{Empty: true}, {Empty: true, Workers: 1}, {}} {
		b.Run(fmt.Sprintf("cowshed/empty=%v/workers=%d", opts.Empty, opts.Workers), func(b *testing.B) {
			benchApply(b, base, len(layer), func(dir string) error {
				_, err := Apply(b.Context(), dir, bytes.NewReader(layer), opts)
				return err
			})
		})
	}
	b.Run("go-archive", func(b *testing.B) {
		benchApply(b, base, len(layer), func(dir string) error {
			_, err := archive.UnpackLayer(dir, bytes.NewReader(layer), &archive.TarOptions{})
			return err
		})
	})
}

// applyFloor makes the files with the fewest system calls that can: open relative to a directory, write, set
// the times, close. Nothing is checked, nobody is asked.
func applyFloor(dir string, entries []ent) error {
	times := [2]unix.Timespec{timespec(past), timespec(past)}
	at, parent := -1, ""
	defer func() { _ = unix.Close(at) }()
	for i := range entries {
		e := &entries[i]
		if e.Typeflag == tar.TypeDir {
			if err := unix.Mkdir(filepath.Join(dir, e.Name), 0o755); err != nil {
				return err
			}
			continue
		}
		if p := path.Dir(e.Name); p != parent {
			_ = unix.Close(at)
			var err error
			if at, err = unix.Open(filepath.Join(dir, p), unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
				return err
			}
			parent = p
		}
		fd, err := unix.Openat(at, path.Base(e.Name), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte(e.data)); err != nil {
			return err
		}
		if err := treeat.Futimens(fd, &times); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

func BenchmarkApplyLarge(b *testing.B) {
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	layer := tarOf(b, file("large1", string(chunk)), file("large2", string(chunk)), file("large3", string(chunk)))
	base := benchDir(b)
	b.Run("cowshed", func(b *testing.B) {
		benchApply(b, base, len(layer), func(dir string) error {
			_, err := Apply(b.Context(), dir, bytes.NewReader(layer), ApplyOptions{Empty: true})
			return err
		})
	})
	b.Run("go-archive", func(b *testing.B) {
		benchApply(b, base, len(layer), func(dir string) error {
			_, err := archive.UnpackLayer(dir, bytes.NewReader(layer), &archive.TarOptions{})
			return err
		})
	})
}

func BenchmarkWrite(b *testing.B) {
	layer := tarOf(b, benchFiles(b)...)
	dir := benchDir(b)
	apply(b, dir, layer, ApplyOptions{})
	changes := all(b, dir)
	run := func(name string, fn func(w io.Writer) error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				require.NoError(b, fn(io.Discard))
			}
		})
	}
	run("floor", func(io.Writer) error { return writeFloor(dir, changes) })
	for _, workers := range []int{0, 1, 2} {
		run(fmt.Sprintf("cowshed/workers=%d", workers), func(w io.Writer) error {
			return Write(b.Context(), w, dir, changes, WriteOptions{Workers: workers})
		})
	}
	run("go-archive", func(w io.Writer) error {
		r, err := archive.ExportChanges(dir, changes, user.IdentityMapping{})
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(w, struct{ io.Reader }{r})
		return err
	})
	for _, format := range []Format{Gzip, Zstd} {
		run("cowshed/"+format.String(), func(w io.Writer) error {
			zw, err := Compress(w, format, 1)
			if err != nil {
				return err
			}
			if err := Write(context.Background(), zw, dir, changes, WriteOptions{}); err != nil {
				return err
			}
			return zw.Close()
		})
	}
}

// writeFloor reads the files with the fewest system calls that can: describe, open, read, close.
func writeFloor(dir string, changes []archive.Change) error {
	buf := make([]byte, 64<<10)
	for _, c := range changes {
		var st unix.Stat_t
		p := dir + c.Path
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if _, err := unix.Read(fd, buf); err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}
