package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// Commands of a stream, for tests.

func mkfile(path string, ino uint64) sendstream.Command {
	return &sendstream.Mkfile{Path: []byte(path), Ino: ino}
}

func mkdir(path string, ino uint64) sendstream.Command {
	return &sendstream.Mkdir{Path: []byte(path), Ino: ino}
}

func rename(path, to string) sendstream.Command {
	return &sendstream.Rename{Path: []byte(path), To: []byte(to)}
}

func link(path, target string) sendstream.Command {
	return &sendstream.Link{Path: []byte(path), Target: []byte(target)}
}

func unlink(path string) sendstream.Command { return &sendstream.Unlink{Path: []byte(path)} }

func rmdir(path string) sendstream.Command { return &sendstream.Rmdir{Path: []byte(path)} }

func utimes(path string) sendstream.Command { return &sendstream.Utimes{Path: []byte(path)} }

func updateExtent(path string) sendstream.Command {
	return &sendstream.UpdateExtent{Path: []byte(path), Size: 1}
}

// incremental encodes an incremental stream of the commands.
func incremental(t testing.TB, commands ...sendstream.Command) *bytes.Buffer {
	t.Helper()
	commands = append([]sendstream.Command{&sendstream.Snapshot{Path: []byte("top")}}, commands...)
	return encode(t, append(commands, &sendstream.End{})...)
}

func encode(t testing.TB, commands ...sendstream.Command) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w, err := sendstream.NewWriter(&b, 2)
	require.NoError(t, err)
	for _, c := range commands {
		require.NoError(t, w.Write(c))
	}
	return &b
}

// recorded is the result of a replay.
type recorded struct {
	hints   map[string]treediff.Flags
	changed []changedInode
}

// record replays a stream and keeps the hints by path.
func record(r io.Reader, base, top rootNames) (recorded, error) {
	got := recorded{hints: make(map[string]treediff.Flags)}
	stream, err := sendstream.NewReader(r)
	if err != nil {
		return got, err
	}
	names := newNamespace(base)
	if err := names.replay(stream); err != nil {
		return got, err
	}
	if err := names.settle(top); err != nil {
		return got, err
	}
	got.changed, err = names.report(func(path string, flags treediff.Flags) { got.hints[path] |= flags })
	return got, err
}

func TestReplay(t *testing.T) {
	const written = treediff.Written
	for name, tc := range map[string]struct {
		commands []sendstream.Command
		hints    map[string]treediff.Flags
		changed  []changedInode
	}{
		"nothing": {nil, map[string]treediff.Flags{}, nil},
		"root changed": {
			[]sendstream.Command{utimes("")},
			map[string]treediff.Flags{"": 0}, nil,
		},
		"file written": {
			[]sendstream.Command{updateExtent("a/b"), utimes("a/b")},
			map[string]treediff.Flags{"a/b": written},
			[]changedInode{{"a/b", written}},
		},
		"file made": {
			[]sendstream.Command{mkfile("o300-9-0", 300), rename("o300-9-0", "a/b"), utimes("a/b")},
			map[string]treediff.Flags{"a/b": written}, nil,
		},
		"file removed": {
			[]sendstream.Command{unlink("a/b"), utimes("a")},
			map[string]treediff.Flags{"a/b": 0, "a": 0},
			nil, // a is known to be a directory
		},
		"directory renamed, file in it changed": {
			[]sendstream.Command{rename("a", "b"), updateExtent("b/c"), utimes("b/c")},
			map[string]treediff.Flags{"a": 0, "b": 0, "b/c": written},
			[]changedInode{{"b/c", written}},
		},
		"file removed from a directory that moves before": {
			[]sendstream.Command{rename("a", "b"), unlink("b/c")},
			map[string]treediff.Flags{"a": 0, "b": 0, "a/c": 0, "b/c": 0}, nil,
		},
		"file removed from a directory that moves later": {
			[]sendstream.Command{unlink("a/c"), rename("a", "b")},
			map[string]treediff.Flags{"a": 0, "b": 0, "a/c": 0, "b/c": 0}, nil,
		},
		"directories swapped": {
			[]sendstream.Command{rename("a", "o257-7-0"), rename("b", "a"), rename("o257-7-0", "b")},
			map[string]treediff.Flags{"a": 0, "b": 0}, nil,
		},
		"nested renames": {
			[]sendstream.Command{rename("a/b/c", "x"), rename("a/b", "y"), updateExtent("x/f"), rename("a", "x/a"), unlink("x/a/g"), unlink("y/h")},
			map[string]treediff.Flags{
				"a/b/c": 0, "y/c": 0, "x": 0, "a/b": 0, "x/a/b": 0, "y": 0, "x/f": written,
				"a": 0, "a/b/c/a": 0, "x/a": 0, "a/g": 0, "x/a/g": 0, "a/b/h": 0, "y/h": 0,
			},
			[]changedInode{{"x/f", written}},
		},
		"directory replaced by file": {
			[]sendstream.Command{rename("a", "o257-7-0"), unlink("o257-7-0/f"), rmdir("o257-7-0"), mkfile("o300-9-0", 300), rename("o300-9-0", "a")},
			map[string]treediff.Flags{"a": written, "a/f": 0}, nil,
		},
		"link and unlink is how a file moves": {
			[]sendstream.Command{link("b", "a"), unlink("a"), utimes("b")},
			map[string]treediff.Flags{"a": 0, "b": 0},
			[]changedInode{{"b", 0}},
		},
		"links of one file": {
			[]sendstream.Command{link("b", "a"), link("d/c", "b"), updateExtent("a")},
			map[string]treediff.Flags{"a": written, "b": written, "d/c": written},
			[]changedInode{{"a", written}},
		},
		"name taken over": {
			[]sendstream.Command{rename("a", "b"), updateExtent("b")},
			map[string]treediff.Flags{"a": 0, "b": written},
			[]changedInode{{"b", written}},
		},
		"known name taken over": {
			[]sendstream.Command{updateExtent("b"), rename("a", "b")},
			map[string]treediff.Flags{"a": 0, "b": 0}, nil,
		},
		"name taken over by a file on the way": {
			[]sendstream.Command{mkfile("o300-9-0", 300), mkfile("o301-9-0", 301), rename("o300-9-0", "o301-9-0"), rename("o301-9-0", "a")},
			map[string]treediff.Flags{"a": written}, nil,
		},
		"made and removed": {
			[]sendstream.Command{mkdir("o300-9-0", 300), rename("o300-9-0", "a"), rmdir("a")},
			map[string]treediff.Flags{"a": 0}, nil,
		},
		"renamed to itself": {
			[]sendstream.Command{rename("a", "a")},
			map[string]treediff.Flags{}, nil,
		},
		"changed below a directory that is new": {
			[]sendstream.Command{mkdir("o300-9-0", 300), rename("o300-9-0", "a"), link("a/c", "c"), unlink("c"), updateExtent("a/c")},
			map[string]treediff.Flags{"a": written, "c": 0, "a/c": written},
			[]changedInode{{"a/c", written}},
		},
		"someone's file has a name like a temporary name and changes": {
			[]sendstream.Command{updateExtent("o257-7-0"), rename("o258-7-0", "a")},
			map[string]treediff.Flags{"o257-7-0": written, "o258-7-0": 0, "a": 0},
			[]changedInode{{"o257-7-0", written}},
		},
		"someone makes a file named like that of another inode": {
			[]sendstream.Command{mkfile("o300-9-0", 300), rename("o300-9-0", "o257-7-0")},
			map[string]treediff.Flags{"o257-7-0": written}, nil,
		},
		"names like temporary names below the root": {
			[]sendstream.Command{rename("a", "d/o257-7-0")},
			map[string]treediff.Flags{"a": 0, "d/o257-7-0": 0}, nil,
		},
		"odd names": {
			[]sendstream.Command{unlink("a\nb/\xff\xfe")},
			map[string]treediff.Flags{"a\nb/\xff\xfe": 0}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := record(incremental(t, tc.commands...), nil, nil)
			require.NoError(t, err)
			assert.Equal(t, tc.hints, got.hints)
			assert.Equal(t, tc.changed, got.changed)

			replayed, err := replay(incremental(t, tc.commands...))
			require.NoError(t, err)
			assert.Equal(t, len(tc.hints), replayed.hints.Len())
			assert.Equal(t, tc.changed, replayed.changed)
		})
	}
}

// TestReplayFallsBack has streams that cannot come from a complete tree.
func TestReplayFallsBack(t *testing.T) {
	for name, tc := range map[string]struct {
		commands []sendstream.Command
		reason   string
	}{
		"new file keeps its temporary name":    {[]sendstream.Command{mkfile("o300-9-0", 300)}, "orphan"},
		"moved file keeps its temporary name":  {[]sendstream.Command{rename("a", "o257-7-0")}, "orphan"},
		"after another has had it":             {[]sendstream.Command{mkfile("o300-9-0", 300), rename("o300-9-0", "a"), rename("b", "o300-9-0")}, "orphan"},
		"temporary name used after it is gone": {[]sendstream.Command{mkdir("o300-9-0", 300), rename("o300-9-0", "a"), mkfile("a", 301)}, "inconsistent"},
		"name used after it is gone":           {[]sendstream.Command{unlink("a"), utimes("a")}, "inconsistent"},
		"directory used after it is gone":      {[]sendstream.Command{rmdir("a"), unlink("a/b")}, "inconsistent"},
		"name in a new directory":              {[]sendstream.Command{mkdir("a", 300), unlink("a/b")}, "inconsistent"},
		"link over a name":                     {[]sendstream.Command{utimes("b"), link("b", "a")}, "inconsistent"},
		"link to a directory":                  {[]sendstream.Command{mkdir("a", 300), link("b", "a")}, "inconsistent"},
		"directory moved into itself":          {[]sendstream.Command{rename("a", "a/b")}, "inconsistent"},
		"directory moved below itself":         {[]sendstream.Command{rename("a", "a/b/c")}, "inconsistent"},
		"root removed":                         {[]sendstream.Command{rmdir("")}, "inconsistent"},
		"second beginning":                     {[]sendstream.Command{&sendstream.Snapshot{}}, "inconsistent"},
		"full stream inside":                   {[]sendstream.Command{&sendstream.Subvol{}}, "inconsistent"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := replay(incremental(t, tc.commands...))
			requireReason(t, err, tc.reason)
		})
	}
}

func requireReason(t *testing.T, err error, reason string) {
	t.Helper()
	require.ErrorIs(t, err, treediff.ErrNoHints)
	var noHints *treediff.NoHintsError
	require.ErrorAs(t, err, &noHints)
	require.Equal(t, reason, noHints.Reason, "%v", err)
}

// withChecksum sets the checksum of a command.
func withChecksum(command []byte) []byte {
	crc := ^crc32.Update(^uint32(0), crc32.MakeTable(crc32.Castagnoli), command)
	binary.LittleEndian.PutUint32(command[6:], crc)
	return command
}

func TestReplayOfBadStreams(t *testing.T) {
	t.Run("full stream", func(t *testing.T) {
		_, err := replay(encode(t, &sendstream.Subvol{Path: []byte("top")}, &sendstream.End{}))
		requireReason(t, err, "inconsistent")
	})
	t.Run("no beginning", func(t *testing.T) {
		_, err := replay(encode(t, &sendstream.End{}))
		requireReason(t, err, "inconsistent")
	})
	t.Run("newer version", func(t *testing.T) {
		_, err := replay(strings.NewReader("btrfs-stream\x00\x09\x00\x00\x00"))
		requireReason(t, err, "unknown-command")
	})
	t.Run("unknown command", func(t *testing.T) {
		b := encode(t, &sendstream.Snapshot{Path: []byte("top")}).Bytes()
		b = append(b, withChecksum([]byte{0, 0, 0, 0, 99, 0, 0, 0, 0, 0})...)
		_, err := replay(bytes.NewReader(b))
		requireReason(t, err, "unknown-command")
	})
	t.Run("unknown attribute", func(t *testing.T) {
		b := encode(t, &sendstream.Snapshot{Path: []byte("top")}).Bytes()
		b = append(b, withChecksum([]byte{4, 0, 0, 0, byte(sendstream.OpUnlink), 0, 0, 0, 0, 0, 99, 0, 0, 0})...)
		_, err := replay(bytes.NewReader(b))
		requireReason(t, err, "unknown-command")
	})
	t.Run("wrong checksum", func(t *testing.T) {
		b := incremental(t, unlink("a")).Bytes()
		b[len(b)-1] ^= 1
		_, err := replay(bytes.NewReader(b))
		require.ErrorIs(t, err, sendstream.ErrChecksum)
		assert.NotErrorIs(t, err, treediff.ErrNoHints)
	})
	t.Run("truncated", func(t *testing.T) {
		b := incremental(t, unlink("a"), rename("b", "c")).Bytes()
		for n := range b {
			_, err := replay(bytes.NewReader(b[:n]))
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.NotErrorIs(t, err, treediff.ErrNoHints)
		}
	})
}

// TestReplayAsksTheTrees has names that only the trees themselves can explain.
func TestReplayAsksTheTrees(t *testing.T) {
	yes := func(string) bool { return true }
	no := func(string) bool { return false }
	renamed := []sendstream.Command{rename("a", "o257-7-0")}
	used := []sendstream.Command{updateExtent("o257-7-0")}

	got, err := record(incremental(t, renamed...), no, yes)
	require.NoError(t, err)
	assert.Equal(t, map[string]treediff.Flags{"a": 0, "o257-7-0": 0}, got.hints)

	_, err = replayBetween(incremental(t, renamed...), yes, no)
	requireReason(t, err, "orphan")

	got, err = record(incremental(t, used...), yes, no)
	require.NoError(t, err)
	assert.Equal(t, map[string]treediff.Flags{"o257-7-0": treediff.Written}, got.hints)

	_, err = replayBetween(incremental(t, used...), no, yes)
	requireReason(t, err, "orphan")

	_, err = replayBetween(incremental(t, unlink("ordinary")), func(string) bool { panic("asked") }, nil)
	require.NoError(t, err)
}

func TestReplayRefusesPathsWithoutEnd(t *testing.T) {
	commands := []sendstream.Command{mkdir("a", 300)}
	name := strings.Repeat("x", 255)
	for i := range uint64(maxPath/256 + 1) {
		commands = append(commands, mkdir("b", 301+i), rename("a", "b/"+name), rename("b", "a"))
	}
	_, err := replay(incremental(t, commands...))
	requireReason(t, err, "inconsistent")
}

func TestOrphanInode(t *testing.T) {
	for name, want := range map[string]uint64{
		"o257-7-0":                    257,
		"o18446744073709551615-1-999": 18446744073709551615,
		"o0-0-0":                      0,
	} {
		number, ok := orphanInode(name)
		assert.True(t, ok, name)
		assert.Equal(t, want, number, name)
	}
	for _, name := range []string{
		"", "o", "o257-7", "o257-7-0-1", "o257-7-", "o0257-7-0", "o+257-7-0", "257-7-0", "oo257-7-0", "o257-7-0 ",
		"o-1-7-0", "O257-7-0", "o257-7-0.txt", "o18446744073709551616-1-0",
	} {
		_, ok := orphanInode(name)
		assert.False(t, ok, name)
	}
}

// FuzzReplay asserts that replay ends, does not panic, and either reports hints or returns an error.
func FuzzReplay(f *testing.F) {
	for _, name := range []string{"nodata-v1", "incremental-v2", "full-v1"} {
		b, err := os.ReadFile("sendstream/testdata/" + name + ".stream")
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte("rename\x01a\x01b\x00mkdir\x01a\x00link\x01a/b\x01b"))
	f.Fuzz(func(t *testing.T, input []byte) {
		commands := commandsOf(input)
		for _, r := range []io.Reader{bytes.NewReader(input), incremental(t, commands...)} {
			got, err := replay(r)
			if err == nil {
				require.NotNil(t, got.hints)
				continue
			}
			var noHints *treediff.NoHintsError
			var broken *sendstream.Error
			if !errors.As(err, &noHints) && !errors.As(err, &broken) {
				t.Fatalf("error of no known kind: %v", err)
			}
		}
	})
}

// commandsOf makes commands from arbitrary bytes, three for each command, on a few names.
func commandsOf(input []byte) []sendstream.Command {
	paths := []string{"a", "b", "c", "a/a", "a/b", "b/a", "b/b/c", "a/b/c", "o300-1-0", "o301-1-0", "o302-1-0", "o300-1-0/a"}
	var commands []sendstream.Command
	for step := range slices.Chunk(input, 3) {
		if len(step) < 3 || len(commands) > 200 {
			break
		}
		path, other := paths[int(step[1])%len(paths)], paths[int(step[2])%len(paths)]
		switch step[0] % 8 {
		case 0:
			commands = append(commands, mkfile(path, 300+uint64(step[2]%3)))
		case 1:
			commands = append(commands, mkdir(path, 300+uint64(step[2]%3)))
		case 2, 3:
			commands = append(commands, rename(path, other))
		case 4:
			commands = append(commands, link(path, other))
		case 5:
			commands = append(commands, unlink(path))
		case 6:
			commands = append(commands, updateExtent(path))
		case 7:
			commands = append(commands, utimes(path))
		}
	}
	return commands
}
