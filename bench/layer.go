package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// layer is an image layer as a tar file, and the list of what is in it.
type layer struct {
	path    string // the tar file
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

// makeLayer writes a layer of n files to path. The same n gives the same layer.
func makeLayer(path string, n int) (*layer, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := writeLayer(w, n); err != nil {
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
	return openLayer(path)
}

func writeLayer(w io.Writer, n int) error {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	// Words instead of noise, so that the layer compresses like text and programs do.
	var words bytes.Buffer
	for words.Len() < 1<<20 {
		fmt.Fprintf(&words, "%x ", random.Uint32()>>random.IntN(24))
	}
	text := words.Bytes()

	tw := tar.NewWriter(w)
	at := time.Unix(layerTime, 0)
	madeTop := make(map[string]bool)
	for i := range n {
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
	return tw.Close()
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

// open returns a reader of the tar.
func (l *layer) open() (*os.File, error) { return os.Open(l.path) }

// remove unmaps and deletes the tar.
func (l *layer) remove() error {
	if err := unix.Munmap(l.data); err != nil {
		return err
	}
	return os.Remove(l.path)
}

// someFiles returns n names of files, evenly spread over the layer.
func (l *layer) someFiles(n int) []string {
	var names []string
	for _, e := range l.entries {
		if !e.isDir {
			names = append(names, e.name)
		}
	}
	var some []string
	for i := range n {
		some = append(some, names[(2*i+1)*len(names)/(2*n)])
	}
	return some
}
