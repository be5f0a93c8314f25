package sendstream_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/internal/testfs"
)

// realStreams returns streams that a kernel made, by name.
func realStreams(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.stream")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	streams := make(map[string][]byte)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		streams[filepath.Base(path)] = b
	}
	return streams
}

// commands decodes a stream until its end or its first fault, and describes each command.
func commands(r io.Reader) ([]string, error) {
	stream, err := sendstream.NewReader(r)
	if err != nil {
		return nil, err
	}
	var all []string
	for stream.Next() {
		all = append(all, describe(stream.Command()))
	}
	return all, stream.Err()
}

// describe renders a command with its members.
func describe(c sendstream.Command) string {
	return fmt.Sprintf("%v %+v", c.Op(), c)
}

func TestReaderRewritesRealStreams(t *testing.T) {
	for name, b := range realStreams(t) {
		t.Run(name, func(t *testing.T) {
			stream, err := sendstream.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			var out bytes.Buffer
			w, err := sendstream.NewWriter(&out, stream.Version())
			require.NoError(t, err)
			for stream.Next() {
				assert.Equal(t, int64(out.Len()), stream.Offset())
				require.NoError(t, w.Write(stream.Command()))
			}
			require.NoError(t, stream.Err())
			assert.True(t, bytes.Equal(b, out.Bytes()), "what was decoded is not all that the stream says")
		})
	}
}

func TestReaderDecodesMembers(t *testing.T) {
	stream, err := sendstream.NewReader(bytes.NewReader(realStreams(t)["full-v2.stream"]))
	require.NoError(t, err)
	assert.EqualValues(t, 2, stream.Version())
	seen := make(map[sendstream.Op]int)
	for stream.Next() {
		seen[stream.Command().Op()]++
		switch c := stream.Command().(type) {
		case *sendstream.Subvol:
			assert.Equal(t, "base", string(c.Path))
			assert.NotZero(t, c.UUID)
			assert.NotZero(t, c.Ctransid)
		case *sendstream.Mknod:
			if c.Ino == 261 {
				assert.EqualValues(t, 1<<8|3, c.Rdev)
				assert.EqualValues(t, 0o020644, c.Mode)
			} else {
				assert.Equal(t, uint64(0xfff103ff), c.Rdev)
				assert.EqualValues(t, 0o060644, c.Mode)
			}
		case *sendstream.Symlink:
			assert.Equal(t, "../x", string(c.Target))
		case *sendstream.Link:
			assert.Equal(t, "d/g", string(c.Path))
			assert.Equal(t, "d/f", string(c.Target))
		case *sendstream.Write:
			assert.Equal(t, "d/f", string(c.Path))
			assert.Equal(t, "hello\n", string(c.Data))
		case *sendstream.Chown:
			if string(c.Path) == "d/f" {
				assert.EqualValues(t, 5, c.UID)
				assert.EqualValues(t, 6, c.GID)
			}
		case *sendstream.Chmod:
			if string(c.Path) == "d/f" {
				assert.EqualValues(t, 0o4755, c.Mode&0o7777)
			}
		case *sendstream.EncodedWrite:
			assert.Equal(t, "z", string(c.Path))
			assert.EqualValues(t, 9000, c.UnencodedFileLen)
			assert.EqualValues(t, 12288, c.UnencodedLen)
			assert.Equal(t, sendstream.CompressionZstd, c.Compression)
			assert.Len(t, c.Data, 4096)
		case *sendstream.Clone:
			assert.Equal(t, "z2", string(c.Path))
			assert.Equal(t, "z", string(c.ClonePath))
		case *sendstream.SetXattr:
			switch string(c.Name) {
			case "user.a":
				assert.Equal(t, "b", string(c.Data))
			case "trusted.t":
				assert.Equal(t, "x", string(c.Data))
			default:
				assert.Equal(t, "security.capability", string(c.Name))
			}
		case *sendstream.Utimes:
			if string(c.Path) == "z" {
				assert.EqualValues(t, 1_500_000_000, c.Mtime.Time().UnixNano())
			}
			assert.NotZero(t, c.Otime)
		}
	}
	require.NoError(t, stream.Err())
	assert.Equal(t, 1, seen[sendstream.OpEnd])
	assert.Equal(t, 2, seen[sendstream.OpMknod])
	assert.Equal(t, 1, seen[sendstream.OpEncodedWrite])
	assert.Equal(t, 3, seen[sendstream.OpSetXattr])
}

// TestReaderAgreesWithProgs compares the Reader with btrfs receive --dump, another implementation.
func TestReaderAgreesWithProgs(t *testing.T) {
	btrfs, err := exec.LookPath("btrfs")
	if err != nil {
		testfs.Skip(t, "needs btrfs-progs")
	}
	for name, b := range realStreams(t) {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command(btrfs, "receive", "--dump", "-f", filepath.Join("testdata", name)).Output()
			require.NoError(t, err)
			want := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")

			stream, err := sendstream.NewReader(bytes.NewReader(b))
			require.NoError(t, err)
			var i int
			for ; stream.Next(); i++ {
				c := stream.Command()
				if c.Op() == sendstream.OpEnd {
					break // --dump does not show it
				}
				fields := strings.Fields(want[i])
				assert.Equal(t, strings.ToLower(c.Op().String()), fields[0])
				assert.Contains(t, fields[1]+"/", "/"+quoted(pathOf(c))+"/")
			}
			assert.Equal(t, len(want), i)
			assert.False(t, stream.Next())
			require.NoError(t, stream.Err())
		})
	}
}

// quoted writes a path as btrfs receive --dump does, for the bytes that occur in testdata.
func quoted(path []byte) string {
	return strings.NewReplacer("\n", `\n`, "\xff", `\377`).Replace(string(path))
}

func pathOf(c sendstream.Command) []byte {
	switch c := c.(type) {
	case *sendstream.Subvol:
		return c.Path
	case *sendstream.Snapshot:
		return c.Path
	case *sendstream.Mkfile:
		return c.Path
	case *sendstream.Mkdir:
		return c.Path
	case *sendstream.Mknod:
		return c.Path
	case *sendstream.Mkfifo:
		return c.Path
	case *sendstream.Mksock:
		return c.Path
	case *sendstream.Symlink:
		return c.Path
	case *sendstream.Rename:
		return c.Path
	case *sendstream.Link:
		return c.Path
	case *sendstream.Unlink:
		return c.Path
	case *sendstream.SetXattr:
		return c.Path
	case *sendstream.RemoveXattr:
		return c.Path
	case *sendstream.Write:
		return c.Path
	case *sendstream.Clone:
		return c.Path
	case *sendstream.Truncate:
		return c.Path
	case *sendstream.Chmod:
		return c.Path
	case *sendstream.Chown:
		return c.Path
	case *sendstream.Utimes:
		return c.Path
	case *sendstream.UpdateExtent:
		return c.Path
	case *sendstream.FileAttr:
		return c.Path
	case *sendstream.EncodedWrite:
		return c.Path
	}
	return nil
}

func TestReaderReadsByteByByte(t *testing.T) {
	for name, b := range realStreams(t) {
		want, err := commands(bytes.NewReader(b))
		require.NoError(t, err)
		got, err := commands(iotest.OneByteReader(bytes.NewReader(b)))
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
}

func TestReaderReportsTruncation(t *testing.T) {
	b := realStreams(t)["nodata-v1.stream"]
	for n := range len(b) {
		_, err := commands(bytes.NewReader(b[:n]))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "cut at %d", n)
		var where *sendstream.Error
		require.ErrorAs(t, err, &where)
		require.LessOrEqual(t, where.Offset, int64(n))
	}
}

func TestReaderReportsEveryFlippedBit(t *testing.T) {
	b := bytes.Clone(realStreams(t)["nodata-v1.stream"])
	for i := range b {
		b[i] ^= 1 << (i % 8)
		_, err := commands(bytes.NewReader(b))
		b[i] ^= 1 << (i % 8)
		// Only the version may change without harm, namely to another known version.
		if i == len("btrfs-stream\x00") {
			continue
		}
		require.Error(t, err, "byte %d", i)
	}
}

func TestReaderPassesOnErrors(t *testing.T) {
	b := realStreams(t)["nodata-v1.stream"]
	broken := errors.New("broken pipe")
	_, err := commands(io.MultiReader(bytes.NewReader(b[:300]), iotest.ErrReader(broken)))
	require.ErrorIs(t, err, broken)
	assert.NotErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestReaderStopsAtEnd(t *testing.T) {
	b := append(bytes.Clone(realStreams(t)["nodata-v1.stream"]), "what follows is not read"...)
	stream, err := sendstream.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	for stream.Next() {
	}
	require.NoError(t, stream.Err())
	assert.False(t, stream.Next())
	assert.IsType(t, &sendstream.End{}, stream.Command())
	more, err := stream.More()
	require.NoError(t, err)
	assert.True(t, more)
}

func TestReaderMore(t *testing.T) {
	b, broken := realStreams(t)["nodata-v1.stream"], errors.New("broken")
	for name, rest := range map[string]struct {
		io.Reader
		err error
	}{"end": {strings.NewReader(""), nil}, "error": {iotest.ErrReader(broken), broken}} {
		stream, err := sendstream.NewReader(io.MultiReader(bytes.NewReader(b), rest))
		require.NoError(t, err)
		for stream.Next() {
		}
		require.NoError(t, stream.Err(), name)
		more, err := stream.More()
		assert.Equal(t, rest.err, err, name)
		assert.False(t, more, name)
	}
}

// stream builds a stream of raw commands.
type rawStream struct{ bytes.Buffer }

func newRaw(version uint32) *rawStream {
	s := &rawStream{}
	s.WriteString("btrfs-stream\x00")
	s.Write(binary.LittleEndian.AppendUint32(nil, version))
	return s
}

// command appends a command with a right checksum.
func (s *rawStream) command(op uint16, payload []byte) *rawStream {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint16(b, op)
	b = append(b, 0, 0, 0, 0)
	b = append(b, payload...)
	crc := ^crc32.Update(^uint32(0), crc32.MakeTable(crc32.Castagnoli), b)
	binary.LittleEndian.PutUint32(b[6:], crc)
	s.Write(b)
	return s
}

// attr encodes an attribute.
func attr(a sendstream.Attr, value string) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(a))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

func TestReaderRejects(t *testing.T) {
	path := attr(sendstream.AttrPath, "a")
	nsec := attr(sendstream.AttrAtime, "\x00\x00\x00\x00\x00\x00\x00\x00\xfe\xff\xff\x3f") // UTIME_OMIT
	for name, tc := range map[string]struct {
		version uint32
		op      sendstream.Op
		payload []byte
		err     error
		text    string
	}{
		"unknown command":     {1, 77, path, sendstream.ErrUnknownCommand, "offset 17: command 77: unknown command"},
		"command 0":           {1, 0, nil, sendstream.ErrUnknownCommand, "unknown command"},
		"unknown attribute":   {1, sendstream.OpUnlink, append(attr(36, ""), path...), sendstream.ErrUnknownAttribute, "UNLINK: unknown attribute 36"},
		"attribute 0":         {1, sendstream.OpUnlink, attr(0, "x"), sendstream.ErrUnknownAttribute, "unknown attribute 0"},
		"missing attribute":   {1, sendstream.OpRename, path, sendstream.ErrMalformed, "RENAME: malformed: attribute PATH_TO is missing"},
		"attribute twice":     {1, sendstream.OpUnlink, append(path, path...), sendstream.ErrMalformed, "PATH is given twice"},
		"attribute too long":  {1, sendstream.OpUnlink, path[:len(path)-1], sendstream.ErrMalformed, "PATH of 1 bytes in a command with 0 left"},
		"no attribute length": {1, sendstream.OpUnlink, path[:3], sendstream.ErrMalformed, "PATH has no length"},
		"odd byte":            {1, sendstream.OpUnlink, append(path, 1), sendstream.ErrMalformed, "a byte after the last attribute"},
		"wrong size":          {1, sendstream.OpTruncate, append(path, attr(sendstream.AttrSize, "1234")...), sendstream.ErrMalformed, "SIZE has 4 bytes instead of 8"},
		"special time":        {1, sendstream.OpUtimes, append(path, nsec...), sendstream.ErrMalformed, "ATIME has 1073741822 nanoseconds"},
		"absolute path":       {1, sendstream.OpUnlink, attr(sendstream.AttrPath, "/a"), sendstream.ErrMalformed, `holds the component ""`},
		"trailing slash":      {1, sendstream.OpUnlink, attr(sendstream.AttrPath, "a/"), sendstream.ErrMalformed, `holds the component ""`},
		"path upwards":        {1, sendstream.OpUnlink, attr(sendstream.AttrPath, "a/../../b"), sendstream.ErrMalformed, `holds the component ".."`},
		"path to itself":      {1, sendstream.OpUnlink, attr(sendstream.AttrPath, "."), sendstream.ErrMalformed, `holds the component "."`},
		"path with NUL":       {1, sendstream.OpUnlink, attr(sendstream.AttrPath, "a\x00b"), sendstream.ErrMalformed, "holds a NUL byte"},
		"too long for v1":     {1, sendstream.OpUnlink, make([]byte, 64<<10), sendstream.ErrTooLong, "65536 bytes"},
		"too long for v2":     {2, sendstream.OpUnlink, make([]byte, sendstream.MaxCommandSize), sendstream.ErrTooLong, "command too long"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := commands(newRaw(tc.version).command(uint16(tc.op), tc.payload))
			require.ErrorIs(t, err, tc.err)
			require.ErrorContains(t, err, tc.text)
			var where *sendstream.Error
			require.ErrorAs(t, err, &where)
			assert.EqualValues(t, 17, where.Offset)
			assert.Equal(t, tc.op, where.Op)
		})
	}
}

func TestReaderRejectsHeaders(t *testing.T) {
	for name, tc := range map[string]struct {
		input string
		err   error
	}{
		"nothing":     {"", io.ErrUnexpectedEOF},
		"short":       {"btrfs-stream\x00\x01", io.ErrUnexpectedEOF},
		"other magic": {"btrfs-streaM\x00\x01\x00\x00\x00", sendstream.ErrNotStream},
		"version 0":   {"btrfs-stream\x00\x00\x00\x00\x00", sendstream.ErrVersion},
		"version 4":   {"btrfs-stream\x00\x04\x00\x00\x00", sendstream.ErrVersion},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sendstream.NewReader(strings.NewReader(tc.input))
			require.ErrorIs(t, err, tc.err)
		})
	}
}

// TestReaderReservesNoMemoryForALengthAlone gives a command a length that the stream does not have.
func TestReaderReservesNoMemoryForALengthAlone(t *testing.T) {
	s := newRaw(2)
	s.Write([]byte{0, 0, 0xf0, 0, byte(sendstream.OpWrite), 0, 0, 0, 0, 0, 1, 2, 3})
	input := s.Bytes()
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			_, err := commands(bytes.NewReader(input))
			require.ErrorIs(b, err, io.ErrUnexpectedEOF)
		}
	})
	assert.Less(t, result.AllocedBytesPerOp(), int64(256<<10))
}

func TestReaderDoesNotAllocatePerCommand(t *testing.T) {
	var many bytes.Buffer
	w, err := sendstream.NewWriter(&many, 2)
	require.NoError(t, err)
	path := []byte("some/path/to/a/file")
	for range 1000 {
		require.NoError(t, w.Write(&sendstream.Mkfile{Path: path, Ino: 300}))
		require.NoError(t, w.Write(&sendstream.Rename{Path: path, To: path}))
		require.NoError(t, w.Write(&sendstream.Write{Path: path, Data: path}))
		require.NoError(t, w.Write(&sendstream.Utimes{Path: path}))
	}
	require.NoError(t, w.Write(&sendstream.End{}))
	allocs := testing.AllocsPerRun(5, func() {
		stream, err := sendstream.NewReader(bytes.NewReader(many.Bytes()))
		if err != nil {
			t.Error(err)
			return
		}
		for stream.Next() {
		}
		if stream.Err() != nil {
			t.Error(stream.Err())
		}
	})
	assert.Less(t, allocs, 20.0)
}

func BenchmarkReader(b *testing.B) {
	input := realStreams(b)["nodata-v1.stream"]
	b.SetBytes(int64(len(input)))
	for b.Loop() {
		stream, err := sendstream.NewReader(bytes.NewReader(input))
		if err != nil {
			b.Fatal(err)
		}
		for stream.Next() {
		}
		if stream.Err() != nil {
			b.Fatal(stream.Err())
		}
	}
}
