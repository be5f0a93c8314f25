package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// modelClients is how many goroutines work at once on a model's volumes.
const modelClients = 8

// TestModelOfStates has clients interleave all operations of a Backend, and holds the outcomes to a model of the states
// that docs/architecture.md draws. COWSHED_TEST_SEED repeats the choices of a run, though not their interleaving.
func TestModelOfStates(t *testing.T) {
	t.Parallel()
	if testfs.Long() {
		inEachOwn(t, testModelOfStates)
	} else {
		testModelOfStates(t, systems()[0])
	}
}

func testModelOfStates(t *testing.T, s system) {
	steps, round := 100_000, 125 // a round is how many steps each takes between comparisons
	if s.slow() {
		steps, round = 600, 25
	}
	seed := uint64(time.Now().UnixNano())
	if given := os.Getenv("COWSHED_TEST_SEED"); given != "" {
		_, err := fmt.Sscan(given, &seed)
		require.NoError(t, err)
	}
	t.Logf("COWSHED_TEST_SEED=%d, %d steps", seed, steps)

	root := s.root(t)
	d := s.open(t, root, user.IdentityMapping{})
	m := &model{t: t, system: s, backend: d.Backend(), volumes: map[string]*modelVolume{}, done: map[string]int{}}
	require.NoError(t, m.backend.Create(t.Context(), anchor, cowcommon.VolumeOptions{}))
	clients := make([]*modelClient, modelClients)
	for i := range clients {
		clients[i] = &modelClient{model: m, id: i, rand: rand.New(rand.NewPCG(seed, uint64(i)))}
	}
	for taken := 0; taken < steps && !t.Failed(); taken += modelClients * round {
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() {
				for range round {
					c.step()
				}
			})
		}
		wg.Wait()
		m.compare()
	}
	for _, c := range clients {
		c.releaseAll()
	}
	m.compare()
	t.Logf("what succeeded: %v", m.done)
}

// anchor is a volume that stays, so that its name is taken.
const anchor = "anchor"

// model is the state that must follow from the backend's answers. No name is used twice.
type model struct {
	t       *testing.T
	system  system
	backend cowcommon.Backend

	mu      sync.Mutex
	next    int
	volumes map[string]*modelVolume // those that are acknowledged to exist, by name
	done    map[string]int          // how often each operation succeeded
}

// modelVolume is one volume under one name.
type modelVolume struct {
	name    string
	going   int  // calls in flight that may take the name away
	taken   bool // one of them has
	held    int  // mounts that have begun and whose end has not
	ended   int  // mounts whose end has begun
	begun   int  // mounts whose beginning has
	active  int  // mounts that have begun or are beginning, and have not ended
	mayBe   bool // sealed: something was acknowledged that seals it, unless it was in use then
	mustBe  bool // sealed: and it was not in use
	cloneOf *modelVolume
	became  *modelVolume // itself under the name that it was given
	asItWas bool         // it was made while cloneOf may have been in use, which need not be sealed
}

// failf reports a fault. Tests that use the model cannot stop in their goroutines.
func (m *model) failf(format string, args ...any) { m.t.Errorf("model: "+format, args...) }

func (m *model) newName() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	return fmt.Sprintf("v%d", m.next)
}

func (m *model) count(operation string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done[operation]++
}

func (m *model) size() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.volumes)
}

// use is a call's view of a volume's uses.
type use struct{ held, ended, begun, active int }

// lasted reports whether a mount that was there at the beginning was there all the time.
func (u use) lasted(v *modelVolume) bool { return u.held > v.ended-u.ended }

// any reports whether there was a mount at any time.
func (u use) any(v *modelVolume) bool { return u.active > 0 || v.begun > u.begun }

// now is the volume under the name that it has now.
func (v *modelVolume) now() *modelVolume {
	for v.became != nil {
		v = v.became
	}
	return v
}

func (v *modelVolume) use() use { return use{v.held, v.ended, v.begun, v.active} }

// compare asserts, while no call is in flight, that the backend has the state of the model.
func (m *model) compare() {
	m.t.Helper()
	found := map[string]cowcommon.Volume{}
	for v, err := range m.backend.Volumes(m.t.Context()) {
		if err != nil {
			m.failf("list: %v", err)
			return
		}
		found[v.Name] = v
	}
	delete(found, anchor)
	for name := range found {
		if m.volumes[name] == nil {
			m.failf("%s is there, and nobody was told so", name)
		}
	}
	for name, v := range m.volumes {
		is, ok := found[name]
		switch {
		case !ok:
			m.failf("%s was acknowledged and is gone", name)
		case v.mustBe && !is.Sealed:
			m.failf("%s is not sealed, and that was acknowledged", name)
		case is.Sealed && !v.mayBe:
			m.failf("%s is sealed by something that failed", name)
		}
		// Once it is sealed, it stays that.
		v.mustBe = v.mustBe || is.Sealed
		if is.Parent == "" {
			continue
		}
		if v.cloneOf == nil || v.cloneOf.now().name != is.Parent {
			m.failf("%s has the parent %s, of which it is not made", name, is.Parent)
		} else if !v.asItWas && !found[is.Parent].Sealed {
			m.failf("%s has the child %s and is not sealed", is.Parent, name)
		}
	}
}

// modelClient takes random steps, one at a time.
type modelClient struct {
	*model
	id    int
	rand  *rand.Rand
	holds []*modelHold
}

// modelHold is a mount, a foreign mount or a view that a client has.
type modelHold struct {
	volume *modelVolume
	check  func()
	end    func() error
}

// pick chooses a volume that is there, nil if there is none.
func (c *modelClient) pick() *modelVolume {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := slices.Sorted(maps.Keys(c.volumes))
	if len(names) == 0 {
		return nil
	}
	return c.volumes[names[c.rand.IntN(len(names))]]
}

// step runs one operation.
func (c *modelClient) step() {
	const few, many = 8, 24
	if n := c.size(); n < few {
		c.create()
		return
	} else if n > many && c.rand.IntN(4) == 0 {
		c.remove()
		return
	}
	total := 0
	for _, o := range modelOperations {
		total += o.weight
	}
	for at := c.rand.IntN(total); ; {
		for _, o := range modelOperations {
			if at -= o.weight; at < 0 {
				o.run(c)
				return
			}
		}
	}
}

// modelOperations are the possible operations of a client, with their frequency. Operations that the filesystem has
// to commit are rare: a step that only looks is worth as much, if it meets a change.
var modelOperations = []struct {
	weight int
	run    func(c *modelClient)
}{
	{300, (*modelClient).check},
	{200, (*modelClient).stat},
	{150, (*modelClient).mount},
	{160, (*modelClient).release},
	{80, (*modelClient).usage},
	{8, (*modelClient).list},
	{6, (*modelClient).foreignMount},
	{12, (*modelClient).view},
	{3, (*modelClient).create},
	{12, (*modelClient).clone},
	{12, (*modelClient).cloneTaken},
	{5, (*modelClient).cloneContested},
	{4, (*modelClient).cloneCancelled},
	{4, (*modelClient).cloneLimited},
	{6, (*modelClient).seal},
	{10, (*modelClient).remove},
	{4, (*modelClient).removeCancelled},
	{6, (*modelClient).rename},
	{3, (*modelClient).setLimit},
}

// expect asserts that an operation on v succeeded, or failed since v went away meanwhile or for one of the reasons.
func (c *modelClient) expect(what string, v *modelVolume, err error, reasons ...error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.done[what]++
		return true
	}
	if errdefs.IsNotFound(err) && (v.going > 0 || v.taken) {
		return false
	}
	for _, reason := range reasons {
		if errors.Is(err, reason) {
			return false
		}
	}
	c.failf("%s of %s: %v", what, v.name, err)
	return false
}

func (c *modelClient) create() {
	name := c.newName()
	if err := c.backend.Create(c.t.Context(), name, cowcommon.VolumeOptions{}); err != nil {
		c.failf("create of %s: %v", name, err)
		return
	}
	c.add(&modelVolume{name: name})
	c.count("create")
}

// add has the model know a volume, if there is one.
func (c *modelClient) add(v *modelVolume) {
	if v == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.volumes[v.name] = v
}

// cloneAs clones a volume and returns the clone, nil if there is none, which the caller adds to the model.
func (c *modelClient) cloneAs(what string, ctx context.Context, name string, opts cowcommon.VolumeOptions, reasons ...error) *modelVolume {
	source := c.pick()
	if source == nil {
		return nil
	}
	c.mu.Lock()
	from, use := source.name, source.use()
	c.mu.Unlock()
	err := c.backend.Clone(ctx, name, from, opts)
	c.mu.Lock()
	inUse := use.any(source)
	var clone *modelVolume
	if err == nil {
		now := source.now()
		now.mayBe = true
		now.mustBe = now.mustBe || !inUse
		clone = &modelVolume{name: name, cloneOf: source, asItWas: !now.mustBe}
	}
	c.mu.Unlock()
	c.expect(what, source, err, reasons...)
	return clone
}

// cloneContested makes several clones of one name at once. All but one fail, when they have sealed their sources.
func (c *modelClient) cloneContested() {
	name := c.newName()
	var wg sync.WaitGroup
	var clones [3]*modelVolume
	for i := range clones {
		wg.Go(func() {
			clones[i] = c.cloneAs("contested clone", c.t.Context(), name, cowcommon.VolumeOptions{}, errdefs.ErrAlreadyExists)
		})
	}
	wg.Wait()
	made := slices.DeleteFunc(clones[:], func(v *modelVolume) bool { return v == nil })
	if len(made) > 1 {
		c.failf("%d clones got the name %s", len(made), name)
	}
	for _, v := range made {
		c.add(v)
	}
}

func (c *modelClient) clone() {
	c.add(c.cloneAs("clone", c.t.Context(), c.newName(), cowcommon.VolumeOptions{}))
}

// cloneTaken fails, and must leave everything as it is.
func (c *modelClient) cloneTaken() {
	source := c.pick()
	if source == nil {
		return
	}
	c.mu.Lock()
	from := source.name
	c.mu.Unlock()
	err := c.backend.Clone(c.t.Context(), anchor, from, cowcommon.VolumeOptions{})
	if !errdefs.IsAlreadyExists(err) {
		c.failf("clone of %s to a name that is taken: %v", from, err)
	}
	c.count("clone to a taken name")
}

// cloneCancelled may succeed or fail, and must report the right outcome.
func (c *modelClient) cloneCancelled() {
	ctx, cancel := c.cancelled()
	defer cancel()
	c.add(c.cloneAs("cancelled clone", ctx, c.newName(), cowcommon.VolumeOptions{}, context.Canceled))
}

// cancelled returns a context that ends before long.
func (c *modelClient) cancelled() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(c.t.Context())
	longest := 2 * time.Millisecond
	if c.system.driver == "zfs" {
		longest = 100 * time.Millisecond
	}
	time.AfterFunc(time.Duration(c.rand.Int64N(int64(longest))), cancel)
	return ctx, cancel
}

// cloneLimited asks for a limit that cannot be: simple quotas do not count the image. ZFS can count it, and refuses a
// limit that the image exceeds already.
func (c *modelClient) cloneLimited() {
	limit := quota.Limit{Bytes: 1, Scope: quota.ScopeTotal}
	c.add(c.cloneAs("clone with a limit", c.t.Context(), c.newName(), cowcommon.VolumeOptions{Limit: limit},
		errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument))
}

func (c *modelClient) seal() {
	v := c.pick()
	if v == nil {
		return
	}
	c.mu.Lock()
	name, use, sealed := v.name, v.use(), v.mayBe
	c.mu.Unlock()
	err := cowcommon.Seal(c.t.Context(), c.backend, name)
	c.mu.Lock()
	if err == nil {
		if use.lasted(v) && !sealed && !v.mayBe {
			c.failf("%s was sealed while it was mounted", name)
		}
		now := v.now()
		now.mayBe, now.mustBe = true, true
	}
	inUse := use.any(v)
	c.mu.Unlock()
	if inUse {
		c.expect("seal", v, err, errdefs.ErrFailedPrecondition)
	} else {
		c.expect("seal", v, err)
	}
}

func (c *modelClient) remove() { c.takeAway("remove", c.t.Context(), "") }

func (c *modelClient) removeCancelled() {
	ctx, cancel := c.cancelled()
	defer cancel()
	c.takeAway("cancelled remove", ctx, "")
}

func (c *modelClient) rename() { c.takeAway("rename", c.t.Context(), c.newName()) }

// takeAway removes a volume, or renames it where a name is given.
func (c *modelClient) takeAway(what string, ctx context.Context, to string) {
	v := c.pick()
	if v == nil {
		return
	}
	c.mu.Lock()
	name, use := v.name, v.use()
	v.going++
	c.mu.Unlock()
	var err error
	if to == "" {
		err = c.backend.Remove(ctx, name)
	} else {
		err = cowcommon.Rename(ctx, c.backend, name, to)
	}
	c.mu.Lock()
	v.going--
	if err == nil && c.volumes[name] == v {
		if use.lasted(v) {
			c.failf("%s of %s succeeded while it was mounted", what, name)
		}
		delete(c.volumes, name)
		v.taken = true
	}
	if err == nil && to != "" {
		// The same volume has another name, under which nobody has looked for it yet.
		renamed := *v
		renamed.name, renamed.going, renamed.taken = to, 0, false
		renamed.held, renamed.ended, renamed.begun, renamed.active = 0, 0, 0, 0
		v.became, c.volumes[to] = &renamed, &renamed
	}
	c.mu.Unlock()
	c.expect(what, v, err, errdefs.ErrFailedPrecondition, context.Canceled)
}

func (c *modelClient) setLimit() {
	if v := c.pick(); v != nil {
		limit := quota.Limit{Bytes: uint64(c.rand.IntN(2)) << 30}
		c.expect("limit", v, cowcommon.SetLimit(c.t.Context(), c.backend, v.name, limit))
	}
}

func (c *modelClient) stat() {
	if v := c.pick(); v != nil {
		_, err := c.backend.Stat(c.t.Context(), v.name)
		c.expect("stat", v, err)
	}
}

func (c *modelClient) usage() {
	if v := c.pick(); v != nil {
		_, err := cowcommon.Usage(c.t.Context(), c.backend, v.name)
		c.expect("usage", v, err, errdefs.ErrNotImplemented)
	}
}

// list asserts that the list has the volumes that exist all the time.
func (c *modelClient) list() {
	c.mu.Lock()
	before := maps.Clone(c.volumes)
	maps.DeleteFunc(before, func(_ string, v *modelVolume) bool { return v.going > 0 })
	c.mu.Unlock()
	listed := map[string]bool{}
	for v, err := range c.backend.Volumes(c.t.Context()) {
		if err != nil {
			c.failf("list: %v", err)
			return
		}
		listed[v.Name] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done["list"]++
	for name, v := range before {
		if !listed[name] && v.going == 0 && !v.taken {
			c.failf("%s is missing in a list", name)
		}
	}
}

const holdsPerClient = 4

func (c *modelClient) mount() {
	if v := c.pick(); v != nil && len(c.holds) < holdsPerClient {
		if hold := c.mountVolume(v); hold != nil {
			c.holds = append(c.holds, hold)
		}
	}
}

// mountVolume mounts a volume; a writable volume stays writable until the end.
func (c *modelClient) mountVolume(v *modelVolume) *modelHold {
	c.mu.Lock()
	v.begun++
	v.active++
	c.mu.Unlock()
	dir, err := c.backend.Mount(c.t.Context(), v.name, "")
	if !c.expect("mount", v, err) {
		c.mu.Lock()
		defer c.mu.Unlock()
		v.active--
		return nil
	}
	c.mu.Lock()
	v.held++
	c.mu.Unlock()
	check := c.steady(v, dir)
	return &modelHold{volume: v, check: check, end: func() error {
		check()
		c.mu.Lock()
		v.held--
		v.ended++
		c.mu.Unlock()
		err := c.backend.Unmount(c.t.Context(), v.name)
		c.mu.Lock()
		defer c.mu.Unlock()
		v.active--
		return err
	}}
}

// steady returns a check that the tree of a mounted volume is as writable as it is at first.
func (c *modelClient) steady(v *modelVolume, dir string) (check func()) {
	file := filepath.Join(dir, fmt.Sprintf("client-%d", c.id))
	write := func() error { return os.WriteFile(file, []byte(v.name), 0o600) }
	first := write()
	if first != nil && !errors.Is(first, unix.EROFS) && !errors.Is(first, unix.EDQUOT) {
		c.failf("write to %s: %v", v.name, first)
	}
	return func() {
		if err := write(); errors.Is(err, unix.EROFS) != errors.Is(first, unix.EROFS) || errors.Is(err, unix.ENOENT) {
			c.failf("writing to the mounted %s gave %v, and before %v", v.name, err, first)
		}
	}
}

// foreignMount mounts a volume in a way that the backend has not been told of.
func (c *modelClient) foreignMount() {
	v := c.pick()
	if v == nil || len(c.holds) >= holdsPerClient || c.system.driver != "btrfs" {
		return
	}
	own := c.mountVolume(v)
	if own == nil {
		return
	}
	target := c.t.TempDir()
	dir, err := c.backend.Mount(c.t.Context(), v.name, "")
	if err == nil {
		err = errors.Join(unix.Mount(dir, target, "", unix.MS_BIND, ""), c.backend.Unmount(c.t.Context(), v.name))
	}
	if !c.expect("foreign mount", v, err) {
		c.holds = append(c.holds, own)
		return
	}
	c.mu.Lock()
	v.begun++
	v.active++
	v.held++
	c.mu.Unlock()
	if err := own.end(); err != nil {
		c.failf("unmount of %s: %v", v.name, err)
	}
	check := c.steady(v, target)
	c.holds = append(c.holds, &modelHold{volume: v, check: check, end: func() error {
		check()
		c.mu.Lock()
		v.held--
		v.ended++
		c.mu.Unlock()
		err := unix.Unmount(target, 0)
		c.mu.Lock()
		defer c.mu.Unlock()
		v.active--
		return err
	}})
}

// view opens a view, which shows the same until it is closed.
func (c *modelClient) view() {
	v := c.pick()
	if v == nil || len(c.holds) >= holdsPerClient {
		return
	}
	view, err := c.backend.View(c.t.Context(), v.name)
	if !c.expect("view", v, err) {
		return
	}
	look := func() string {
		entries, err := os.ReadDir(view.Dir())
		names := []string{fmt.Sprint(err)}
		for _, e := range entries {
			content, err := os.ReadFile(filepath.Join(view.Dir(), e.Name()))
			names = append(names, e.Name(), string(content), fmt.Sprint(err))
		}
		return strings.Join(names, " ")
	}
	first := look()
	check := func() {
		if is := look(); is != first {
			c.failf("a view of %s showed %q, and shows %q", v.name, first, is)
		}
	}
	c.holds = append(c.holds, &modelHold{volume: v, check: check, end: func() error {
		check()
		return view.Close()
	}})
}

// check looks at something that the client holds.
func (c *modelClient) check() {
	if len(c.holds) > 0 {
		c.holds[c.rand.IntN(len(c.holds))].check()
		c.count("check")
	}
}

// release ends something that the client holds.
func (c *modelClient) release() {
	if len(c.holds) == 0 {
		return
	}
	i := c.rand.IntN(len(c.holds))
	hold := c.holds[i]
	c.holds = slices.Delete(c.holds, i, i+1)
	if err := hold.end(); err != nil {
		c.failf("release of %s: %v", hold.volume.name, err)
	}
}

func (c *modelClient) releaseAll() {
	for len(c.holds) > 0 {
		c.release()
	}
}
