package sendstream_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs/sendstream"
)

// everyCommand has one command of each type, with every member set.
func everyCommand() []sendstream.Command {
	path, other, data := []byte("a/b"), []byte("c"), []byte("data\x00\xff")
	uuid, from := sendstream.UUID{1, 2, 3}, sendstream.UUID{4, 5, 6}
	times := func(n uint32) sendstream.Timespec { return sendstream.Timespec{Sec: -int64(n), Nsec: n} }
	return []sendstream.Command{
		&sendstream.Subvol{Path: path, UUID: uuid, Ctransid: 7},
		&sendstream.Snapshot{Path: path, UUID: uuid, Ctransid: 7, CloneUUID: from, CloneCtransid: 8},
		&sendstream.Mkfile{Path: path, Ino: 9},
		&sendstream.Mkdir{Path: path, Ino: 9},
		&sendstream.Mknod{Path: path, Ino: 9, Rdev: 10, Mode: 11},
		&sendstream.Mkfifo{Path: path, Ino: 9, Rdev: 10, Mode: 11},
		&sendstream.Mksock{Path: path, Ino: 9, Rdev: 10, Mode: 11},
		&sendstream.Symlink{Path: path, Ino: 9, Target: []byte("/../anything")},
		&sendstream.Rename{Path: path, To: other},
		&sendstream.Link{Path: path, Target: other},
		&sendstream.Unlink{Path: path},
		&sendstream.Rmdir{Path: path},
		&sendstream.SetXattr{Path: path, Name: other, Data: data},
		&sendstream.RemoveXattr{Path: path, Name: other},
		&sendstream.Write{Path: path, Offset: 12, Data: data},
		&sendstream.Clone{Offset: 12, Len: 13, Path: path, CloneUUID: from, CloneCtransid: 8, ClonePath: other, CloneOffset: 14},
		&sendstream.Truncate{Path: path, Size: 15},
		&sendstream.Chmod{Path: path, Mode: 16},
		&sendstream.Chown{Path: path, UID: 17, GID: 18},
		&sendstream.Utimes{Path: []byte{}, Atime: times(1), Mtime: times(2), Ctime: times(3), Otime: times(4)},
		&sendstream.UpdateExtent{Path: path, Offset: 12, Size: 13},
		&sendstream.Fallocate{Path: path, Mode: 19, Offset: 12, Size: 13},
		&sendstream.FileAttr{Path: path, Flags: 20},
		&sendstream.EncodedWrite{
			Path: path, Offset: 12, UnencodedFileLen: 21, UnencodedLen: 22, UnencodedOffset: 23,
			Compression: sendstream.CompressionZlib, Encryption: 24, Data: data,
		},
		&sendstream.EnableVerity{Path: path, Algorithm: 25, BlockSize: 26, Salt: data, Signature: other},
		&sendstream.End{},
	}
}

func TestWriterRoundTrip(t *testing.T) {
	for version := uint32(sendstream.MinVersion); version <= sendstream.MaxVersion; version++ {
		var b bytes.Buffer
		w, err := sendstream.NewWriter(&b, version)
		require.NoError(t, err)
		want := everyCommand()
		for _, c := range want {
			require.NoError(t, w.Write(c))
		}

		stream, err := sendstream.NewReader(&b)
		require.NoError(t, err)
		ops := make(map[sendstream.Op]bool)
		for _, c := range want {
			require.True(t, stream.Next(), "%v: %v", c.Op(), stream.Err())
			assert.Equal(t, c, stream.Command())
			ops[c.Op()] = true
		}
		assert.False(t, stream.Next())
		require.NoError(t, stream.Err())
		assert.Len(t, ops, int(sendstream.OpEnableVerity), "a command is missing from the test")
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		version uint32
		command sendstream.Command
		err     error
	}{
		"path upwards":   {1, &sendstream.Unlink{Path: []byte("../a")}, sendstream.ErrMalformed},
		"long attribute": {2, &sendstream.SetXattr{Name: []byte("user.a"), Data: make([]byte, 1<<16)}, sendstream.ErrMalformed},
		"nanoseconds":    {2, &sendstream.Utimes{Mtime: sendstream.Timespec{Nsec: 1_000_000_000}}, sendstream.ErrMalformed},
		"long v1":        {1, &sendstream.Write{Path: make([]byte, 0), Data: make([]byte, 1<<16-1)}, sendstream.ErrTooLong},
		"long v2":        {2, &sendstream.Write{Data: make([]byte, sendstream.MaxCommandSize)}, sendstream.ErrTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			w, err := sendstream.NewWriter(&b, tc.version)
			require.NoError(t, err)
			require.ErrorIs(t, w.Write(tc.command), tc.err)
			require.NoError(t, w.Write(&sendstream.End{}), "a refused command does not spoil the stream")
			got, err := commands(&b)
			require.NoError(t, err)
			assert.Len(t, got, 1)
		})
	}
	_, err := sendstream.NewWriter(&bytes.Buffer{}, 4)
	require.ErrorIs(t, err, sendstream.ErrVersion)
}

func TestWriterKeepsErrors(t *testing.T) {
	full := errors.New("no space")
	w, err := sendstream.NewWriter(&failing{after: 1, err: full}, 1)
	require.NoError(t, err)
	require.ErrorIs(t, w.Write(&sendstream.End{}), full)
	require.ErrorIs(t, w.Write(&sendstream.End{}), full)
}

// failing is a writer that fails once, after a number of calls.
type failing struct {
	after int
	err   error
}

func (f *failing) Write(b []byte) (int, error) {
	f.after--
	if f.after == -1 {
		return 0, f.err
	}
	return len(b), nil
}
