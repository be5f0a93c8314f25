package layertar

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/inflate"
)

const (
	// compressors bounds the goroutines of one gzip stream, and with them its memory: one block of input and one
	// of output each.
	compressors = 8
	// gzipBlock is the input of one goroutine. The output depends on it.
	gzipBlock = 1 << 20
	// gunzipPiece is how much is decompressed at once; four of them are ahead of the reader.
	gunzipPiece = 256 << 10
	// zstdGoroutines is the number of goroutines of one zstd stream. One would give other bytes than several.
	zstdGoroutines = 2
	// maxWindow is the largest zstd window that is decompressed, as with the zstd command.
	maxWindow = 128 << 20
)

// Compress returns a writer that compresses into w. level 0 is the format's default. Other levels are 1 to 9 for Gzip
// and 1 to 22 for Zstd, mapped to the few levels of the encoder; Plain has none. Returns errdefs.ErrInvalidArgument
// if the level or format does not exist.
//
// Compression runs in several goroutines. For the same version of Cowshed the output depends on the input, format and
// level only. The number of processors does not matter, nor the sizes of the writes. Close ends the stream and the
// goroutines, and must be called after an error as well; it does not close w.
func Compress(w io.Writer, format Format, level int) (io.WriteCloser, error) {
	highest := map[Format]int{Gzip: gzip.BestCompression, Zstd: 22}[format]
	if format > Zstd || level < 0 || level > highest {
		return nil, fault.New(errdefs.ErrInvalidArgument, "layertar: %v has no level %d", format, level)
	}
	switch format {
	case Gzip:
		if level == 0 {
			level = gzip.DefaultCompression
		}
		zw, err := pgzip.NewWriterLevel(w, level)
		if err != nil {
			return nil, fmt.Errorf("layertar: gzip: %w", err)
		}
		if err := zw.SetConcurrency(gzipBlock, parallel()); err != nil {
			return nil, fmt.Errorf("layertar: gzip: %w", err)
		}
		return &compressor{zw, func() error {
			err := zw.Close()
			zw.Reset(io.Discard) // waits for the goroutines, which Close leaves behind after an error
			return err
		}}, nil
	case Zstd:
		zlevel := zstd.SpeedDefault
		if level > 0 {
			zlevel = zstd.EncoderLevelFromZstd(level)
		}
		// One goroutine finds matches and another encodes them. Several that find matches (WithConcurrentBlocks) need
		// half as much processor time again, for a Debian tree, and hundreds of MiB. With a smaller window the layer
		// is a seventh larger.
		zw, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zlevel), zstd.WithEncoderConcurrency(zstdGoroutines))
		if err != nil {
			return nil, fmt.Errorf("layertar: zstd: %w", err)
		}
		return &compressor{zw, zw.Close}, nil
	}
	return &compressor{Writer: w}, nil
}

// parallel is the number of goroutines that work on one gzip stream.
func parallel() int { return min(compressors, runtime.GOMAXPROCS(0)) }

// compressor is a writer that is closed once.
type compressor struct {
	io.Writer
	close func() error
}

// Close implements io.Closer. Closing twice does nothing.
func (c *compressor) Close() error {
	if c.close == nil {
		return nil
	}
	err := c.close()
	c.close = nil
	return err
}

// Decompress returns the decompressed content of r. The first bytes tell the format: Gzip of any number of members,
// Zstd of any number of frames, Bzip2, XZ, or else Plain. XZ is errdefs.ErrNotImplemented where the program xz is not
// installed.
//
// Decompression runs ahead of the reader in its own goroutines. Memory is bounded: a zstd window of more than 128 MiB
// is an error. Close ends the goroutines, waiting for a Read of r that is under way; it does not close r. How much of
// r has been read by then is not defined.
func Decompress(r io.Reader) (io.ReadCloser, Format, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(sniffLen)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, Plain, fmt.Errorf("layertar: decompress: %w", err)
	}
	switch format := sniff(head); format {
	case Gzip:
		zr, err := inflate.NewReader(br)
		if err != nil {
			return nil, Gzip, fmt.Errorf("layertar: gzip: %w", err)
		}
		return ReadAhead(named{zr, Gzip}, gunzipPiece), Gzip, nil
	case Zstd:
		zr, err := zstd.NewReader(br,
			zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecoderConcurrency(min(4, max(2, runtime.GOMAXPROCS(0)))))
		if err != nil {
			return nil, Zstd, fmt.Errorf("layertar: zstd: %w", err)
		}
		return namedCloser{named{zr, Zstd}, zr.IOReadCloser()}, Zstd, nil
	case Bzip2:
		return ReadAhead(named{bzip2.NewReader(br), Bzip2}, gunzipPiece), Bzip2, nil
	case XZ:
		u, err := newUnxz(br)
		if err != nil {
			return nil, XZ, err
		}
		return namedCloser{named{u, XZ}, u}, XZ, nil
	}
	return io.NopCloser(br), Plain, nil
}

// sniffLen is how much of a stream tells its format.
const sniffLen = 512

var (
	gzipMagic  = []byte{0x1f, 0x8b, 0x08}
	zstdMagic  = []byte{0x28, 0xb5, 0x2f, 0xfd}
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	bzip2Block = []byte("1AY&SY") // after "BZh" and the level
	tarMagic   = []byte("ustar")  // at tarMagicAt, in every format but that of 1979
)

const tarMagicAt = 257

// sniff tells the format of a stream by its first bytes.
func sniff(head []byte) Format {
	switch {
	case len(head) >= tarMagicAt+len(tarMagic) && bytes.Equal(head[tarMagicAt:][:len(tarMagic)], tarMagic):
		return Plain // whatever the first entry's name looks like
	case bytes.HasPrefix(head, gzipMagic):
		return Gzip
	case bytes.HasPrefix(head, zstdMagic):
		return Zstd
	case len(head) >= 8 && binary.LittleEndian.Uint32(head)&^0xf == 0x184d2a50: // skippable frame
		return Zstd
	case bytes.HasPrefix(head, xzMagic):
		return XZ
	case len(head) >= 10 && bytes.HasPrefix(head, []byte("BZh")) && bytes.Equal(head[4:10], bzip2Block):
		return Bzip2
	}
	return Plain
}

// named says in its errors which decompressor failed.
type named struct {
	io.Reader
	format Format
}

func (n named) Read(p []byte) (int, error) {
	c, err := n.Reader.Read(p)
	switch {
	case err == nil, err == io.EOF: //nolint:errorlint // io.EOF is never wrapped
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		err = fmt.Errorf("%v: it needs a window of more than 128 MiB; compress it anew with zstd --long=27 or less: %w", n.format, err)
	default:
		err = fmt.Errorf("%v: %w", n.format, err)
	}
	return c, err
}

// namedCloser is a closer with its name.
type namedCloser struct {
	named
	io.Closer
}
