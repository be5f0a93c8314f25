package sendstream_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs/sendstream"
)

// FuzzReader asserts that the Reader never panics. A Writer can write all that the Reader accepts, and the Reader reads
// the same from that.
func FuzzReader(f *testing.F) {
	for _, b := range realStreams(f) {
		f.Add(b)
	}
	for version := uint32(sendstream.MinVersion); version <= sendstream.MaxVersion; version++ {
		var b bytes.Buffer
		w, err := sendstream.NewWriter(&b, version)
		require.NoError(f, err)
		for _, c := range everyCommand() {
			require.NoError(f, w.Write(c))
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		stream, err := sendstream.NewReader(bytes.NewReader(input))
		if err != nil {
			return
		}
		var again bytes.Buffer
		w, err := sendstream.NewWriter(&again, stream.Version())
		require.NoError(t, err)
		var want []string
		for stream.Next() {
			want = append(want, describe(stream.Command()))
			require.NoError(t, w.Write(stream.Command()))
		}
		got, _ := commands(&again)
		require.Equal(t, want, got)
	})
}

// FuzzCommand is FuzzReader with right checksums, so that the Reader gets as far as the attributes.
func FuzzCommand(f *testing.F) {
	stream, err := sendstream.NewReader(bytes.NewReader(realStreams(f)["full-v2.stream"]))
	require.NoError(f, err)
	for stream.Next() {
		var b bytes.Buffer
		w, err := sendstream.NewWriter(&b, 2)
		require.NoError(f, err)
		require.NoError(f, w.Write(stream.Command()))
		f.Add(uint32(2), uint16(stream.Command().Op()), b.Bytes()[17+10:])
	}
	f.Fuzz(func(t *testing.T, version uint32, op uint16, payload []byte) {
		if version < sendstream.MinVersion || version > sendstream.MaxVersion || len(payload) > 1<<16-20 {
			return
		}
		stream, err := sendstream.NewReader(newRaw(version).command(op, payload))
		require.NoError(t, err)
		if !stream.Next() {
			require.Error(t, stream.Err())
			return
		}
		want := describe(stream.Command())
		var again bytes.Buffer
		w, err := sendstream.NewWriter(&again, version)
		require.NoError(t, err)
		require.NoError(t, w.Write(stream.Command()))
		got, _ := commands(&again)
		require.Equal(t, []string{want}, got)
	})
}
