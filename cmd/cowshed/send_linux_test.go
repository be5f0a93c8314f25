package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
)

// reading is the same store, with that standard input.
func (a at) reading(stdin io.Reader) at {
	a.stdin = stdin
	return a
}

// TestSendThroughPipe: a layer of an image goes to another store with all that it needs, from one process to another.
func TestSendThroughPipe(t *testing.T) {
	from, to := newStore(t), newStore(t)
	path, _ := writeImage(t, "app:1", 2)
	from.ok(t, "import", path)
	from.ok(t, "create", "web", "--parent", "app:1", "--size", "1G", "--read-write")
	from.write(t, "web", "file", "1")
	program, err := os.Executable()
	require.NoError(t, err)
	pipe := fmt.Sprintf("%[1]s --root %[2]s send web --with-parents | %[1]s --root %[3]s receive --json", program, from.root, to.root)
	var infos []receivedInfo
	run := func() {
		cmd := exec.Command("sh", "-ec", pipe)
		cmd.Env = append(os.Environ(), asProgramEnv+"=1")
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		require.NoError(t, testfs.Run(t, cmd), &errOut)
		unmarshal(t, out.Bytes(), &infos)
	}
	run()
	require.Len(t, infos, 3)
	assert.Regexp(t, `^image-[0-9a-f]{12}$`, infos[0].Name, "a stream does not prove digests")
	assert.Equal(t, "app:1", infos[1].Image)
	assert.EqualValues(t, 1<<30, infos[2].Limit)
	assert.Equal(t, "web", infos[2].SentAs)
	assert.Empty(t, to.ok(t, "changes", "web", infos[1].Name, "--walk")[len("A /file\n"):])
	assert.Equal(t, "1", to.read(t, "web", "file"))
	assert.Zero(t, to.layer(t, "web").Limit)

	// The parents are there already.
	to.ok(t, "rm", "web")
	infos = nil
	run()
	assert.Equal(t, []bool{true, true, false}, []bool{infos[0].Skipped, infos[1].Skipped, infos[2].Skipped})

	// The same image was imported there. So its layers are others.
	third := newStore(t)
	third.ok(t, "import", path)
	stream := from.ok(t, "send", "web", "--with-parents")
	assert.Equal(t, "web\n", third.reading(strings.NewReader(stream)).ok(t, "receive", "--limit"))
	assert.EqualValues(t, 1<<30, third.layer(t, "web").Limit)
	assert.Equal(t, infos[1].Name, third.layer(t, "web").Parent)
	// Back where it came from, the image's own layers are used.
	assert.Equal(t, "again\n", from.reading(strings.NewReader(stream)).ok(t, "receive", "again"))
	assert.True(t, regexp.MustCompile("^[0-9a-f]{64}$").MatchString(from.layer(t, "again").Parent))
}

func TestSendSnapshots(t *testing.T) {
	from, to := newWeb(t), newStore(t)
	from.ok(t, "snapshot", "web", "one")
	from.write(t, "web", "file", "2")
	from.ok(t, "snapshot", "web", "two")
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	var sent []live.Sent
	from.ok(t, "send", "web@one", "-o", one)
	unmarshal(t, []byte(from.ok(t, "send", "web@two", "--from", "web@one", "-o", two, "--json")), &sent)
	require.Len(t, sent, 1)
	assert.Equal(t, "web@two", sent[0].Name)
	assert.Equal(t, "web@one", sent[0].Parent)
	open := func(path string) at {
		f, err := os.Open(path)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return to.reading(f)
	}
	assert.Equal(t, exitUsage, open(one).run(t, "receive").code, "web@one is no name of a layer")
	assert.Equal(t, "monday\n", open(one).ok(t, "receive", "monday"))
	assert.Equal(t, exitNotFound, open(two).run(t, "receive", "tuesday").code)
	assert.Equal(t, "tuesday\n", open(two).ok(t, "receive", "tuesday", "--parent", "monday"))
	assert.Equal(t, "2", to.read(t, "tuesday", "file"))
	assert.Equal(t, "C /file\n", to.ok(t, "changes", "tuesday"))

	moments, err := filepath.Glob(filepath.Join(from.root, "btrfs/subvolumes/moment-*"))
	require.NoError(t, err)
	require.Len(t, moments, 2)
	var stream, errOut bytes.Buffer
	cmd := exec.Command("btrfs", "send", "-q", moments[0])
	cmd.Stdout, cmd.Stderr = &stream, &errOut
	require.NoError(t, cmd.Run(), &errOut)
	assert.Equal(t, "base\n", to.reading(&stream).ok(t, "receive", "base"))
}

func TestSendRefused(t *testing.T) {
	a := newWeb(t)
	path := filepath.Join(t.TempDir(), "stream")
	a.ok(t, "send", "web", "-o", path)
	stream, err := os.ReadFile(path)
	require.NoError(t, err)
	before := a.state(t)
	for _, test := range []struct {
		stdin string
		code  int
		args  []string
		says  string
	}{
		{"", exitNotFound, []string{"send", "none"}, "no layer or image none"},
		{"", exitNotFound, []string{"send", "web", "--from", "none"}, "--from: no layer"},
		{"", exitPrecondition, []string{"send", "base", "--from", "web"}, "take a snapshot of it"},
		{"", exitExists, []string{"send", "web", "-o", path}, "already exists"},
		{"", exitUsage, []string{"send", "web", "--json"}, "--json needs -o FILE"},
		{"", exitUsage, []string{"receive", "x"}, "the stream is empty"},
		{"no stream, but text", exitUsage, []string{"receive", "x"}, "neither a stream"},
		{string(stream[:len(stream)-1]), exitUsage, []string{"receive", "x"}, "cut off: send it again"},
		{string(stream), exitExists, []string{"receive"}, "layer web"},
		{string(stream), exitUsage, []string{"receive", strings.Repeat("a", 64)}, "choose another"},
		{string(stream), exitNotFound, []string{"receive", "x", "--parent", "none"}, "--parent: no layer"},
		{string(stream), exitUsage, []string{"receive", "x", "--parent", "base"}, "leave the parent out"},
		{"btrfs-stream\x00\x01\x00\x00\x00", exitUsage, []string{"receive"}, "give it a name"},
		{"\x00\x00\x00\x00\x00\x00\x00\x00\xac\xcb\xba\xf5\x02\x00\x00\x00", exitUnsupported, []string{"receive", "x"}, "is one of zfs"},
	} {
		r := a.reading(strings.NewReader(test.stdin)).run(t, test.args...)
		assert.Equal(t, test.code, r.code, "%v: %s", test.args, r.err)
		assert.Contains(t, r.err, test.says, "%v", test.args)
	}
	assert.Equal(t, before, a.state(t))
}

// TestSendToTerminal: a stream neither goes to a terminal, nor comes from one.
func TestSendToTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer master.Close()
	var errOut bytes.Buffer
	for _, args := range [][]string{{"send", "web"}, {"receive", "web"}} {
		assert.Equal(t, exitUsage, run(t.Context(), args, master, master, &errOut))
	}
	assert.Contains(t, errOut.String(), "a stream is not for the terminal")
	assert.Contains(t, errOut.String(), "a terminal cannot be the source of a stream")
}

// TestSendSharedRoot: a layer with a shared root is sent as a copy with a root of its own, while it is in use. No stream builds on it.
func TestSendSharedRoot(t *testing.T) {
	a, to := newStore(t), newStore(t)
	a.ok(t, "create", "base")
	a.ok(t, "create", "shared-web", "--parent", "base", "--root-style", "shared", "--storage-opt", "btrfs.root_style=shared")
	a.write(t, "shared-web", "file", "1")
	at := t.TempDir()
	a.ok(t, "mount", "shared-web", at)
	a.ok(t, "snapshot", "shared-web", "one")
	stream := a.ok(t, "send", "shared-web", "--with-parents")
	assert.True(t, isOverlay(t, at), "it stays as it is")
	r := a.run(t, "send", "shared-web", "--from", "shared-web@one", "-o", filepath.Join(t.TempDir(), "stream"))
	assert.Equal(t, exitUnsupported, r.code)
	assert.Contains(t, r.err, "has a shared root")
	a.ok(t, "unmount", "shared-web")
	to.reading(strings.NewReader(stream)).ok(t, "receive")
	assert.Equal(t, "1", to.read(t, "shared-web", "file"))
	assert.Equal(t, "A /file\n", to.ok(t, "changes", "shared-web"))
}

// TestReceiveKilled kills a process that receives, at some moment and while it waits. Nothing is left but whole parents, and the
// same stream can be received afterwards.
func TestReceiveKilled(t *testing.T) {
	from, to := newWeb(t), newStore(t)
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	from.write(t, "web", "large", string(data))
	stream := from.ok(t, "send", "web", "--with-parents")
	program, err := os.Executable()
	require.NoError(t, err)
	for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM} {
		cmd := exec.Command(program, "--root", to.root, "receive")
		cmd.Env = append(os.Environ(), asProgramEnv+"=1")
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		testfs.Start(t, cmd)
		n := len(stream) - 1 - rand.IntN(7<<20)
		if i == 0 {
			n = len(stream) - 1
		}
		_, err = io.WriteString(in, stream[:n])
		require.NoError(t, err)
		time.Sleep(100 * time.Millisecond)
		require.NoError(t, cmd.Process.Signal(signal))
		require.Error(t, testfs.Wait(t, cmd))
		names := to.ok(t, "ls", "--names")
		assert.Contains(t, []string{"", "base\n"}, names)
		if signal == syscall.SIGTERM {
			assert.Equal(t, exitSignal+int(syscall.SIGTERM), cmd.ProcessState.ExitCode())
		}
		staging, err := os.ReadDir(filepath.Join(to.root, "btrfs/staging"))
		require.NoError(t, err)
		assert.Empty(t, staging)
	}
	to.reading(strings.NewReader(stream)).ok(t, "receive")
	assert.Equal(t, string(data), to.read(t, "web", "large"))
}

// TestSendNoReader: the reader of the stream goes away.
func TestSendNoReader(t *testing.T) {
	a := newWeb(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	r.Close()
	defer w.Close()
	var errOut bytes.Buffer
	assert.Equal(t, exitSignal+int(syscall.SIGPIPE), run(t.Context(), []string{"--root", a.root, "send", "web"}, strings.NewReader(""), w, &errOut))
	assert.Empty(t, errOut.String())
}

// TestSendStalledReader: a signal ends the command although nobody reads its output.
func TestSendStalledReader(t *testing.T) {
	a := newWeb(t)
	a.write(t, "web", "large", strings.Repeat("large", 1<<20))
	program, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(program, "--root", a.root, "send", "web")
	cmd.Env = append(os.Environ(), asProgramEnv+"=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	testfs.Start(t, cmd)
	_, err = io.ReadFull(out, make([]byte, 1000))
	require.NoError(t, err)
	time.Sleep(200 * time.Millisecond) // it fills the pipe
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.Error(t, testfs.Wait(t, cmd))
	assert.Equal(t, exitSignal+int(syscall.SIGTERM), cmd.ProcessState.ExitCode())
	a.ok(t, "rm", "web")
}

func unmarshal(t *testing.T, data []byte, into any) {
	t.Helper()
	require.NoError(t, json.Unmarshal(data, into), string(data))
}
