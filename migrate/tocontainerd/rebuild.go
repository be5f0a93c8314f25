package tocontainerd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/internal/stream"
)

// maxPart bounds the memory for one part of a tar in JSON. tar-split keeps all bytes between two files in one part.
const maxPart = 64 << 20

// rebuild writes the tar that a layer came from: the data of its files in dir, and all else from its parts. The caller
// checks the digest of the result.
func rebuild(ctx context.Context, w io.Writer, dir *os.File, parts io.Reader) error {
	lines := bufio.NewScanner(stream.ReadUntil(ctx, parts))
	lines.Buffer(make([]byte, 0, 64<<10), maxPart)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var part storage.Entry
		if err := json.Unmarshal(lines.Bytes(), &part); err != nil {
			return fault.New(errdefs.ErrDataLoss, "parts of its tar: %w", err)
		}
		if err := writePart(w, dir, &part); err != nil {
			return err
		}
	}
	err := lines.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = fault.New(errdefs.ErrResourceExhausted, "a part of its tar has more than %d bytes", maxPart)
	}
	return err
}

// noData is the checksum of a file that the tar has no data of: tar-split records a size for directories and links too,
// if their headers have one.
var noData = crc64.New(storage.CRCTable).Sum(nil)

func writePart(w io.Writer, dir *os.File, part *storage.Entry) (err error) {
	switch part.Type {
	case storage.SegmentType:
		_, err := w.Write(part.Payload)
		return err
	case storage.FileType:
	default:
		return fault.New(errdefs.ErrNotImplemented, "part of its tar of type %d", part.Type)
	}
	if part.Size == 0 || bytes.Equal(part.Payload, noData) {
		return nil
	}
	name := part.GetName()
	f, err := openInTree(dir, name)
	if err != nil {
		return fault.As(errdefs.ErrDataLoss, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := crc64.New(storage.CRCTable)
	n, err := io.CopyN(io.MultiWriter(w, sum), f, part.Size)
	switch {
	case errors.Is(err, io.EOF):
		return fault.New(errdefs.ErrDataLoss, "file %s has %d bytes, and its tar %d", printable.Path(name), n, part.Size)
	case err != nil:
		return fmt.Errorf("file %s: %w", printable.Path(name), err)
	case !bytes.Equal(sum.Sum(nil), part.Payload):
		return fault.New(errdefs.ErrDataLoss, "file %s has other content than its tar", printable.Path(name))
	}
	return nil
}
