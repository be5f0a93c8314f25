package live_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layerstream"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// send sends a layer.
func (h home) send(layer string, opts live.SendOptions) []byte {
	h.t.Helper()
	var out bytes.Buffer
	_, err := h.Send(h.t.Context(), &out, layer, opts)
	require.NoError(h.t, err)
	return out.Bytes()
}

func (h home) receive(stream []byte, opts live.ReceiveOptions) ([]live.Received, error) {
	return h.Receive(h.t.Context(), bytes.NewReader(stream), opts)
}

// volume is the name of the volume of a layer or a snapshot.
func (h home) volume(ref string) string {
	h.t.Helper()
	if _, _, ok := live.Cut(ref); !ok {
		return ref
	}
	v, err := h.Find(h.t.Context(), ref)
	require.NoError(h.t, err)
	return v.Name
}

// assertSame asserts that a layer here has the tree of a layer there.
func (h home) assertSame(layer string, there home, other string) {
	h.t.Helper()
	ctx := h.t.Context()
	a, err := h.backend.View(ctx, h.volume(layer))
	require.NoError(h.t, err)
	b, err := there.backend.View(ctx, there.volume(other))
	require.NoError(h.t, err)
	differences, err := treecmp.Diff(a.Dir(), b.Dir(), treecmp.Options{})
	require.NoError(h.t, err)
	assert.Empty(h.t, differences)
	assert.NoError(h.t, errors.Join(a.Close(), b.Close()))
}

// newChain makes the layers ground, middle, which was made from it, and web, which was made from a fork of a clone of middle. The
// first two are sealed only if nobody uses a layer of the same name as the lower of an overlay. So ground has a name of its own.
func (h home) newChain() home {
	h.t.Helper()
	ctx := h.t.Context()
	h.image("ground")
	h.put("ground", "d/base", strings.Repeat("ground", 50_000))
	require.NoError(h.t, h.backend.Clone(ctx, "middle", "ground", cowcommon.VolumeOptions{}))
	h.put("middle", "d/middle", "middle")
	h.clone("origin", "middle")
	h.put("origin", "origin", "origin")
	_, err := h.Fork(ctx, "origin", []string{"web"}, live.ForkOptions{Fork: live.Fork{Labels: map[string]string{"task": "1"}}})
	require.NoError(h.t, err)
	h.put("web", "web", "1")
	h.edit("web", func(dir string) { require.NoError(h.t, os.Chmod(filepath.Join(dir, "d"), 0o700)) })
	return h
}

func testSendReceive(t *testing.T, from, to home) {
	ctx := t.Context()
	from.newChain()
	dir, err := from.backend.Mount(ctx, "web", "")
	require.NoError(t, err)
	whole := from.send("web", live.SendOptions{})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "web"), []byte("2"), 0o600), "it is in use, and stays writable")
	require.NoError(t, from.backend.Unmount(ctx, "web"))
	got, err := to.receive(whole, live.ReceiveOptions{})
	require.NoError(t, err)
	require.Len(t, got, 1)
	assert.Equal(t, "web", got[0].Name)
	assert.Equal(t, map[string]string{"task": "1"}, got[0].Header.Labels)
	assert.Equal(t, "1", to.get("web", "web"))
	assert.Equal(t, "origin", to.get("web", "origin"))

	// With parents. Those that are here are not made again.
	chain := from.send("web", live.SendOptions{WithParents: true})
	sent, err := from.Send(ctx, io.Discard, "web", live.SendOptions{WithParents: true})
	require.NoError(t, err)
	names := make([]string, 0, len(sent))
	for _, s := range sent {
		names = append(names, s.Parent+">"+s.Name)
	}
	assert.Equal(t, []string{">ground", "ground>middle", "middle>web"}, names)
	for i, skipped := range []bool{false, true} {
		name := fmt.Sprintf("web-%d", i)
		got, err := to.receive(chain, live.ReceiveOptions{Name: name})
		require.NoError(t, err)
		require.Len(t, got, 3)
		assert.Equal(t, []bool{skipped, skipped, false}, []bool{got[0].Skipped, got[1].Skipped, got[2].Skipped})
		to.assertSame(name, from, "web")
		v, err := to.backend.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, "middle", v.Parent)
		assert.True(t, v.Sealed)
	}
	to.assertSame("ground", from, "ground")
	to.assertSame("middle", from, "middle")

	// From a parent that is there, which the stream finds by itself, or under another name.
	increment := from.send("web", live.SendOptions{From: "ground", WithParents: true})
	assert.Less(t, len(increment), len(whole)/4)
	require.NoError(t, to.backend.Remove(ctx, "middle"))
	got, err = to.receive(increment, live.ReceiveOptions{Name: "web-2"})
	require.NoError(t, err)
	require.Len(t, got, 2)
	to.assertSame("web-2", from, "web")
	_, err = to.receive(increment, live.ReceiveOptions{Name: "x", Parent: "web"})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "middle is there, and was not made from web")
	increment = from.send("web", live.SendOptions{From: "middle"})
	_, err = to.receive(increment, live.ReceiveOptions{Name: "x", Parent: "ground"})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	_, err = to.receive(increment, live.ReceiveOptions{Name: "x", Parent: "none"})
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.NoError(t, cowcommon.Rename(ctx, to.backend, "middle", "center"))
	_, err = to.receive(increment, live.ReceiveOptions{Name: "x"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	got, err = to.receive(increment, live.ReceiveOptions{Name: "web-3", Parent: "center"})
	require.NoError(t, err)
	assert.Equal(t, "center", got[0].Parent)
	to.assertSame("web-3", from, "web")

	// A parent whose name another layer has gets another name.
	got, err = to.receive(chain, live.ReceiveOptions{Name: "web-4", ParentNames: func(name string) []string { return []string{"web", "new-" + name} }})
	require.NoError(t, err)
	assert.Equal(t, []string{"new-ground", "new-middle", "web-4"}, []string{got[0].Name, got[1].Name, got[2].Name})
	to.assertSame("web-4", from, "web")

	// And back again.
	require.NoError(t, to.backend.Clone(ctx, "changed", "web-3", cowcommon.VolumeOptions{}))
	to.put("changed", "changed", "1")
	back := to.send("changed", live.SendOptions{WithParents: true, From: "web-3"})
	_, err = from.receive(back, live.ReceiveOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotFound, "web was not sealed when it was sent")
	require.NoError(t, to.backend.Clone(ctx, "changed-middle", "center", cowcommon.VolumeOptions{}))
	to.put("changed-middle", "changed", "1")
	got, err = from.receive(to.send("changed-middle", live.SendOptions{From: "center"}), live.ReceiveOptions{Parent: "middle"})
	require.NoError(t, err)
	assert.Equal(t, "changed-middle", got[0].Name)
	from.assertSame("changed-middle", to, "changed-middle")
}

func TestSendReceive(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHomeOf makeHome) { testSendReceive(t, newHomeOf(t), newHome(t)) })
}

// sending is failing with the streams of its Backend.
type sending struct{ *failing }

func (s sending) Unwrap() cowcommon.Backend { return s.Backend }

// TestSendCrash: nothing is left of the copy of a layer with a shared root, whose sending fails or is interrupted.
func TestSendCrash(t *testing.T) {
	shared := func(t *testing.T) home { return openHome(t, cowcommon.SharedRoot) }
	eachCrash(t, map[string]crashing{"shared": {shared, func(f *failing) cowcommon.Backend { return sending{f} }}},
		func(h home) { h.create("web"); h.put("web", "file", "1") },
		func(h home) error {
			_, err := h.Send(t.Context(), io.Discard, "web", live.SendOptions{})
			return err
		},
		func(h home, done bool) {
			if done {
				_, moments := h.layers()
				assert.Zero(h.t, moments)
			}
			h.assertClean(0, "web")
			h.assertStyle("web")
		})
}

func testBadReceive(t *testing.T, from, to home) {
	ctx := t.Context()
	from.newChain()
	whole, chain := from.send("web", live.SendOptions{}), from.send("web", live.SendOptions{WithParents: true})
	increment := from.send("web", live.SendOptions{From: "middle"})
	to.create("taken")
	to.create("unsealed")
	rest := func() {
		t.Helper()
		layers, moments := to.layers()
		for _, parent := range []string{"middle", "ground"} { // those whose digest was right
			if i := slices.Index(layers, parent); i >= 0 {
				to.assertSame(parent, from, parent)
				require.NoError(t, to.backend.Remove(ctx, parent))
				layers = slices.Delete(layers, i, i+1)
			}
		}
		assert.Equal(t, []string{"taken", "unsealed"}, layers)
		assert.Zero(t, moments)
	}
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 1
		return b
	}
	other := "btrfs"
	if bytes.Contains(whole[:20], []byte(other)) {
		other = "zfs"
	}
	var foreign bytes.Buffer
	_, err := layerstream.NewWriter(&foreign).Layer(layerstream.Header{Kind: other, Name: "web", ID: []byte("id")}, func(io.Writer) error { return nil })
	require.NoError(t, err)
	var empty bytes.Buffer
	kind, err := cowcommon.StreamKind(to.backend)
	require.NoError(t, err)
	_, err = layerstream.NewWriter(&empty).Layer(layerstream.Header{Kind: kind, Name: "web", ID: []byte("id")}, func(io.Writer) error { return nil })
	require.NoError(t, err)
	broken := errors.New("the network is down")
	for name, test := range map[string]struct {
		stream io.Reader
		opts   live.ReceiveOptions
		kind   error
		says   string
	}{
		"nothing":                  {strings.NewReader(""), live.ReceiveOptions{Name: "x"}, errdefs.ErrInvalidArgument, "empty"},
		"garbage":                  {strings.NewReader("this is no stream of any kind"), live.ReceiveOptions{Name: "x"}, errdefs.ErrInvalidArgument, "neither"},
		"version":                  {bytes.NewReader(flip(whole, len(layerstream.Magic))), live.ReceiveOptions{}, errdefs.ErrNotImplemented, "version 0"},
		"damaged":                  {bytes.NewReader(flip(whole, len(whole)-10)), live.ReceiveOptions{}, layerstream.ErrDamaged, "send it again"},
		"damaged data":             {bytes.NewReader(flip(whole, len(whole)/2)), live.ReceiveOptions{}, errdefs.ErrInvalidArgument, ""},
		"no end":                   {bytes.NewReader(whole[:len(whole)-2]), live.ReceiveOptions{}, layerstream.ErrTruncated, "send it again"},
		"no end of chain":          {bytes.NewReader(chain[:len(chain)-1]), live.ReceiveOptions{}, layerstream.ErrTruncated, "send it again"},
		"half a chain":             {bytes.NewReader(chain[:len(chain)-200]), live.ReceiveOptions{}, layerstream.ErrTruncated, "send it again"},
		"read error":               {io.MultiReader(bytes.NewReader(whole[:1000]), iotest.ErrReader(broken)), live.ReceiveOptions{}, broken, ""},
		"another kind":             {&foreign, live.ReceiveOptions{}, errdefs.ErrNotImplemented, "the stream is one of " + other},
		"no native stream":         {&empty, live.ReceiveOptions{}, errdefs.ErrInvalidArgument, "cut off"},
		"no parent":                {bytes.NewReader(increment), live.ReceiveOptions{}, errdefs.ErrNotFound, "which is not here: receive that first"},
		"wrong parent":             {bytes.NewReader(increment), live.ReceiveOptions{Parent: "unsealed"}, errdefs.ErrFailedPrecondition, "can still change: name the layer"},
		"needless parent":          {bytes.NewReader(whole), live.ReceiveOptions{Parent: "taken"}, errdefs.ErrInvalidArgument, "leave the parent out"},
		"needless parent of chain": {bytes.NewReader(chain), live.ReceiveOptions{Parent: "taken"}, errdefs.ErrInvalidArgument, "leave the parent out"},
		"taken":                    {bytes.NewReader(whole), live.ReceiveOptions{Name: "taken"}, errdefs.ErrAlreadyExists, "taken"},
		"bad name":                 {bytes.NewReader(whole), live.ReceiveOptions{Name: "../x"}, errdefs.ErrInvalidArgument, ""},
		"name of a moment":         {bytes.NewReader(whole), live.ReceiveOptions{Name: "moment-0123456789ab-aaaaaaaaaaaa"}, errdefs.ErrInvalidArgument, "choose another"},
		"parent taken": {bytes.NewReader(chain), live.ReceiveOptions{ParentNames: func(string) []string { return []string{"taken"} }}, errdefs.ErrAlreadyExists,
			"another layer taken is there"},
		"parent refused": {bytes.NewReader(chain), live.ReceiveOptions{CheckName: func(name string) error {
			return fault.New(errdefs.ErrInvalidArgument, "not %s", name)
		}}, errdefs.ErrInvalidArgument, "not ground"},
		"last parent taken": {bytes.NewReader(chain), live.ReceiveOptions{ParentNames: func(name string) []string {
			return []string{strings.Replace(name, "middle", "taken", 1)}
		}}, errdefs.ErrAlreadyExists, "another layer taken is there"},
	} {
		_, err := to.Receive(ctx, test.stream, test.opts)
		require.Error(t, err, name)
		require.ErrorIs(t, err, test.kind, name)
		assert.ErrorContains(t, err, test.says, name)
		t.Logf("%s: %v", name, err)
		rest()
	}

	for _, stream := range [][]byte{whole, chain} {
		for range 10 {
			n := rand.IntN(len(stream))
			_, err := to.receive(stream[:n], live.ReceiveOptions{})
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "cut at %d", n)
			_, err = to.receive(flip(stream, n), live.ReceiveOptions{})
			require.Error(t, err, "bit flipped at %d", n)
		}
	}
	rest()

	cancelled, cancel := context.WithCancel(ctx)
	_, err = to.Receive(cancelled, io.MultiReader(bytes.NewReader(chain[:len(chain)-100]), readerFunc(func([]byte) (int, error) {
		cancel()
		return 0, context.Canceled
	})), live.ReceiveOptions{})
	require.ErrorIs(t, err, context.Canceled)
	rest()
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestBadReceive(t *testing.T) { testBadReceive(t, newHome(t), newHome(t)) }

func TestSendRefused(t *testing.T) {
	h, ctx := newHome(t), t.Context()
	h.newChain()
	for from, kind := range map[string]error{"origin": errdefs.ErrFailedPrecondition, "web": errdefs.ErrInvalidArgument, "none": errdefs.ErrNotFound} {
		var out bytes.Buffer
		_, err := h.Send(ctx, &out, "web", live.SendOptions{From: from})
		require.ErrorIs(t, err, kind, from)
		assert.Zero(t, out.Len())
	}
	_, err := h.Send(ctx, io.Discard, "none", live.SendOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	broken := errors.New("no reader")
	_, err = h.Send(ctx, writerFunc(func([]byte) (int, error) { return 0, broken }), "web", live.SendOptions{})
	require.ErrorIs(t, err, broken)
	h.edit("web", func(dir string) {
		require.NoError(t, exec.Command("btrfs", "subvolume", "create", filepath.Join(dir, "nested")).Run())
	})
	_, err = h.Send(ctx, io.Discard, "web", live.SendOptions{})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented, "a subvolume is nested in it")
}

// nesting is a Backend of btrfs in which a subvolume is made just before a view is taken.
type nesting struct {
	cowcommon.Backend
	dir string
}

func (n nesting) Unwrap() cowcommon.Backend { return n.Backend }

func (n nesting) View(ctx context.Context, name string) (cowcommon.View, error) {
	if err := exec.Command("btrfs", "subvolume", "create", filepath.Join(n.dir, "nested")).Run(); err != nil {
		return nil, err
	}
	return n.Backend.View(ctx, name)
}

// TestSendNestedMeanwhile: a layer is checked when its view has been taken.
func TestSendNestedMeanwhile(t *testing.T) {
	h := newHome(t)
	h.create("web")
	h.edit("web", func(dir string) {
		_, err := h.over(nesting{h.backend, dir}).Send(t.Context(), io.Discard, "web", live.SendOptions{})
		require.ErrorIs(t, err, errdefs.ErrNotImplemented)
	})
	entries, err := os.ReadDir(filepath.Join(filepath.Dir(h.records), "home", "views"))
	require.NoError(t, err)
	assert.Empty(t, entries)
}

// descended is a Backend in which layer n was made from layer n-1.
type descended struct{ cowcommon.Backend }

func (d descended) Unwrap() cowcommon.Backend { return d.Backend }

func (d descended) Stat(_ context.Context, name string) (cowcommon.Volume, error) {
	n, err := strconv.Atoi(name)
	v := cowcommon.Volume{Name: name, Sealed: true}
	if n > 1 {
		v.Parent = strconv.Itoa(n - 1)
	}
	return v, err
}

// TestSendTooMany: a chain that no stream can hold is refused before anything is written.
func TestSendTooMany(t *testing.T) {
	h := newHome(t)
	h = h.over(descended{h.backend})
	_, err := h.Send(t.Context(), io.Discard, strconv.Itoa(layerstream.MaxLayers), live.SendOptions{WithParents: true})
	require.ErrorIs(t, err, errdefs.ErrNotFound, "there is none to be opened")
	_, err = h.Send(t.Context(), io.Discard, strconv.Itoa(layerstream.MaxLayers+1), live.SendOptions{WithParents: true})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "more than 1000 layers")
}

// testSendFromMoment: a stream with parents begins after a snapshot only if the layer was made from that.
func testSendFromMoment(t *testing.T, from, to home) {
	ctx := t.Context()
	from.create("ground")
	require.NoError(t, from.backend.Clone(ctx, "web", "ground", cowcommon.VolumeOptions{}))
	m, err := from.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	require.NoError(t, from.backend.Clone(ctx, "clone", m.Volume, cowcommon.VolumeOptions{}))
	require.NoError(t, from.backend.Clone(ctx, "top", "clone", cowcommon.VolumeOptions{}))
	from.put("top", "file", "1")
	var out bytes.Buffer
	_, err = from.Send(ctx, &out, "web", live.SendOptions{From: m.Volume, WithParents: true})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.ErrorContains(t, err, "not a layer that web was made from")
	assert.Zero(t, out.Len())

	sent, err := from.Send(ctx, &out, "top", live.SendOptions{From: m.Volume, WithParents: true})
	require.NoError(t, err)
	require.Len(t, sent, 2)
	assert.Equal(t, []string{"web@one", "clone"}, []string{sent[0].Parent, sent[1].Parent})
	_, err = to.receive(from.send(m.Volume, live.SendOptions{}), live.ReceiveOptions{Name: "web-one"})
	require.NoError(t, err)
	_, err = to.receive(out.Bytes(), live.ReceiveOptions{Parent: "web-one"})
	require.NoError(t, err)
	to.assertSame("top", from, "top")
}

func TestSendFromMoment(t *testing.T) { testSendFromMoment(t, newHome(t), newHome(t)) }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestSnapshotIncrement: the changes between two snapshots are sent, at the cost of the changes.
func TestSnapshotIncrement(t *testing.T) {
	from, to, ctx := newHome(t), newHome(t), t.Context()
	from.create("web")
	from.edit("web", func(dir string) {
		for i := range 1000 {
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/file-%d", dir, i), []byte("content"), 0o600))
		}
	})
	one, err := from.Snapshot(ctx, "web", "one", live.SnapshotOptions{})
	require.NoError(t, err)
	_, err = to.receive(from.send(one.Volume, live.SendOptions{}), live.ReceiveOptions{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "web@one is no name of a layer")
	got, err := to.receive(from.send(one.Volume, live.SendOptions{}), live.ReceiveOptions{Name: "web-one"})
	require.NoError(t, err)
	assert.Equal(t, "web@one", got[0].Header.Name)

	for i := range 3 {
		from.put("web", fmt.Sprintf("file-%d", i*300), strings.Repeat("changed", 100))
	}
	_, err = from.Snapshot(ctx, "web", "two", live.SnapshotOptions{})
	require.NoError(t, err)
	increment := from.send(from.volume("web@two"), live.SendOptions{From: one.Volume})
	bare := len(from.bare(from.volume("web@two"), one.Volume))
	t.Logf("%d bytes, and the bare stream has %d", len(increment), bare)
	assert.LessOrEqual(t, len(increment), bare)
	_, err = to.receive(increment, live.ReceiveOptions{Name: "web-two"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = to.receive(increment, live.ReceiveOptions{Name: "web-two", Parent: "web-one"})
	require.NoError(t, err)
	to.assertSame("web-two", from, "web@two")
	layers, moments := to.layers()
	assert.Equal(t, []string{"web-one", "web-two"}, layers)
	assert.Zero(t, moments)
}

// bare is the native stream of a volume.
func (h home) bare(volume, base string) []byte {
	h.t.Helper()
	ctx := h.t.Context()
	top, err := h.backend.View(ctx, volume)
	require.NoError(h.t, err)
	var below cowcommon.View
	if base != "" {
		below, err = h.backend.View(ctx, base)
		require.NoError(h.t, err)
		defer func() { assert.NoError(h.t, below.Close()) }()
	}
	var out bytes.Buffer
	require.NoError(h.t, cowcommon.Send(ctx, h.backend, &out, below, top))
	require.NoError(h.t, top.Close())
	return out.Bytes()
}

func testNativeStream(t *testing.T, from, to home) {
	from.newChain()
	base, middle := from.bare("ground", ""), from.bare("middle", "ground")
	_, err := to.receive(base, live.ReceiveOptions{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "it has no name")
	_, err = to.receive(base[:len(base)-5], live.ReceiveOptions{Name: "ground"})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "cut off")
	for _, n := range []int{len(base) / 2, len(base) / 3} {
		damaged := bytes.Clone(base)
		damaged[n] ^= 1
		_, err = to.receive(damaged, live.ReceiveOptions{Name: "ground"})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, n)
	}
	_, err = to.receive(middle, live.ReceiveOptions{Name: "middle"})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "it builds on another")
	_, err = to.receive(slices.Concat(base, middle), live.ReceiveOptions{Name: "ground"})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "more than one")
	broken := errors.New("the network is down")
	_, err = to.Receive(t.Context(), io.MultiReader(bytes.NewReader(base), iotest.ErrReader(broken)), live.ReceiveOptions{Name: "ground"})
	require.ErrorIs(t, err, broken)
	layers, _ := to.layers()
	assert.Empty(t, layers)
	got, err := to.receive(base, live.ReceiveOptions{Name: "ground"})
	require.NoError(t, err)
	assert.GreaterOrEqual(t, got[0].Bytes, int64(len(base)))
	_, err = to.receive(middle, live.ReceiveOptions{Name: "middle", Parent: "ground"})
	require.NoError(t, err)
	to.assertSame("middle", from, "middle")

	// A layer that was received so is a parent as any other.
	_, err = to.receive(base, live.ReceiveOptions{Name: "x", Parent: "ground"})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "it is a full one")
	got, err = to.receive(from.send("web", live.SendOptions{WithParents: true}), live.ReceiveOptions{})
	require.NoError(t, err)
	assert.True(t, got[0].Skipped && got[1].Skipped)
	to.assertSame("web", from, "web")
	other := []byte("btrfs-stream\x00\x01\x00\x00\x00")
	if bytes.HasPrefix(base, other[:13]) {
		other = append(make([]byte, 8), 0xac, 0xcb, 0xba, 0xf5, 0x02, 0, 0, 0)
	}
	_, err = to.receive(other, live.ReceiveOptions{Name: "x"})
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
}

func TestNativeStream(t *testing.T) { testNativeStream(t, newHome(t), newHome(t)) }

// testEarlyEnd: a layer whose native stream ends before its frames do gets no name, since its digest is not known.
func testEarlyEnd(t *testing.T, from, to home) {
	kind, err := cowcommon.StreamKind(to.backend)
	require.NoError(t, err)
	from.create("web")
	from.put("web", "file", "1")
	native := from.bare("web", "")
	var out bytes.Buffer
	_, err = layerstream.NewWriter(&out).Layer(layerstream.Header{Kind: kind, Name: "web", ID: []byte("id")}, func(w io.Writer) error {
		_, err := w.Write(append(native, make([]byte, 1<<20)...))
		return err
	})
	require.NoError(t, err)
	named := false
	_, err = to.receive(out.Bytes(), live.ReceiveOptions{Progress: func(string) (func(int64), func(error)) {
		return func(int64) {}, func(error) {
			layers, _ := to.layers()
			named = named || len(layers) > 0
		}
	}})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	assert.False(t, named)
	layers, _ := to.layers()
	assert.Empty(t, layers)
}

func TestEarlyEnd(t *testing.T) { testEarlyEnd(t, newHome(t), newHome(t)) }

// TestReceivedLimit: the limit of a layer comes along if that is wanted.
func TestReceivedLimit(t *testing.T) {
	from, to, ctx := newHome(t), newHome(t), t.Context()
	limit := quota.Limit{Bytes: 1 << 30}
	require.NoError(t, from.backend.Create(ctx, "web", cowcommon.VolumeOptions{Limit: limit}))
	stream := from.send("web", live.SendOptions{})
	for name, want := range map[string]quota.Limit{"without": {}, "with": limit} {
		got, err := to.receive(stream, live.ReceiveOptions{Name: name, Limit: name == "with"})
		require.NoError(t, err)
		assert.EqualValues(t, 1<<30, got[0].Header.Limit.Bytes)
		v, err := to.backend.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, want, v.Limit)
	}
}

// TestReceiveKeepsParents: a receive that fails removes no parents. Neither those that it has made, on which others may build by
// now, nor others of the same name.
func TestReceiveKeepsParents(t *testing.T) {
	from, to, ctx := newHome(t), newHome(t), t.Context()
	from.newChain()
	chain := from.send("web", live.SendOptions{WithParents: true})
	broken := errors.New("the network is down")
	_, err := to.Receive(ctx, io.MultiReader(bytes.NewReader(chain[:len(chain)-1]), readerFunc(func([]byte) (int, error) {
		got, err := to.receive(chain, live.ReceiveOptions{Name: "other"})
		require.NoError(t, err)
		assert.True(t, got[0].Skipped)
		require.NoError(t, to.backend.Remove(ctx, "other"))
		require.NoError(t, to.backend.Remove(ctx, "ground"))
		to.create("ground")
		return 0, broken
	})), live.ReceiveOptions{})
	require.ErrorIs(t, err, broken)
	layers, _ := to.layers()
	assert.Equal(t, []string{"ground", "middle"}, layers)
	to.assertSame("middle", from, "middle")
}

// limitless is a Backend that cannot set a limit.
type limitless struct {
	cowcommon.Backend
	cowcommon.Limiter
	setLimit func() error
}

func (l limitless) Unwrap() cowcommon.Backend { return l.Backend }

func (l limitless) SetLimit(context.Context, string, quota.Limit) error { return l.setLimit() }

// TestReceivedLimitFails: the layer that cannot get its limit is removed, and no other of its name.
func TestReceivedLimitFails(t *testing.T) {
	from, to, ctx := newHome(t), newHome(t), t.Context()
	require.NoError(t, from.backend.Create(ctx, "web", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 1 << 30}}))
	stream := from.send("web", live.SendOptions{})
	broken := errors.New("no quotas")
	for name, do := range map[string]func(){"alone": func() {}, "another": func() {
		require.NoError(t, to.backend.Remove(ctx, "another"))
		to.create("another")
	}} {
		to := to.over(limitless{Backend: to.backend, setLimit: func() error { do(); return broken }})
		_, err := to.receive(stream, live.ReceiveOptions{Name: name, Limit: true})
		require.ErrorIs(t, err, broken, name)
	}
	layers, _ := to.layers()
	assert.Equal(t, []string{"another"}, layers)
}

// TestReceiveOnFull: on a full filesystem nothing but whole parents is left, and the error says so.
func TestReceiveOnFull(t *testing.T) {
	from, to := newHome(t), newHome(t)
	from.newChain()
	from.edit("web", func(dir string) {
		data := make([]byte, 8<<20)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "large"), data, 0o600))
	})
	chain := from.send("web", live.SendOptions{WithParents: true})
	mnt := filepath.Dir(to.records)
	testfs.Fill(t, mnt, testfs.Data, 100)
	_, err := to.receive(chain, live.ReceiveOptions{})
	require.ErrorIs(t, err, unix.ENOSPC)
	layers, _ := to.layers()
	assert.Empty(t, layers)
	entries, err := os.ReadDir(filepath.Join(mnt, "home", "staging"))
	require.NoError(t, err)
	assert.Empty(t, entries)
}
