package writelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const sector = 512

// logOf makes a log with these entries.
func logOf(entries ...[]byte) []byte {
	super := make([]byte, sector)
	le := binary.LittleEndian
	le.PutUint64(super, magic)
	le.PutUint64(super[8:], version)
	le.PutUint64(super[16:], uint64(len(entries)))
	le.PutUint32(super[24:], sector)
	return bytes.Join(append([][]byte{super}, entries...), nil)
}

func entry(first, count uint64, flags Flags, data string) []byte {
	e := make([]byte, sector, sector+len(data))
	for i, n := range []uint64{first, count, uint64(flags), 0} {
		binary.LittleEndian.PutUint64(e[8*i:], n)
	}
	return append(e, data...)
}

func write(first uint64, letters string) []byte {
	var data strings.Builder
	for _, letter := range letters {
		data.WriteString(strings.Repeat(string(letter), sector))
	}
	return entry(first, uint64(len(letters)), 0, data.String())
}

func flush() []byte { return entry(0, 0, Flush, "") }

func mark(n uint64) []byte { return entry(9, BlockSize/sector, 0, string(Block(n))) }

func TestReader(t *testing.T) {
	r, err := NewReader(bytes.NewReader(logOf(write(3, "ab"), entry(1, 7, Discard, ""), entry(0, 0, Mark, ""), flush(), write(0, "c"))))
	require.NoError(t, err)
	for _, want := range []struct {
		Entry
		data string
	}{
		{Entry{3 * sector, 2 * sector, 0}, "ab"},
		{Entry{sector, 7 * sector, Discard}, ""},
		{Entry{0, 0, Mark}, ""},
		{Entry{0, 0, Flush}, ""},
		{Entry{0, sector, 0}, "c"},
	} {
		e, err := r.Next()
		require.NoError(t, err)
		assert.Equal(t, want.Entry, e)
		if want.data == "ab" {
			continue // Next goes on wherever the reader is
		}
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		assert.Equal(t, strings.Repeat(want.data, sector), string(data))
	}
	_, err = r.Next()
	assert.Equal(t, io.EOF, err)
}

func TestReaderRefuses(t *testing.T) {
	good := logOf(write(0, "a"))
	for name, change := range map[string]func(log []byte) []byte{
		"magic":         func(log []byte) []byte { log[0]++; return log },
		"version":       func(log []byte) []byte { log[8]++; return log },
		"sector size":   func(log []byte) []byte { log[24] = 1; return log },
		"empty":         func([]byte) []byte { return nil },
		"no entry":      func(log []byte) []byte { return log[:sector] },
		"half an entry": func(log []byte) []byte { return log[:sector+9] },
		"half its data": func(log []byte) []byte { return log[:len(log)-1] },
		"overflow":      func(log []byte) []byte { log[sector+8+7] = 0x80; return log },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := NewReader(bytes.NewReader(change(bytes.Clone(good))))
			if err == nil {
				if _, err = r.Next(); err == nil {
					_, err = io.ReadAll(r)
				}
			}
			assert.ErrorIs(t, err, ErrFormat)
		})
	}
}

func TestDisk(t *testing.T) {
	log := logOf(write(0, "abcd"), flush(), write(2, "xy"), entry(0, 8, Discard, ""), write(1, "z"), flush())
	file, err := os.Create(filepath.Join(t.TempDir(), "part"))
	require.NoError(t, err)
	defer file.Close()
	disk, err := NewDisk(bytes.NewReader(log), file, sector, 4*sector)
	require.NoError(t, err)
	for _, state := range []struct {
		entries int
		want    string
	}{{0, ""}, {1, "bcd"}, {2, "bcd"}, {3, "bxy"}, {6, "zxy"}} {
		require.NoError(t, disk.Replay(state.entries))
		content, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		var got strings.Builder
		for i := 0; i < len(content); i += sector {
			assert.Equal(t, sector, bytes.Count(content[i:i+sector], content[i:i+1]))
			got.WriteByte(content[i])
		}
		assert.Equal(t, state.want, got.String(), "after %d entries", state.entries)
	}
	assert.ErrorIs(t, disk.Replay(7), io.EOF)
}

func TestCuts(t *testing.T) {
	log := logOf(flush(), mark(1), write(0, "a"), write(1, "b"), mark(2), flush(), write(2, "c"), mark(3), flush(), mark(4))
	cuts, err := Cuts(bytes.NewReader(log), 9*sector)
	require.NoError(t, err)
	assert.Equal(t, []Cut{
		{Entries: 1, Written: 0, Acknowledged: 2},
		{Entries: 3, Written: 1, Acknowledged: 2, Between: true},
		{Entries: 6, Written: 2, Acknowledged: 3},
		{Entries: 9, Written: 3, Acknowledged: 4},
	}, cuts)

	_, err = Cuts(bytes.NewReader(logOf(write(9, "abcdefgh"))), 9*sector)
	assert.ErrorIs(t, err, ErrFormat, "no mark where marks are")
	_, err = Cuts(bytes.NewReader(logOf(entry(0, 1, FUA, strings.Repeat("a", sector)))), 9*sector)
	assert.ErrorIs(t, err, errors.ErrUnsupported)
}

// FuzzCuts: whatever a log holds, reading it ends, and replaying it as far as it can be read succeeds.
func FuzzCuts(f *testing.F) {
	f.Add(logOf(mark(1), write(0, "ab"), flush(), entry(1, 7, Discard, ""), mark(2)))
	f.Add(logOf(entry(1<<40, 1<<40, 0, "")))
	f.Fuzz(func(t *testing.T, log []byte) {
		cuts, err := Cuts(bytes.NewReader(log), 9*sector)
		if err != nil {
			return
		}
		var image memory
		disk, err := NewDisk(bytes.NewReader(log), &image, 0, 64*sector)
		require.NoError(t, err)
		last := 0
		for _, c := range cuts {
			assert.Greater(t, c.Entries, last)
			last = c.Entries
			require.NoError(t, disk.Replay(c.Entries))
		}
		assert.LessOrEqual(t, len(image), 64*sector)
	})
}

// memory is a Target.
type memory []byte

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if end := int(at) + len(p); end > len(*m) {
		*m = append(*m, make([]byte, end-len(*m))...)
	}
	return copy((*m)[at:], p), nil
}
