package migrate

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// The fakes are here for one purpose: to be killed before and after each step, and to fail at each. Real sources and
// targets are tested in their packages.

// killed is panicked with where a process would end.
type killed struct{ point string }

// world survives a kill: the target's disk, and the faults to come.
type world struct {
	target map[string]bool // things of the target
	log    []string        // steps that changed something
	points int             // passed so far
	killAt int             // the point to be killed at; 0: none
	// killPoint is the name of the point to be killed at; "": none.
	killPoint string
	fail      map[string]error
	busy      error // of the source
	gone      bool  // the source was removed
	trusts    bool
	layers    string            // the directory of the source's layers
	at        map[string]func() // called at a point
}

func newWorld(t *testing.T) *world {
	w := &world{target: make(map[string]bool), fail: make(map[string]error), layers: t.TempDir(), at: make(map[string]func())}
	for _, layer := range inventory().Layers {
		require.NoError(t, os.MkdirAll(filepath.Join(w.layers, layer.ID, "etc/deep"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(w.layers, layer.ID, "etc/deep/file"), []byte("old"), 0o600))
	}
	return w
}

// engineWrites is an engine that works on a layer of the source.
func (w *world) engineWrites(t *testing.T, layer string) {
	time.Sleep(20 * time.Millisecond) // the kernel's clock of files has ticks
	path := filepath.Join(w.layers, layer, "etc/deep/file")
	require.NoError(t, os.WriteFile(path, []byte("new"), 0o600))
	require.NoError(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
}

// point is a place where the process may be killed.
func (w *world) point(name string) {
	if do := w.at[name]; do != nil {
		do()
	}
	w.points++
	if w.points == w.killAt || name == w.killPoint && name != "" {
		panic(killed{name})
	}
}

type fakeSource struct {
	w   *world
	inv *Inventory
}

func (s *fakeSource) Inventory(context.Context) (*Inventory, error) { return s.inv, nil }

func (s *fakeSource) Open(_ context.Context, layer string) (*Content, error) {
	if err := s.w.fail["open "+layer]; err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Join(s.w.layers, layer))
	return &Content{Dir: dir, Form: Whole}, err
}

func (s *fakeSource) Parts(context.Context, string) (io.ReadCloser, error) {
	return nil, fault.New(errdefs.ErrNotFound, "parts")
}

func (s *fakeSource) InUse(context.Context) error { return s.w.busy }

func (s *fakeSource) Remove(context.Context) error {
	s.w.point("before removing the source")
	s.w.gone = true
	s.w.point("after removing the source")
	return nil
}

func (s *fakeSource) Close() error { return nil }

type fakeTarget struct{ w *world }

func (t *fakeTarget) Check(context.Context, Source, *Inventory) error { return t.w.fail["check"] }

func (t *fakeTarget) How(context.Context, *Layer, *Content, Coming) (How, int64, error) {
	return Copied, 120 << 20, nil
}

func (t *fakeTarget) BlobSize(_ context.Context, layer *Layer) (int64, error) {
	return max(layer.Size, 0), t.w.fail["blob size"]
}

func itemName(item Item) string { k := item.key(); return k.kind + " " + k.id }

func (t *fakeTarget) Has(_ context.Context, item Item) (bool, error) {
	return t.w.target[itemName(item)], t.w.fail["has "+itemName(item)]
}

func (t *fakeTarget) make(item Item, needs ...string) error {
	name := itemName(item)
	if err := t.w.fail["make "+name]; err != nil {
		return err
	}
	for _, need := range needs {
		if !t.w.target[need] {
			return errors.New("made before " + need)
		}
	}
	t.w.point("before make " + name)
	t.w.target[name] = true
	t.w.log = append(t.w.log, "make "+name)
	t.w.point("after make " + name)
	return nil
}

func (t *fakeTarget) MakeLayer(_ context.Context, layer *Layer, _ *Content, _ io.Reader) error {
	if layer.Parent == "" {
		return t.make(Item{Layer: layer})
	}
	return t.make(Item{Layer: layer}, "layer "+layer.Parent)
}

func (t *fakeTarget) MakeImage(_ context.Context, image *Image) error {
	var needs []string
	for _, layer := range image.Layers {
		needs = append(needs, "layer "+layer)
	}
	return t.make(Item{Image: image}, needs...)
}

func (t *fakeTarget) MakeContainer(_ context.Context, c *Container) error {
	return t.make(Item{Container: c}, "layer "+c.Layer, "image "+c.Image.String())
}

func (t *fakeTarget) Commit(context.Context) error {
	if err := t.w.fail["commit"]; err != nil {
		return err
	}
	t.w.point("before commit")
	t.w.target["committed"] = true
	t.w.point("after commit")
	return nil
}

func (t *fakeTarget) Verify(_ context.Context, item Item, _ Source) error {
	t.w.point("verify")
	return t.w.fail["verify "+itemName(item)]
}

func (t *fakeTarget) Undo(context.Context) error {
	t.w.point("before undo")
	delete(t.w.target, "committed")
	t.w.point("after undo")
	return nil
}

func (t *fakeTarget) Remove(_ context.Context, item Item) error {
	name := itemName(item)
	if err := t.w.fail["remove "+name]; err != nil {
		return err
	}
	t.w.point("before remove " + name)
	delete(t.w.target, name)
	t.w.log = append(t.w.log, "remove "+name)
	t.w.point("after remove " + name)
	return nil
}

func (t *fakeTarget) Settle(_ context.Context, layer *Layer) error {
	name := itemName(Item{Layer: layer})
	if err := t.w.fail["settle "+name]; err != nil {
		return err
	}
	t.w.point("before settle " + name)
	t.w.log = append(t.w.log, "settle "+name)
	t.w.point("after settle " + name)
	return nil
}

func (t *fakeTarget) CheckSettle(_ context.Context, layers ...*Layer) error {
	if len(layers) != 1 {
		return t.w.fail["check settle all"]
	}
	return t.w.fail["check settle "+itemName(Item{Layer: layers[0]})]
}

func (t *fakeTarget) Close() error { return nil }

// id makes the digest of an image.
func id(name string) digest.Digest { return digest.FromString(name) }

// inventory is of two images that share their base, and a container of one of them.
func inventory() *Inventory {
	return &Inventory{
		Program: "docker", Driver: "fake",
		Layers: []Layer{
			{ID: "base", Kind: ImageLayer, Size: 10}, {ID: "one", Parent: "base", Kind: ImageLayer, Size: 10},
			{ID: "two", Parent: "base", Kind: ImageLayer, Size: 10}, {ID: "web-init", Parent: "one", Kind: InitLayer, Size: -1},
			{ID: "web", Parent: "web-init", Kind: ContainerLayer, Size: -1},
		},
		Images: []Image{
			{ID: id("one"), Config: []byte("{}"), Names: []string{"docker.io/library/one:1"}, Layers: []string{"base", "one"}},
			{ID: id("two"), Config: []byte("{}"), Layers: []string{"base", "two"}},
		},
		Containers: []Container{{ID: "web", Name: "web", Image: id("one"), Layer: "web"}},
	}
}

// attempt is a process that works on a migration.
type attempt struct {
	t     *testing.T
	w     *world
	inv   *Inventory
	state string
}

func newAttempt(t *testing.T) *attempt {
	return &attempt{t: t, w: newWorld(t), inv: inventory(), state: t.TempDir() + "/state"}
}

func (a *attempt) migration() *Migration {
	m := New(&fakeSource{a.w, a.inv}, &fakeTarget{a.w}, Options{Source: "/old", Target: "store /new", State: a.state, Trust: a.w.trusts})
	m.fault = a.w.point
	return m
}

// do calls one function of a migration, and returns true if it was killed.
func (a *attempt) do(call func(*Migration) error) (wasKilled bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			wasKilled = true
		}
	}()
	return false, call(a.migration())
}

func finish(m *Migration, partial bool) error {
	_, err := m.Finish(context.Background(), partial)
	return err
}

func (a *attempt) run() error {
	_, err := a.migration().Run(a.t.Context(), nil)
	return err
}

// things lists the target's things.
func (a *attempt) things() []string {
	var list []string
	for name := range a.w.target {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// whole is everything that a complete run leaves.
func whole(t *testing.T) []string {
	a := newAttempt(t)
	require.NoError(t, a.run())
	return a.things()
}

// leftInState lists the files of the state that are not expected after the end.
func (a *attempt) leftInState() []string {
	entries, err := os.ReadDir(a.state)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(a.t, err)
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "."+journalFile) { // of a header that was cut off
			names = append(names, e.Name())
		}
	}
	return names
}
