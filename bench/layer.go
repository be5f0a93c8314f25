package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/cowshed/cowshed/cowcommon/layertar"
	"golang.org/x/sys/unix"
)

// layer is an image layer as a tar file, compressed and not, and the list of its directories and regular files.
type layer struct {
	path    string // the tar file
	formats []layertar.Format
	data    []byte // the tar file, mapped
	entries []entry
	bytes   int64 // sum of the sizes of its files
	files   int
}

// entry is a directory or a regular file of a layer.
type entry struct {
	name  string // without a slash at the end
	isDir bool
	data  []byte // a part of layer.data
}

const (
	meanFileSize = 4870 // bytes: 50,000 files hold 232 MiB, as in a Debian image with a few languages
	filesPerDir  = 100
	layerTime    = 1_700_000_000 // of all entries; whole seconds, as in image layers
)

var allFormats = []layertar.Format{layertar.Plain, layertar.Gzip, layertar.Zstd}

// makeLayer has a layer written to path, and compresses it into the formats but the first, which is the plain one.
func makeLayer(path string, formats []layertar.Format, write func(w io.Writer) error) (*layer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := write(w); err != nil {
		f.Close()
		return nil, err
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	l, err := openLayer(path)
	if err != nil {
		return nil, err
	}
	l.formats = formats
	for _, format := range l.formats[1:] {
		if err := l.compress(format); err != nil {
			return nil, fmt.Errorf("compress the layer with %v: %w", format, err)
		}
	}
	return l, nil
}

// file returns the path of the layer in a format.
func (l *layer) file(format layertar.Format) string {
	if format == layertar.Plain {
		return l.path
	}
	return l.path + "." + format.String()
}

func (l *layer) compress(format layertar.Format) error {
	f, err := os.Create(l.file(format))
	if err != nil {
		return err
	}
	defer f.Close()
	zw, err := layertar.Compress(f, format, 0)
	if err != nil {
		return err
	}
	_, err = zw.Write(l.data)
	return errors.Join(err, zw.Close(), f.Close())
}

// text returns a MiB of words instead of noise, so that a layer compresses like text and programs do.
func text(random *rand.Rand) []byte {
	var words bytes.Buffer
	for words.Len() < 1<<20 {
		fmt.Fprintf(&words, "%x ", random.Uint32()>>random.IntN(24))
	}
	return words.Bytes()
}

// writeLarge writes a layer of n files of size bytes each, the last of which is empty except for its end.
func writeLarge(w io.Writer, n, size int) error {
	tw := tar.NewWriter(w)
	if err := addLarge(tw, n, size); err != nil {
		return err
	}
	return tw.Close()
}

func addLarge(tw *tar.Writer, n, size int) error {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range n {
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("large%d", i), Mode: 0o644, Size: int64(size),
			ModTime: time.Unix(layerTime, 0), Format: tar.FormatPAX,
		}
		if err := tw.WriteHeader(header); err != nil {
			return err
		}
		piece, zeros := text(random), make([]byte, 1<<20)
		for left := size; left > 0; {
			b := piece
			if i == n-1 && left > len(zeros) {
				b = zeros
			}
			m, err := tw.Write(b[:min(left, len(b))])
			if err != nil {
				return err
			}
			left -= m
		}
	}
	return nil
}

// writeLayer writes a layer of n files. The same n gives the same layer.
func writeLayer(w io.Writer, n int) error {
	tw := tar.NewWriter(w)
	if err := addFiles(tw, 0, n); err != nil {
		return err
	}
	return tw.Close()
}

// addFiles adds n files of a tree to a layer: those from number first on.
func addFiles(tw *tar.Writer, first, n int) error {
	random := rand.New(rand.NewPCG(1+uint64(first), uint64(n)))
	text := text(random)

	at := time.Unix(layerTime, 0)
	madeTop := make(map[string]bool)
	for i := first; i < first+n; i++ {
		top := fmt.Sprintf("usr%02d", i/filesPerDir/50)
		dir := fmt.Sprintf("%s/share%03d", top, i/filesPerDir)
		for _, d := range []string{top, dir} {
			if madeTop[d] {
				continue
			}
			madeTop[d] = true
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: at, Format: tar.FormatPAX}); err != nil {
				return err
			}
		}
		// Sizes are spread as in real trees: many small files, few large ones, with the right mean.
		size := min(int(random.ExpFloat64()*meanFileSize), 256<<10)
		start := random.IntN(len(text) - size)
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/file%06d", dir, i), Mode: 0o644, Size: int64(size),
			ModTime: at, Format: tar.FormatPAX,
		}
		if err := tw.WriteHeader(header); err != nil {
			return err
		}
		if _, err := tw.Write(text[start : start+size]); err != nil {
			return err
		}
	}
	return nil
}

// openLayer maps a tar file and lists its entries.
func openLayer(path string) (*layer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	l := &layer{path: path, data: data}
	r := bytes.NewReader(data)
	tr := tar.NewReader(r)
	for {
		header, err := tr.Next()
		if err == io.EOF {
			return l, nil
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeDir && header.Typeflag != tar.TypeReg {
			continue
		}
		e := entry{name: header.Name, isDir: header.Typeflag == tar.TypeDir}
		if e.isDir {
			e.name = e.name[:len(e.name)-1]
		} else {
			at := int64(len(data)) - int64(r.Len()) // where the contents begin
			e.data = data[at : at+header.Size]
			l.bytes += header.Size
			l.files++
		}
		l.entries = append(l.entries, e)
	}
}

// open returns a reader of the layer in a format.
func (l *layer) open(format layertar.Format) (*os.File, error) { return os.Open(l.file(format)) }

// remove unmaps and deletes the files.
func (l *layer) remove() error {
	err := unix.Munmap(l.data)
	for _, format := range l.formats {
		err = errors.Join(err, os.Remove(l.file(format)))
	}
	return err
}

// someFiles returns n names of files, evenly spread over the layer.
func (l *layer) someFiles(n int) []string {
	var names []string
	for _, e := range l.entries {
		if !e.isDir {
			names = append(names, e.name)
		}
	}
	return someOf(names, n)
}

// someOf returns n of the names, evenly spread.
func someOf(names []string, n int) []string {
	var some []string
	for i := range n {
		some = append(some, names[(2*i+1)*len(names)/(2*n)])
	}
	return some
}
