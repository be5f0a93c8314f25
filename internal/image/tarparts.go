package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/zero"
)

// tarPart is a piece of a tar in the JSON of tar-split: bytes as they are (storage.SegmentType), or those of a file of the
// layer (storage.FileType), of which the tar may hold less than all: sparse entries have no bytes for holes. Payload is then
// their checksum, and Position the place of the entry in the tar.
type tarPart struct {
	storage.Entry
	Offset int64 `json:"offset,omitempty"` // in the file
}

const (
	// maxKept bounds the stored data that the layer's tree does not have, and bytes behind the end mark.
	maxKept = 16 << 20

	tarBlock    = 512
	dataChunk   = 32 << 10 // read at once
	sparseChunk = 4 << 10  // the same of sparse files, whose data and holes mostly begin at multiples of it
	maxSegment  = 64 << 10
	maxPath     = 4096 // PATH_MAX, less than which a file's name must be to be opened
)

var errTooMuchToKeep = fmt.Errorf("more than %d MiB of its tar are no part of the tree", maxKept>>20)

// tarShape lists oddities of a tar that readers of tars ignore.
type tarShape struct {
	entries  int
	padding  int   // entries with other bytes than zeros in their padding
	endMark  int   // blocks of zeros at the end: two, or less if it is missing
	trailing int64 // bytes behind the end mark, or its substitute, without zeros at the start and end
}

// tarSplitter takes a tar apart. Whatever is not the data of a file of the tree is kept, so that there is nothing that it
// cannot take apart.
type tarSplitter struct {
	in   *bufio.Reader
	out  *json.Encoder
	lost map[int]bool // entries whose data the tree does not have
	kept int64        // bytes of data that are kept
	at   int64        // bytes read

	reading readingOf
	segment []byte // kept, and not written yet
	stored  []byte // data of the file as it stands in the tar
	buf     []byte // data of the file
	file    filePart
	shape   tarShape
	err     error // the first one of writing
}

// readingOf names the part that is being read.
type readingOf int

const (
	ofHeaders  readingOf = iota // or padding, or the end mark
	ofKeptData                  // that the tree does not have
	ofFile                      // that it has
)

// filePart is the run of a file's bytes that is being read.
type filePart struct {
	name   string
	offset int64
	size   int64
	sum    hash.Hash
}

// splitTar writes the parts of a tar. lost are the entries whose data the tree does not have.
func splitTar(in io.Reader, out io.Writer, lost map[int]bool) (tarShape, error) {
	t := &tarSplitter{in: bufio.NewReaderSize(in, maxSegment), out: json.NewEncoder(out), lost: lost, buf: make([]byte, dataChunk)}
	t.file.sum = crc64.New(storage.CRCTable)
	tr := tar.NewReader(t)
	for t.err == nil && !t.ends() {
		h, err := tr.Next()
		if err == nil {
			err = t.entry(h, tr)
		}
		if err != nil {
			break // no tar from here on, which the reader that applies it reports
		}
	}
	t.end()
	t.flush()
	return t.shape, t.err
}

// Read implements io.Reader for the tar.Reader.
func (t *tarSplitter) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.in.Read(p)
	t.at += int64(n)
	switch t.reading {
	case ofFile:
		t.stored = append(t.stored, p[:n]...)
	case ofKeptData:
		t.keep(n)
		fallthrough
	case ofHeaders:
		t.raw(p[:n])
	}
	return n, err
}

// ends reports whether the next block is not one of an entry, and looks at the padding before it.
func (t *tarSplitter) ends() bool {
	padding := t.padding()
	next, _ := t.in.Peek(padding + tarBlock) // an error is for the next read
	if !zero.All(next[:min(padding, len(next))]) {
		t.shape.padding++
	}
	next = next[min(padding, len(next)):]
	return len(next) < tarBlock || zero.All(next)
}

func (t *tarSplitter) padding() int { return int(-t.at & (tarBlock - 1)) }

// entry takes the data of an entry.
func (t *tarSplitter) entry(h *tar.Header, tr *tar.Reader) error {
	index := t.shape.entries
	t.shape.entries++
	if !t.lost[index] {
		if name, ok := treeFile(h); ok {
			return t.fileData(index, name, h, tr)
		}
	}
	t.reading = ofKeptData
	_, err := io.Copy(io.Discard, tr)
	t.reading = ofHeaders
	return err
}

// treeFile returns the name of the file that an entry makes.
func treeFile(h *tar.Header) (string, bool) {
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	isFile := (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeGNUSparse) && h.Size > 0 && name != "." && filepath.IsLocal(name)
	reserved := strings.HasPrefix(name, archive.WhiteoutMetaPrefix) || strings.HasPrefix(path.Base(name), archive.WhiteoutPrefix)
	return name, isFile && !reserved && len(name) < maxPath && strings.IndexByte(name, 0) < 0
}

// isSparse reports whether the tar has no bytes for the holes of a file.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// fileData takes the data of a file of the tree.
func (t *tarSplitter) fileData(index int, name string, h *tar.Header, tr *tar.Reader) error {
	buf := t.buf
	if isSparse(h) {
		buf = buf[:sparseChunk]
	}
	t.file.name = name
	for at := int64(0); at < h.Size; {
		t.reading, t.stored = ofFile, t.stored[:0]
		n, err := io.ReadFull(tr, buf[:min(int64(len(buf)), h.Size-at)])
		t.reading = ofHeaders
		t.addStored(index, at, buf[:n])
		if err != nil {
			t.closeFile(index)
			return err
		}
		at += int64(n)
	}
	t.closeFile(index)
	return t.err
}

// addStored adds a part of the tar that stands for bytes of the file at an offset: all of them, none, or a part.
func (t *tarSplitter) addStored(index int, offset int64, data []byte) {
	place := len(data) - len(t.stored)
	if !bytes.HasSuffix(data, t.stored) {
		place = bytes.Index(data, t.stored)
	}
	switch {
	case len(t.stored) == 0:
	case place >= 0:
		t.add(index, offset+int64(place), t.stored)
	default: // parts of them, with holes between
		t.closeFile(index)
		t.keep(len(t.stored))
		t.raw(t.stored)
	}
}

// add takes bytes of the file that stand at an offset in it.
func (t *tarSplitter) add(index int, offset int64, data []byte) {
	if t.file.offset+t.file.size != offset {
		t.closeFile(index)
		t.file.offset = offset
	}
	t.file.size += int64(len(data))
	_, _ = t.file.sum.Write(data) // never fails
}

// closeFile writes the bytes of the file that were read.
func (t *tarSplitter) closeFile(index int) {
	f := &t.file
	if f.size > 0 {
		t.flush()
		part := tarPart{storage.Entry{Type: storage.FileType, Size: f.size, Payload: f.sum.Sum(nil), Position: index}, f.offset}
		part.SetName(f.name)
		t.write(part)
	}
	f.offset, f.size = 0, 0
	f.sum.Reset()
}

// end adds the bytes after the last entry.
func (t *tarSplitter) end() {
	_, _ = io.CopyN(io.Discard, t, int64(t.padding())) // an error comes again
	for t.shape.endMark < 2 {
		block, _ := t.in.Peek(tarBlock)
		if len(block) < tarBlock || !zero.All(block) {
			break
		}
		_, _ = io.CopyN(io.Discard, t, tarBlock) // it is in the buffer
		t.shape.endMark++
	}
	start := int64(-1)
	buf := make([]byte, maxSegment)
	for {
		before := t.at
		n, err := t.Read(buf)
		used := bytes.TrimRight(buf[:n], "\x00")
		if len(used) > 0 {
			if start < 0 {
				start = before + int64(len(used)-len(bytes.TrimLeft(used, "\x00")))
			}
			t.shape.trailing = before + int64(len(used)) - start
		}
		t.keep(len(used))
		if err != nil {
			return // the end, or an error that the other reader reports
		}
	}
}

// keep counts bytes of data that are kept.
func (t *tarSplitter) keep(n int) {
	if t.kept += int64(n); t.kept > maxKept {
		t.fail(errTooMuchToKeep)
	}
}

// raw takes bytes that are kept.
func (t *tarSplitter) raw(p []byte) {
	t.segment = append(t.segment, p...)
	if len(t.segment) >= maxSegment {
		t.flush()
	}
}

func (t *tarSplitter) flush() {
	if len(t.segment) > 0 {
		t.write(tarPart{Entry: storage.Entry{Type: storage.SegmentType, Payload: t.segment}})
		t.segment = t.segment[:0]
	}
}

func (t *tarSplitter) write(p tarPart) {
	if t.err == nil {
		t.fail(t.out.Encode(p))
	}
}

func (t *tarSplitter) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

// eachPart reads the parts of a tar.
func eachPart(parts io.Reader, do func(tarPart) error) error {
	dec := json.NewDecoder(parts)
	for {
		var p tarPart
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = do(p)
		}
		if err != nil {
			return err
		}
	}
}

// joinTar writes the tar that was taken apart. The layer's files may have changed since: a caller that relies on the
// result checks its digest.
func joinTar(files storage.FileGetter, parts io.Reader, w io.Writer) error {
	return eachPart(parts, func(p tarPart) error {
		switch p.Type {
		case storage.SegmentType:
			_, err := w.Write(p.Payload)
			return err
		case storage.FileType:
			return p.copyFile(files, w)
		}
		return fault.New(errdefs.ErrNotImplemented, "part of type %d", p.Type)
	})
}

// lostData returns the entries whose data the layer's files are not, or not any more.
func lostData(files storage.FileGetter, parts io.Reader) (map[int]bool, error) {
	lost := make(map[int]bool)
	err := eachPart(parts, func(p tarPart) error {
		if p.Type == storage.FileType && !lost[p.Position] && p.copyFile(files, io.Discard) != nil {
			lost[p.Position] = true
		}
		return nil
	})
	return lost, err
}

var noData = crc64.New(storage.CRCTable).Sum(nil)

// copyFile writes the bytes of the layer's file.
func (p tarPart) copyFile(files storage.FileGetter, w io.Writer) (err error) {
	// The module tar-split, which has written such parts, has a size for directories and links too if their headers do.
	if p.Size == 0 || bytes.Equal(p.Payload, noData) {
		return nil
	}
	f, err := files.Get(p.GetName())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if p.Offset != 0 {
		seeker, ok := f.(io.Seeker)
		if !ok {
			return fault.New(errdefs.ErrNotImplemented, "file %q is read from its start only", clip(p.GetName()))
		}
		if _, err := seeker.Seek(p.Offset, io.SeekStart); err != nil {
			return err
		}
	}
	sum := crc64.New(storage.CRCTable)
	n, err := io.CopyN(io.MultiWriter(w, sum), f, p.Size)
	switch {
	case errors.Is(err, io.EOF):
		return fault.New(errdefs.ErrDataLoss, "file %q has %d bytes, and its tar %d", clip(p.GetName()), p.Offset+n, p.Offset+p.Size)
	case err != nil:
		return err
	}
	if !bytes.Equal(sum.Sum(nil), p.Payload) {
		return fault.New(errdefs.ErrDataLoss, "file %q has other content than it was imported with", clip(p.GetName()))
	}
	return nil
}
