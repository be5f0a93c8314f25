package btrfs

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// maxUnencoded is the most data in bytes that one ENCODED_WRITE may hold when decoded. btrfs compresses no
// more than 128 KiB at once (BTRFS_MAX_UNCOMPRESSED).
const maxUnencoded = 1 << 20

// encodedWrite stores compressed data as they are or, if the kernel cannot do that, decompressed.
func (v *receiver) encodedWrite(c *sendstream.EncodedWrite) error {
	offset, err := fileRange(c.Offset, c.UnencodedFileLen)
	switch {
	case err != nil:
		return err
	case c.Encryption != 0:
		return fault.New(errdefs.ErrNotImplemented, "data encrypted by method %d", c.Encryption)
	case c.UnencodedLen > maxUnencoded:
		return invalid("%d bytes of data in one extent", c.UnencodedLen)
	case c.UnencodedOffset > c.UnencodedLen || c.UnencodedFileLen > c.UnencodedLen-c.UnencodedOffset:
		return invalid("%d bytes at %d of %d bytes of data", c.UnencodedFileLen, c.UnencodedOffset, c.UnencodedLen)
	case len(c.Data) == 0:
		return invalid("no data")
	}
	if c.Compression != sendstream.CompressionNone {
		fd, err := v.tree.writable(c.Path)
		if err != nil {
			return err
		}
		err = btrfsctl.EncodedWrite(fd, btrfsctl.EncodedIO{
			Offset:          offset,
			Len:             c.UnencodedFileLen,
			UnencodedLen:    c.UnencodedLen,
			UnencodedOffset: c.UnencodedOffset,
			Compression:     uint32(c.Compression),
		}, c.Data)
		if !cannotEncode(err) {
			return pathError("write", c.Path, err)
		}
	}
	data, err := v.decoder.decode(c.Compression, c.Data, int(c.UnencodedLen))
	if err != nil {
		return pathError("decompress", c.Path, err)
	}
	return v.write(c.Path, c.Offset, data[c.UnencodedOffset:][:c.UnencodedFileLen])
}

// cannotEncode reports whether the kernel has refused to store compressed data, but may store them decompressed.
func cannotEncode(err error) bool {
	for _, errno := range []error{unix.ENOTTY, unix.EINVAL, unix.ENOSPC, unix.EOPNOTSUPP, unix.EPERM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// extentDecoder decompresses extents.
type extentDecoder struct {
	data []byte // reused
	zstd *zstd.Decoder
}

// decode returns the data of an extent, in size bytes. It cuts longer data, and continues shorter data with zeros, as
// the kernel does when it reads such an extent. The result is valid until the next decode.
func (d *extentDecoder) decode(compression sendstream.Compression, data []byte, size int) ([]byte, error) {
	if cap(d.data) < size {
		d.data = make([]byte, size)
	}
	d.data = d.data[:size]

	var n int
	var err error
	switch compression {
	case sendstream.CompressionNone:
		n = copy(d.data, data)
	case sendstream.CompressionZlib:
		n, err = d.inflate(data)
	case sendstream.CompressionZstd:
		n, err = d.unzstd(data)
	default:
		return nil, fault.New(errdefs.ErrNotImplemented, "compression %d, which this kernel does not accept and Cowshed cannot undo", compression)
	}
	if err != nil {
		return nil, invalid("corrupt data: %v", err)
	}
	clear(d.data[n:])
	return d.data, nil
}

// inflate fills d.data from a zlib stream.
func (d *extentDecoder) inflate(data []byte) (int, error) {
	r, err := zlib.NewReader(bytes.NewReader(data))
	if err != nil {
		return 0, err
	}
	return fill(d.data, r)
}

// fill reads until b is full or r ends.
func fill(b []byte, r io.Reader) (n int, err error) {
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err == io.EOF {
			break
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// maxZstdWindow is the largest window of a zstd frame, in bytes. btrfs uses windows of up to 128 KiB
// (ZSTD_BTRFS_MAX_WINDOWLOG).
const maxZstdWindow = 1 << 20

// unzstd fills d.data from a zstd frame, which may be followed by padding.
func (d *extentDecoder) unzstd(data []byte) (int, error) {
	r := bytes.NewReader(data)
	var err error
	if d.zstd == nil {
		d.zstd, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZstdWindow))
	} else {
		err = d.zstd.Reset(r)
	}
	if err != nil {
		return 0, err
	}
	n, err := fill(d.data, d.zstd)
	if errors.Is(err, zstd.ErrMagicMismatch) && n > 0 {
		err = nil
	}
	return n, err
}

func (d *extentDecoder) close() {
	if d.zstd != nil {
		d.zstd.Close()
	}
}
