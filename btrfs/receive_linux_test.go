package btrfs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs/sendstream"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
)

// sendCompressed makes the kernel send compressed extents as they are (BTRFS_SEND_FLAG_COMPRESSED).
const sendCompressed = 0x10

// compressedSendCrashes reports whether a send of compressed extents can crash the kernel (CVE-2024-56582).
func compressedSendCrashes(t *testing.T) bool {
	t.Helper()
	return testfs.KernelBefore(t, 6, 13)
}

func skipWhereCompressedSendCrashes(t *testing.T) {
	t.Helper()
	if compressedSendCrashes(t) {
		testfs.Skip(t, "a send of compressed extents can crash this kernel (CVE-2024-56582)")
	}
}

// receiveFull receives a full stream into a new subvolume, as the backend does, and returns its path.
func (s *sender) receiveFull(r io.Reader, name string) (string, error) {
	s.t.Helper()
	return s.receiveInto(s.create(name), "", r)
}

// receiveIncremental receives an incremental stream into a snapshot of the subvolume at source.
func (s *sender) receiveIncremental(r io.Reader, source, name string) (string, error) {
	s.t.Helper()
	return s.receiveInto(s.snapshot(source, name, false), source, r)
}

func (s *sender) receiveInto(dir, source string, r io.Reader) (string, error) {
	s.t.Helper()
	root, err := os.Open(dir)
	require.NoError(s.t, err)
	defer root.Close()
	var from *os.File
	if source != "" {
		from, err = os.Open(source)
		require.NoError(s.t, err)
		defer from.Close()
	}
	got, err := receive(s.t.Context(), root, from, r)
	if err != nil {
		return "", err
	}
	require.NoError(s.t, btrfsctl.SetReceived(int(root.Fd()), got.uuid, got.ctransid))
	require.NoError(s.t, btrfsctl.SetReadOnly(int(root.Fd()), true))
	return dir, nil
}

var everything = treecmp.Options{Roots: true}

// ways are the ways to send.
var ways = []struct {
	name    string
	flags   uint64
	version uint32
}{
	{"version 1", 0, 1},
	{"version 2", 0, 2},
	{"version 2, compressed", sendCompressed, 2},
}

// TestReceiveOfRandomChanges sends a tree that changes at random from one filesystem to another, in full and
// then incrementally, and compares the copies. COWSHED_TEST_SEED repeats a run.
func TestReceiveOfRandomChanges(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			if way.flags&sendCompressed != 0 {
				skipWhereCompressedSendCrashes(t)
			}
			from, to := newSender(t), newSender(t)
			seed := testSeed(t)
			m := &mutator{t: t, rand: rand.New(rand.NewPCG(seed, 0)), root: from.create("work")}
			require.NoError(t, unix.Setxattr(m.root, xattrCompression, []byte("zstd"), 0))
			for range 60 {
				m.step()
			}
			base := from.snapshot(m.root, "base-0", true)
			source, err := to.receiveFull(from.send("", base, way.flags, way.version), "copy-0")
			require.NoError(t, err)
			treecmp.Equal(t, base, source, everything)

			for round := range rounds(12) {
				m.log = nil
				for range 1 + m.rand.IntN(40) {
					m.step()
				}
				top := from.snapshot(m.root, fmt.Sprintf("base-%d", round+1), true)
				stream := from.send(base, top, way.flags, way.version)
				received, err := to.receiveIncremental(stream, source, fmt.Sprintf("copy-%d", round+1))
				require.NoError(t, err, "seed %d, round %d:\n%s", seed, round, strings.Join(m.log, "\n"))
				if !treecmp.Equal(t, top, received, everything) {
					t.Fatalf("seed %d, round %d:\n%s", seed, round, strings.Join(m.log, "\n"))
				}
				base, source = top, received
			}
		})
	}
}

// TestReceiveOfScenarios sends each tree in every way: first in full, and then its changes.
func TestReceiveOfScenarios(t *testing.T) {
	from, to := newSender(t), newSender(t)
	for i, tc := range []struct {
		name      string
		base, top string // shell commands in the root of the tree
	}{
		{"kinds of files", "mkfifo p; mknod chr c 1 3; mknod blk b 259 1048575; ln -s /etc/passwd l; ln -s x/.. m; mkdir d; echo 1 >f",
			"rm p; mknod p b 8 1; chown -h 3:4 l; touch -h -d @5 l"},
		{"permissions and owners", "mkdir d; echo 1 >d/f; chown 1:2 d d/f; chmod 4755 d/f; chmod 3770 d; chmod 711 .; chown 7:8 .",
			"chmod 0 d/f; chown 4000000000:0 d/f; chmod 1777 ."},
		{"times", "mkdir -p a/b; echo 1 >a/b/f; touch -d 2001-02-03T04:05:06.789 a/b/f; touch -d 1960-01-01 a/b; touch -d 2300-01-01 a; touch -d @1 .",
			"echo 2 >a/b/g; touch -d @3 a/b"},
		{"attributes", "echo 1 >f; setfattr -n user.a -v b f; setfattr -n user.e f; setcap cap_net_admin+ep f; ln -s f l; setfattr -h -n trusted.x -v y l; setfattr -n user.r -v s .",
			"setfattr -x user.a f; chown 1 f; setcap cap_chown+ep f; setfattr -n user.e -v now f"},
		{"access control lists", "setfacl -m u:5:r-x,d:u:6:rwx,d:m:rwx .; mkdir d; echo 1 >f; mkdir plain; setfacl -b -k plain; echo 2 >g; setfacl -b g; mknod chr c 1 3; setfacl -b chr",
			"setfacl -k .; echo 3 >h; mkdir d/e; mkdir e; setfacl -b d/e"},
		{"no access control lists where the root has one", "mkdir d; echo 1 >d/f; setfacl -m d:u:6:rwx .; echo 2 >f", "mkdir d/e; echo 3 >d/g"},
		{"compression", "setfattr -n btrfs.compression -v zlib .; head -c 300000 /dev/zero >z; mkdir zstd lzo; setfattr -n btrfs.compression -v zstd zstd; setfattr -n btrfs.compression -v lzo lzo; yes | head -c 1000001 >zstd/y; yes | head -c 1000001 >lzo/y; echo short >lzo/s; echo tiny >zstd/t; mkdir none; setfattr -x btrfs.compression none; yes | head -c 1000 >none/f",
			"yes no | dd bs=1000 count=50 seek=77 conv=notrunc of=zstd/y 2>/dev/null; truncate -s 5000 lzo/y; setfattr -x btrfs.compression ."},
		{"holes", "truncate -s 10M s; echo 1 | dd of=s bs=1 seek=5000000 conv=notrunc 2>/dev/null; head -c 100000 /dev/urandom >f; fallocate -l 1M p",
			"fallocate -p -o 8192 -l 40000 f; truncate -s 20M s; truncate -s 100 p; echo 2 >>s"},
		{"clones", "head -c 200000 /dev/urandom >a; cp --reflink=always a b; mkdir d; cp --reflink=always a d/c",
			"mv a e; cp --reflink=always b x; head -c 100000 /dev/urandom >y; cp --reflink=always y z; rm b; echo 1 >>d/c; cp --reflink=always d/c d/d"},
		{"hard links", "echo 1 >a; mkdir d; ln a b; ln a d/c; ln -s a l; ln l d/l", "rm a; ln b d/d; echo 2 >>b; ln d/l k"},
		{"directories on the move", "mkdir -p a/b/c/d e; echo 1 >a/b/c/d/f", "mv a/b/c/d d; mv a/b/c d/c; mv a/b d/c/b; mv a d/c/b/a; mv e d; echo 2 >>d/f"},
		{"odd names", `echo 1 >"$(printf 'a\nb\377')"; mkdir "$(printf %0255d 0)"; echo 2 >"$(printf %0255d 0)/ -x"`, `mv "$(printf 'a\nb\377')" "$(printf %0255d 0)/'"`},
		{"deep", `for i in $(seq 300); do mkdir abcdefghij; cd abcdefghij; done; echo 1 >f`, `cd $(yes abcdefghij | head -200 | tr '\n' /); mv abcdefghij x`},
		{"someone's temporary names", "echo 1 >o257-7-0; mkdir o258-8-0", "mv o257-7-0 o258-8-0/; mv o258-8-0 o300-1-0; echo 2 >o257-7-0"},
		{"much", "for i in $(seq 300); do mkdir $i; echo $i >$i/f; done; head -c 5000000 /dev/urandom >big", "for i in $(seq 2 2 300); do rm -r $i; done; for i in $(seq 1 2 300); do mv $i n$i; done; head -c 5000000 /dev/urandom >big"},
		{"flags", "echo 1 >f; mkdir d", "chattr +d f; chattr +A d"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			from, to := &sender{t: t, dir: from.dir, fd: from.fd}, &sender{t: t, dir: to.dir, fd: to.fd}
			work := from.create(fmt.Sprintf("work-%d", i))
			shell(t, work, tc.base)
			base := from.snapshot(work, fmt.Sprintf("base-%d", i), true)
			shell(t, work, tc.top)
			top := from.snapshot(work, fmt.Sprintf("top-%d", i), true)
			for j, way := range ways {
				if way.flags&sendCompressed != 0 && compressedSendCrashes(t) {
					continue
				}
				baseCopy, err := to.receiveFull(from.send("", base, way.flags, way.version), fmt.Sprintf("base-%d-%d", i, j))
				require.NoError(t, err, way.name)
				treecmp.Equal(t, base, baseCopy, everything)
				topCopy, err := to.receiveIncremental(from.send(base, top, way.flags, way.version), baseCopy, fmt.Sprintf("top-%d-%d", i, j))
				require.NoError(t, err, way.name)
				treecmp.Equal(t, top, topCopy, everything)
			}
		})
	}
}

// TestReceiveBesideTheOriginal builds on the very subvolume from which a stream was sent.
func TestReceiveBesideTheOriginal(t *testing.T) {
	s := newSender(t)
	work := s.create("work")
	shell(t, work, "head -c 200000 /dev/urandom >a; mkdir d")
	base := s.snapshot(work, "base", true)
	shell(t, work, "cp --reflink=always a d/b; rm a; echo 1 >c")
	top := s.snapshot(work, "top", true)
	received, err := s.receiveIncremental(s.send(base, top, 0, 1), base, "received")
	require.NoError(t, err)
	treecmp.Equal(t, top, received, everything)
	assert.Equal(t, s.info(top).UUID, s.info(received).ReceivedUUID)
}

// TestReceiveKeepsCompressedData checks that compressed extents arrive as they were sent.
func TestReceiveKeepsCompressedData(t *testing.T) {
	skipWhereCompressedSendCrashes(t)
	s := newSender(t)
	work := s.create("work")
	shell(t, work, "setfattr -n btrfs.compression -v zstd .; yes | head -c 10000000 >y; sync")
	base := s.snapshot(work, "base", true)
	stream := s.send("", base, sendCompressed, 2)
	size, err := stream.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	require.Less(t, size, int64(2_000_000))
	_, err = stream.Seek(0, io.SeekStart)
	require.NoError(t, err)
	received, err := s.receiveFull(stream, "received")
	require.NoError(t, err)
	treecmp.Equal(t, base, received, everything)

	var stat unix.Statfs_t
	require.NoError(t, unix.Statfs(s.dir, &stat))
	used := (stat.Blocks - stat.Bfree) * uint64(stat.Bsize)
	assert.Less(t, used, uint64(10_000_000))
}

// TestReceiveDecompresses receives compressed extents on a filesystem that cannot store them as they are.
func TestReceiveDecompresses(t *testing.T) {
	skipWhereCompressedSendCrashes(t)
	s := newSender(t)
	for i, algorithm := range []string{"zlib", "zstd", "lzo"} {
		t.Run(algorithm, func(t *testing.T) {
			s := &sender{t: t, dir: s.dir, fd: s.fd}
			work := s.create(fmt.Sprintf("work-%d", i))
			shell(t, work, "yes | head -c 500001 >y; echo short >s; head -c 130000 /dev/zero >z; sync")
			shell(t, work, "btrfs -q filesystem defragment -c"+algorithm+" y s z; sync")
			base := s.snapshot(work, fmt.Sprintf("base-%d", i), true)

			elsewhere := t.TempDir() // not on btrfs; on btrfs this is only a second round trip
			root, err := os.Open(elsewhere)
			require.NoError(t, err)
			defer root.Close()
			stream := s.send("", base, sendCompressed, 2)
			_, err = receive(t.Context(), root, nil, stream)
			if algorithm == "lzo" && errors.Is(err, errdefs.ErrNotImplemented) {
				return
			}
			require.NoError(t, err)
			treecmp.Equal(t, base, elsewhere, everything)
		})
	}
}

func TestExtentDecoder(t *testing.T) {
	var d extentDecoder
	defer d.close()
	for _, c := range []sendstream.Compression{sendstream.CompressionZlib, sendstream.CompressionZstd} {
		_, err := d.decode(c, []byte("nonsense, and enough of it to be read as a header"), 100)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		_, err = d.decode(c, nil, 100)
		if c == sendstream.CompressionZlib {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		}
	}
	_, err := d.decode(sendstream.CompressionLZO4K, []byte("x"), 100)
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	got, err := d.decode(sendstream.CompressionNone, []byte("abc"), 5)
	require.NoError(t, err)
	assert.Equal(t, "abc\x00\x00", string(got))
	got, err = d.decode(sendstream.CompressionNone, []byte("abcdef"), 5)
	require.NoError(t, err)
	assert.Equal(t, "abcde", string(got))
}

// subvol begins a full stream.
func subvol() sendstream.Command {
	return &sendstream.Subvol{Path: []byte("s"), UUID: sendstream.UUID{1}}
}

// full encodes a full stream of the commands.
func full(t testing.TB, commands ...sendstream.Command) *bytes.Buffer {
	t.Helper()
	commands = append([]sendstream.Command{subvol()}, commands...)
	return encode(t, append(commands, &sendstream.End{})...)
}

func symlink(path, target string) sendstream.Command {
	return &sendstream.Symlink{Path: []byte(path), Target: []byte(target)}
}

func write(path, data string) sendstream.Command {
	return &sendstream.Write{Path: []byte(path), Data: []byte(data)}
}

func device(path string, mode, rdev uint64) sendstream.Command {
	return &sendstream.Mknod{Path: []byte(path), Mode: mode, Rdev: rdev}
}

// TestReceiveStaysInside applies streams that try to get out of the root by symbolic links, or to have an
// effect on devices.
func TestReceiveStaysInside(t *testing.T) {
	testfs.Root(t)
	p := func(s string) []byte { return []byte(s) }
	for name, commands := range map[string][]sendstream.Command{
		"make file":        {mkfile("out/new", 1)},
		"make directory":   {mkdir("out/new", 1)},
		"make device":      {device("out/new", unix.S_IFCHR|0o666, 0x103)},
		"make pipe":        {&sendstream.Mkfifo{Path: p("out/new")}},
		"make socket":      {&sendstream.Mksock{Path: p("out/new")}},
		"make link":        {symlink("out/new", "x")},
		"write":            {write("out/secret", "x")},
		"write to link":    {symlink("l", "../outside/secret"), write("l", "x")},
		"truncate":         {&sendstream.Truncate{Path: p("out/secret")}},
		"truncate link":    {symlink("l", "../outside/secret"), &sendstream.Truncate{Path: p("l")}},
		"chmod":            {&sendstream.Chmod{Path: p("out/secret"), Mode: 0o777}},
		"chmod link":       {symlink("l", "../outside/secret"), &sendstream.Chmod{Path: p("l"), Mode: 0o777}},
		"chmod root link":  {&sendstream.Chmod{Path: p("out"), Mode: 0o777}},
		"chown":            {&sendstream.Chown{Path: p("out/secret"), UID: 5}},
		"utimes":           {&sendstream.Utimes{Path: p("out/secret")}},
		"set attribute":    {&sendstream.SetXattr{Path: p("out/secret"), Name: p("user.x"), Data: p("y")}},
		"remove attribute": {&sendstream.RemoveXattr{Path: p("out/secret"), Name: p("user.mine")}},
		"link in":          {link("stolen", "out/secret")},
		"link out":         {mkfile("f", 1), link("out/new", "f")},
		"rename in":        {rename("out/secret", "stolen")},
		"rename out":       {mkfile("f", 1), rename("f", "out/secret")},
		"unlink":           {unlink("out/secret")},
		"rmdir":            {rmdir("out/dir")},
		"clone in":         {mkfile("f", 1), &sendstream.Clone{Path: p("f"), ClonePath: p("out/secret"), CloneUUID: sendstream.UUID{1}, Len: 4096}},
		"clone from link":  {mkfile("f", 1), symlink("l", "../outside/secret"), &sendstream.Clone{Path: p("f"), ClonePath: p("l"), CloneUUID: sendstream.UUID{1}, Len: 4096}},
		"fallocate":        {&sendstream.Fallocate{Path: p("out/secret"), Size: 1 << 20}},
		"encoded write":    {&sendstream.EncodedWrite{Path: p("out/secret"), Data: p("x"), UnencodedLen: 4096, UnencodedFileLen: 4096, Compression: 2}},
		"directory, then link in its place": {
			mkdir("d", 1), mkdir("d/dir", 2), write("d/none", ""),
		},
		"directory replaced by a link": {
			mkdir("d", 1), mkfile("d/secret", 2), write("d/secret", "x"), rename("d", "e"), symlink("d", "../outside"), write("d/secret", "x"),
		},
		"directory replaced by a link, parent kept open": {
			mkdir("d", 1), mkdir("d/dir", 2), mkfile("d/dir/f", 3), rename("d", "e"), symlink("d", "../outside"), mkfile("d/dir/new", 4),
		},
		"empty directory replaced by another": {
			mkdir("d", 1), mkfile("d/f", 2), unlink("d/f"), symlink("t", "../outside"), rmdir("d"), rename("t", "d"), mkfile("d/new", 3),
		},
		"open file replaced by a link": {
			mkfile("f", 1), write("f", "x"), unlink("f"), symlink("f", "../outside/secret"), write("f", "x"),
		},
		"through proc":    {symlink("self", "/proc/self/root"), mkfile("self/tmp/cowshed-was-here", 1)},
		"write to device": {device("null", unix.S_IFCHR, 0x103), write("null", "x")},
		"write to pipe":   {&sendstream.Mkfifo{Path: p("pipe")}, write("pipe", "x")},
		"clone from pipe": {&sendstream.Mkfifo{Path: p("pipe")}, mkfile("f", 1), &sendstream.Clone{Path: p("f"), ClonePath: p("pipe"), CloneUUID: sendstream.UUID{1}, Len: 1}},
		"write to root":   {write("", "x")},
		"remove root":     {rmdir("")},
		"rename root":     {rename("", "x")},
		"link to root":    {link("x", "")},
		"device of a kind that is none": {
			device("f", unix.S_IFREG|0o4777, 0),
		},
		"device number too large": {device("f", unix.S_IFCHR, math.MaxUint32+1)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			inside, outside := filepath.Join(dir, "inside"), filepath.Join(dir, "outside")
			require.NoError(t, os.Mkdir(inside, 0o755))
			makeVictim(t, outside)
			before := describeTree(t, outside)
			root, err := os.Open(inside)
			require.NoError(t, err)
			defer root.Close()

			done := make(chan struct{})
			defer close(done)
			go func() {
				select {
				case <-done:
				case <-time.After(testfs.Patience):
					panic("receive hangs")
				}
			}()
			all := append([]sendstream.Command{symlink("out", "../outside")}, commands...)
			_, err = receive(t.Context(), root, nil, full(t, all...))
			require.Error(t, err)
			assert.Contains(t, err.Error(), "offset ")
			assert.Equal(t, before, describeTree(t, outside))
			assert.NoFileExists(t, "/tmp/cowshed-was-here")
			assert.NoFileExists(t, filepath.Join(inside, "stolen"))
		})
	}
}

// makeVictim makes a tree that nobody may change.
func makeVictim(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "dir"), 0o755))
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, bytes.Repeat([]byte("s"), 4096), 0o600))
	_ = unix.Setxattr(secret, "user.mine", []byte("x"), 0) // where the filesystem has them
}

// describeTree renders all names, attributes and contents of a tree, times of the last change included.
func describeTree(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	for path, n := range readTree(t, dir) {
		if n.Mode&unix.S_IFMT == unix.S_IFREG {
			data, err := os.ReadFile(n.path)
			require.NoError(t, err)
			fmt.Fprintf(&b, "%q ", data)
		}
		fmt.Fprintf(&b, "%q %o %d:%d %d links, %v %v\n", path, n.Mode, n.Uid, n.Gid, n.Nlink, n.Mtime, n.Ctime)
	}
	lines := strings.Split(b.String(), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestReceiveSetsLinksThemselves has commands on symbolic links, which must change the links and not follow them.
func TestReceiveSetsLinksThemselves(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	inside, outside := filepath.Join(dir, "inside"), filepath.Join(dir, "outside")
	require.NoError(t, os.Mkdir(inside, 0o755))
	makeVictim(t, outside)
	before := describeTree(t, outside)
	root, err := os.Open(inside)
	require.NoError(t, err)
	defer root.Close()
	_, err = receive(t.Context(), root, nil, full(t,
		symlink("l", "../outside/secret"),
		&sendstream.Chown{Path: []byte("l"), UID: 5, GID: 6},
		&sendstream.Utimes{Path: []byte("l"), Mtime: sendstream.Timespec{Sec: 7}},
		&sendstream.SetXattr{Path: []byte("l"), Name: []byte("trusted.x"), Data: []byte("y")},
		link("m", "l"),
		rename("m", "n"),
		unlink("n"),
	))
	require.NoError(t, err)
	assert.Equal(t, before, describeTree(t, outside))
	l := readTree(t, inside)["l"]
	assert.EqualValues(t, 5, l.Uid)
	assert.EqualValues(t, 7, l.Mtime.Sec)
	value := make([]byte, 10)
	n, err := unix.Lgetxattr(filepath.Join(inside, "l"), "trusted.x", value)
	require.NoError(t, err)
	assert.Equal(t, "y", string(value[:n]))
}

func TestReceiveRefuses(t *testing.T) {
	s := newSender(t)
	work := s.create("work")
	base := s.snapshot(work, "base", true)
	shell(t, work, "echo 1 >f")
	top := s.snapshot(work, "top", true)
	other := s.snapshot(s.create("unrelated"), "other", true)
	p := func(s string) []byte { return []byte(s) }

	t.Run("incremental without source", func(t *testing.T) {
		_, err := s.receiveFull(s.send(base, top, 0, 1), "r1")
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, s.info(base).UUID.String())
	})
	t.Run("full with source", func(t *testing.T) {
		_, err := s.receiveIncremental(s.send("", top, 0, 1), base, "r2")
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	})
	t.Run("other source", func(t *testing.T) {
		_, err := s.receiveIncremental(s.send(base, top, 0, 1), other, "r3")
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		require.ErrorContains(t, err, s.info(base).UUID.String())
	})
	t.Run("without data", func(t *testing.T) {
		_, err := s.receiveIncremental(s.send(base, top, btrfsctl.SendNoFileData, 1), base, "r4")
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		require.ErrorContains(t, err, "without file data")
	})
	for name, tc := range map[string]struct {
		commands []sendstream.Command
		err      error
		text     string
	}{
		"clone from another subvolume": {
			[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.Clone{Path: p("f"), ClonePath: p("g/h"), CloneUUID: sendstream.UUID{0xab}}},
			errdefs.ErrFailedPrecondition, `"g/h" of the subvolume ab000000-0000-0000-0000-000000000000`,
		},
		"clone from none":      {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.Clone{Path: p("f"), ClonePath: p("f")}}, errdefs.ErrFailedPrecondition, ""},
		"two subvolumes":       {[]sendstream.Command{subvol(), subvol()}, errdefs.ErrInvalidArgument, "more than one"},
		"none":                 {[]sendstream.Command{mkfile("f", 1)}, errdefs.ErrInvalidArgument, ""},
		"write far away":       {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.Write{Path: p("f"), Offset: math.MaxInt64, Data: p("x")}}, errdefs.ErrInvalidArgument, ""},
		"size out of range":    {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.Truncate{Path: p("f"), Size: math.MaxUint64}}, errdefs.ErrInvalidArgument, ""},
		"allocate far away":    {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.Fallocate{Path: p("f"), Offset: 1, Size: math.MaxInt64}}, errdefs.ErrInvalidArgument, ""},
		"no such owner":        {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.Chown{Path: p("f"), UID: math.MaxUint32}}, errdefs.ErrInvalidArgument, ""},
		"missing file":         {[]sendstream.Command{subvol(), write("f", "x")}, unix.ENOENT, `WRITE: open "f"`},
		"hostile name":         {[]sendstream.Command{subvol(), write("\x1b[2J\n", "x")}, unix.ENOENT, `WRITE: open "\x1b[2J\n"`},
		"name taken":           {[]sendstream.Command{subvol(), mkfile("f", 1), mkfile("f", 1)}, unix.EEXIST, ""},
		"directory not empty":  {[]sendstream.Command{subvol(), mkdir("d", 1), mkfile("d/f", 1), rmdir("d")}, unix.ENOTEMPTY, ""},
		"encrypted":            {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.EncodedWrite{Path: p("f"), Encryption: 1}}, errdefs.ErrNotImplemented, ""},
		"bomb":                 {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.EncodedWrite{Path: p("f"), UnencodedLen: 1 << 40, UnencodedFileLen: 1 << 40, Data: p("x"), Compression: 2}}, errdefs.ErrInvalidArgument, ""},
		"more than there is":   {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.EncodedWrite{Path: p("f"), UnencodedLen: 4096, UnencodedFileLen: 4096, UnencodedOffset: 1, Data: p("x")}}, errdefs.ErrInvalidArgument, ""},
		"unknown compression":  {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.EncodedWrite{Path: p("f"), UnencodedLen: 4096, UnencodedFileLen: 4096, Data: p("x"), Compression: 99}}, errdefs.ErrNotImplemented, ""},
		"attribute of no kind": {[]sendstream.Command{subvol(), mkfile("f", 1), &sendstream.SetXattr{Path: p("f"), Name: p("x")}}, unix.EOPNOTSUPP, `"x"`},
	} {
		t.Run(name, func(t *testing.T) {
			s := &sender{t: t, dir: s.dir, fd: s.fd}
			_, err := s.receiveFull(encode(t, append(tc.commands, &sendstream.End{})...), strings.ReplaceAll(name, " ", "-"))
			require.ErrorIs(t, err, tc.err)
			require.ErrorContains(t, err, tc.text)
		})
	}
	t.Run("verity where the kernel has none", func(t *testing.T) {
		s := &sender{t: t, dir: s.dir, fd: s.fd}
		verity := &sendstream.EnableVerity{Path: p("f"), Algorithm: 1, BlockSize: 4096}
		root, err := s.receiveFull(encode(t, subvol(), mkfile("f", 1), verity, &sendstream.End{}), "with-verity")
		if err == nil {
			var stat unix.Statx_t
			require.NoError(t, unix.Statx(unix.AT_FDCWD, filepath.Join(root, "f"), 0, 0, &stat))
			require.NotZero(t, stat.Attributes&unix.STATX_ATTR_VERITY, "the kernel has it, so the file has to")
			return
		}
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
		require.ErrorContains(t, err, "fs-verity")
	})
	t.Run("truncated", func(t *testing.T) {
		stream, err := io.ReadAll(s.send("", top, 0, 1))
		require.NoError(t, err)
		_, err = s.receiveFull(bytes.NewReader(stream[:len(stream)-1]), "truncated")
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		cancel(why)
		root, err := os.Open(s.create("cancelled"))
		require.NoError(t, err)
		defer root.Close()
		_, err = receive(ctx, root, nil, s.send("", top, 0, 1))
		require.ErrorIs(t, err, why)
	})
}

// TestReceiveAppliesFallocate has a command that the format defines and no kernel sends.
func TestReceiveAppliesFallocate(t *testing.T) {
	s := newSender(t)
	p := []byte("f")
	dir, err := s.receiveFull(full(t,
		mkfile("f", 1), write("f", strings.Repeat("x", 16384)),
		&sendstream.Fallocate{Path: p, Mode: unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, Offset: 4096, Size: 8192},
		&sendstream.Fallocate{Path: p, Offset: 16384, Size: 100},
	), "received")
	require.NoError(t, err)
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	require.NoError(t, err)
	want := strings.Repeat("x", 4096) + strings.Repeat("\x00", 8192) + strings.Repeat("x", 4096) + strings.Repeat("\x00", 100)
	assert.Equal(t, want, string(got))
}

// TestChmodOpen covers kernels that change no modes without following links by themselves.
func TestChmodOpen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Symlink("f", filepath.Join(dir, "l")))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)

	require.NoError(t, chmodOpen(fd, "f", 0o751))
	require.ErrorIs(t, chmodOpen(fd, "l", 0o777), unix.EOPNOTSUPP)
	require.ErrorIs(t, chmodOpen(fd, "none", 0o777), unix.ENOENT)
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.EqualValues(t, 0o751, info.Mode())
}

// TestReceiveKeepsNothingOpen counts descriptors.
func TestReceiveKeepsNothingOpen(t *testing.T) {
	dir := t.TempDir()
	root, err := os.Open(dir)
	require.NoError(t, err)
	defer root.Close()
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	before := count()
	for i := range 20 {
		name := fmt.Sprintf("d%d", i)
		_, err := receive(t.Context(), root, nil, full(t,
			mkdir(name, 1), mkdir(name+"/e", 1), mkfile(name+"/f", 1), write(name+"/f", "x"), mkfile(name+"/e/g", 1), write(name+"/e/g", "x"),
			write(name+"/missing", "x"),
		))
		require.ErrorIs(t, err, unix.ENOENT)
	}
	assert.Equal(t, before, count())
}

// FuzzReceive asserts that no stream changes anything outside of the root.
func FuzzReceive(f *testing.F) {
	for _, name := range []string{"full-v1", "full-v2", "incremental-v1"} {
		b, err := os.ReadFile("sendstream/testdata/" + name + ".stream")
		require.NoError(f, err)
		f.Add(b)
	}
	f.Add([]byte{5, 0, 1, 0, 10, 0, 8, 10, 0, 4, 1, 1})
	f.Fuzz(func(t *testing.T, input []byte) {
		dir := t.TempDir()
		inside, outside := filepath.Join(dir, "inside"), filepath.Join(dir, "outside")
		require.NoError(t, os.Mkdir(inside, 0o755))
		makeVictim(t, outside)
		before := describeTree(t, outside)
		root, err := os.Open(inside)
		require.NoError(t, err)
		defer root.Close()
		// The input is the stream itself, and then a choice of commands.
		_, _ = receive(t.Context(), root, nil, bytes.NewReader(input))
		_, _ = receive(t.Context(), root, nil, full(t, hostileCommands(input)...))
		require.Equal(t, before, describeTree(t, outside))
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 2)
	})
}

// hostileCommands makes commands from arbitrary bytes, three for each command. They use a few names, among them
// symbolic links that lead outside.
func hostileCommands(input []byte) []sendstream.Command {
	paths := []string{"", "a", "b", "a/b", "b/a", "a/b/a", "a/secret", "b/secret", "a/dir", "secret", "a/dir/b"}
	targets := []string{"../outside", "../outside/secret", "a", "b", "/", ".", "..", "/proc/self/cwd"}
	var commands []sendstream.Command
	for ; len(input) >= 3 && len(commands) < 100; input = input[3:] {
		path, other := paths[int(input[1])%len(paths)], paths[int(input[2])%len(paths)]
		p, o, n := []byte(path), []byte(other), uint64(input[2])
		all := []sendstream.Command{
			mkfile(path, n), mkdir(path, n), rename(path, other), link(path, other), unlink(path), rmdir(path),
			symlink(path, targets[int(n)%len(targets)]), write(path, other),
			device(path, unix.S_IFCHR|0o666, 0x103),
			&sendstream.Mkfifo{Path: p},
			&sendstream.Truncate{Path: p, Size: n},
			&sendstream.Chmod{Path: p, Mode: binary.BigEndian.Uint64(append(make([]byte, 6), input[1], input[2]))},
			&sendstream.Chown{Path: p, UID: n, GID: n},
			&sendstream.Utimes{Path: p},
			&sendstream.SetXattr{Path: p, Name: []byte("user.x"), Data: o},
			&sendstream.RemoveXattr{Path: p, Name: []byte("user.mine")},
			&sendstream.Clone{Path: p, ClonePath: o, CloneUUID: sendstream.UUID{1}, Len: n},
			&sendstream.Fallocate{Path: p, Size: n},
			&sendstream.EncodedWrite{Path: p, Data: o, UnencodedLen: 4096, UnencodedFileLen: n, Compression: sendstream.Compression(n % 4)},
		}
		commands = append(commands, all[int(input[0])%len(all)])
	}
	return commands
}
