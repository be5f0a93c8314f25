package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// The environment of the process that is killed.
const (
	victimSystemEnv    = "COWSHED_VICTIM_SYSTEM"
	victimRootEnv      = "COWSHED_VICTIM_ROOT"
	victimOperationEnv = "COWSHED_VICTIM_OPERATION"
)

// operation is an operation during which a process is killed.
type operation struct {
	name string
	run  func(d *cowdriver.Driver) error
	// check asserts, after a restart, that the operation was done as a whole or not at all; as a whole if
	// acknowledged.
	check func(t *testing.T, d *cowdriver.Driver, acknowledged bool)
}

// half reports whether half as many kills are enough in a run that is not long: another operation has the same steps.
func (o operation) half() bool { return o.name == "fold" || o.name == "fold and unfold" }

// The layers that every operation starts from: base is sealed and holds content, child is a writable clone
// of it with a change, nested holds subvolumes where the filesystem has such.
var initialLayers = []string{"base", "child", "nested"}

const (
	limitBytes = 64 << 20
	fileSize   = 300 << 10
)

func operations(s system) []operation {
	sized := &graphdriver.CreateOpts{}
	if s.limits() {
		sized.StorageOpt = map[string]string{"size": "64M"}
	}
	whole := func(id string, size uint64) func(*testing.T, *cowdriver.Driver, bool) {
		return func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			v, err := d.Backend().Stat(t.Context(), id)
			if !acknowledged && errdefs.IsNotFound(err) {
				return
			}
			require.NoError(t, err)
			if s.limits() {
				assert.Equal(t, size, v.Limit.Bytes, "complete, so with its limit")
			}
		}
	}
	gone := func(id string) func(*testing.T, *cowdriver.Driver, bool) {
		return func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			if acknowledged {
				assert.False(t, d.Exists(id))
			}
			if d.Exists(id) {
				assertContent(t, d, id)
			}
			assert.NoError(t, d.Remove(id))
		}
	}
	operations := []operation{
		{"create", func(d *cowdriver.Driver) error { return d.Create("new", "", sized) }, whole("new", limitBytes)},
		{"clone", func(d *cowdriver.Driver) error { return d.CreateReadWrite("new", "base", sized) }, whole("new", limitBytes)},
		{"clone and seal", func(d *cowdriver.Driver) error { return d.CreateReadWrite("new", "child", nil) }, whole("new", 0)},
		{"remove", func(d *cowdriver.Driver) error { return d.Remove("child") }, gone("child")},
		{"remove parent", func(d *cowdriver.Driver) error {
			return errors.Join(d.Create("new", "child", nil), d.Remove("child"))
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			assert.False(t, acknowledged && d.Exists("child"))
			for _, id := range []string{"child", "new"} {
				if d.Exists(id) {
					assertContent(t, d, id)
				}
			}
			assert.True(t, d.Exists("child") || d.Exists("new"))
		}},
		{"remove nested", func(d *cowdriver.Driver) error { return d.Remove("nested") }, gone("nested")},
		{"rename", func(d *cowdriver.Driver) error {
			return cowcommon.Rename(context.Background(), d.Backend(), "child", "renamed")
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			assert.NotEqual(t, d.Exists("child"), d.Exists("renamed"), "either name")
			if acknowledged {
				assert.True(t, d.Exists("renamed"))
			}
		}},
		{"diff", func(d *cowdriver.Driver) error {
			diff, err := d.Diff("child", "base")
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, diff)
			return errors.Join(err, diff.Close())
		}, func(t *testing.T, d *cowdriver.Driver, _ bool) { assertContent(t, d, "child") }},
		{"diff path", func(d *cowdriver.Driver) error {
			_, release, err := d.DiffPath("child")
			if err != nil {
				return err
			}
			return release()
		}, func(t *testing.T, d *cowdriver.Driver, _ bool) { assertContent(t, d, "child") }},
		{"apply", func(d *cowdriver.Driver) error {
			diff, err := d.Diff("child", "base")
			if err != nil {
				return err
			}
			tar, err := io.ReadAll(diff)
			if err := errors.Join(err, diff.Close()); err != nil {
				return err
			}
			if err := d.Create("new", "base", nil); err != nil {
				return err
			}
			_, err = d.ApplyDiff("new", "base", bytes.NewReader(tar))
			return err
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			if acknowledged {
				assertContent(t, d, "new")
			}
			assert.NoError(t, d.Remove("new"), "removable even when part-filled")
		}},
	}
	if s.driver == "btrfs" {
		operations = append(operations, operation{"adopt", func(d *cowdriver.Driver) error {
			return adoptForeign(context.Background(), d, s)
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			whole("new", limitBytes)(t, d, acknowledged)
			if v, err := d.Backend().Stat(t.Context(), "new"); err == nil {
				assert.Equal(t, "base", v.Parent)
				assertContent(t, d, "new")
			}
		}})
	}
	if s.shared {
		operations = append(operations, sharedOperations(s)...)
	}
	if s.limits() {
		operations = append(operations, operation{"set limit", func(d *cowdriver.Driver) error {
			return d.SetLimit(context.Background(), "child", limitBytes)
		}, func(t *testing.T, d *cowdriver.Driver, acknowledged bool) {
			v, err := d.Backend().Stat(t.Context(), "child")
			require.NoError(t, err)
			if acknowledged {
				assert.EqualValues(t, limitBytes, v.Limit.Bytes)
			} else {
				assert.Contains(t, []uint64{0, limitBytes}, v.Limit.Bytes)
			}
		}})
	}
	return operations
}

// foreign is the name of a subvolume beside the root, a snapshot of base with the change of child.
const foreign = "foreign"

// makeForeign makes that subvolume, unless it is there.
func makeForeign(t *testing.T, d *cowdriver.Driver, root string) {
	t.Helper()
	dir, err := os.Open(filepath.Dir(root))
	require.NoError(t, err)
	defer dir.Close()
	base, err := os.Open(get(t, d, "base"))
	require.NoError(t, err)
	defer base.Close()
	require.NoError(t, d.Put("base"))
	err = btrfsctl.Snapshot(int(dir.Fd()), foreign, int(base.Fd()), false, nil)
	if errors.Is(err, fs.ErrExist) {
		return
	}
	require.NoError(t, err)
	change := bytes.Repeat([]byte("diff"), fileSize/4)
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(root), foreign, "change"), change, 0o600))
	testfs.Sync(t, dir.Name())
}

// adoptForeign makes a layer of the foreign subvolume, whose parent is base.
func adoptForeign(ctx context.Context, d *cowdriver.Driver, s system) error {
	opts := cowcommon.VolumeOptions{}
	if s.limits() {
		opts.Limit = quota.Limit{Bytes: limitBytes}
		if s.countsImage() {
			opts.Limit.Scope = quota.ScopeTotal
		}
	}
	base, err := d.Backend().Stat(ctx, "base")
	if err != nil {
		return err
	}
	root := strings.TrimSuffix(base.Details["Path"], "/btrfs/subvolumes/base")
	return cowcommon.Adopt(ctx, d.Backend(), "new", "base", filepath.Join(filepath.Dir(root), foreign), opts)
}

// TestVictim is not a test: it is the process that TestKilled kills.
func TestVictim(t *testing.T) {
	name := os.Getenv(victimOperationEnv)
	if name == "" {
		return
	}
	s := systemNamed(os.Getenv(victimSystemEnv))
	d, err := s.tryOpen(os.Getenv(victimRootEnv), user.IdentityMapping{})
	require.NoError(t, err)
	all := operations(s)
	markStep()
	err = all[slices.IndexFunc(all, func(o operation) bool { return o.name == name })].run(d)
	markStep()
	require.NoError(t, err)
	fmt.Println("acknowledged")
	require.NoError(t, d.Cleanup())
}

// TestKilled kills a process with SIGKILL before one system call after another of every operation. It opens the root
// again, and finds nothing half-made and nothing leaked.
func TestKilled(t *testing.T) {
	t.Parallel()
	inEachSystem(t, func(t *testing.T, s system) {
		for _, op := range operations(s) {
			if s.asAnother && op.name != "set limit" && !(testfs.Long() && slices.Contains([]string{"create", "clone"}, op.name)) {
				continue
			}
			t.Run(op.name, func(t *testing.T) { killAtEachStep(t, s, op) })
		}
	})
}

func killAtEachStep(t *testing.T, s system, op operation) {
	root := s.root(t)
	// Goroutines take turns at will, so that some runs take more steps than others: the fewest are those that
	// every run takes. The first run does not count, since the first limit turns quotas on.
	total, counts := math.MaxInt, 4
	if s.slow() || op.half() {
		counts = 3
	}
	for i := range counts {
		prepare(t, s, root)
		counted, _, err := killAt(victim(t, s, root, op), 0)
		require.NoError(t, err)
		require.Positive(t, counted)
		if i > 0 {
			total = min(total, counted)
		}
	}

	// All of them may take too long: every one at the ends, where volumes come and go, and a random choice of
	// the rest.
	most := 30
	if s.shared {
		most = 8
	}
	if op.half() {
		most = 4
	}
	if testfs.Long() {
		most = total
	}
	var at []int
	for i := range total {
		at = append(at, i+1)
	}
	if s.slow() {
		rand.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
		at = at[:min(2, len(at))]
	} else if total > most {
		middle := at[most/4 : total-most/4]
		rand.Shuffle(len(middle), func(i, j int) { middle[i], middle[j] = middle[j], middle[i] })
		at = slices.Concat(at[:most/4], middle[:most/2], at[total-most/4:])
	}
	kills := 0
	for _, step := range at {
		// Now and then a process is through before its time all the same: try again.
		for killed, tries := false, 0; !killed && tries < 8; tries++ {
			prepare(t, s, root)
			cmd := victim(t, s, root, op)
			var out bytes.Buffer
			cmd.Stdout = &out
			var err error
			_, killed, err = killAt(cmd, step)
			require.NoError(t, err)
			if killed {
				kills++
			}
			assertRecovers(t, s, root, op, strings.Contains(out.String(), "acknowledged"))
			if t.Failed() {
				t.Fatalf("killed at step %d of %d", step, total)
			}
		}
	}
	t.Logf("%d steps; killed at %d of %d", total, kills, len(at))
	// A run with fewer steps than were counted is through before the last of them, however often it is tried. With shared roots the
	// number depends on the notes that earlier runs have left.
	assert.GreaterOrEqual(t, 2*kills, len(at), "at least half are to be killed")
}

// victim is a process of this program that does op and nothing else.
func victim(t *testing.T, s system, root string, op operation) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$", "-test.count=1")
	cmd.Env = append(os.Environ(), victimSystemEnv+"="+s.name, victimRootEnv+"="+root, victimOperationEnv+"="+op.name)
	return cmd
}

// prepare makes the layers that every operation starts from, as far as they are not there.
func prepare(t *testing.T, s system, root string) {
	t.Helper()
	d, err := s.tryOpen(root, user.IdentityMapping{})
	require.NoError(t, err)
	for _, id := range slices.Backward(layerIDs(t, d)) { // a layer before one whose root it shares
		if id != "base" {
			require.NoError(t, d.Remove(id))
		}
	}
	if !d.Exists("base") {
		require.NoError(t, d.Create("base", "", nil))
		dir := get(t, d, "base")
		require.NoError(t, os.WriteFile(dir+"/file", bytes.Repeat([]byte("base"), fileSize/4), 0o644))
		if s.shared {
			require.NoError(t, writeTree(dir, manifoldBase))
		}
		require.NoError(t, d.Put("base"))
	}
	for _, id := range initialLayers[1:] {
		require.NoError(t, d.CreateReadWrite(id, "base", nil))
		dir := get(t, d, id)
		require.NoError(t, os.WriteFile(dir+"/change", bytes.Repeat([]byte("diff"), fileSize/4), 0o600))
		if nested := s.config().NestedVolume; nested != nil && id == "nested" {
			nested(t, dir+"/volume")
			nested(t, dir+"/volume/inner")
		}
		require.NoError(t, d.Put(id))
		require.NoError(t, d.Backend().Sync(t.Context(), id))
	}
	if s.shared {
		makeManifold(t, d)
	}
	if s.driver == "btrfs" {
		makeForeign(t, d, root)
	}
	require.NoError(t, d.Cleanup())
}

func layerIDs(t *testing.T, d *cowdriver.Driver) []string {
	t.Helper()
	var ids []string
	for v, err := range d.Backend().Volumes(t.Context()) {
		require.NoError(t, err)
		ids = append(ids, v.Name)
	}
	slices.Sort(ids)
	return ids
}

func assertContent(t *testing.T, d *cowdriver.Driver, id string) {
	t.Helper()
	dir := get(t, d, id)
	for name, word := range map[string]string{"file": "base", "change": "diff"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		assert.True(t, bytes.Equal(bytes.Repeat([]byte(word), fileSize/4), content), name)
	}
	assert.NoError(t, d.Put(id))
}

func assertRecovers(t *testing.T, s system, root string, op operation, acknowledged bool) {
	t.Helper()
	d, err := s.tryOpen(root, user.IdentityMapping{})
	require.NoError(t, err)
	defer func() { assert.NoError(t, d.Cleanup()) }()
	for _, id := range layerIDs(t, d) {
		assert.Contains(t, slices.Concat(initialLayers, []string{"new", "renamed", manifold}), id)
	}
	op.check(t, d, acknowledged)
	ids := layerIDs(t, d)
	assertNothingLeft(t, s, root, ids)
	if s.shared {
		assert.NoError(t, d.Cleanup())
		assert.Empty(t, notesOfGone(t, filepath.Join(root, s.driver), ids), "notes about volumes that are gone")
	}
}

// assertNothingLeft asserts that on the filesystem there is nothing of Cowshed's but these layers.
func assertNothingLeft(t *testing.T, s system, root string, ids []string) {
	t.Helper()
	if s.shared {
		assertNoSharedLeft(t, filepath.Join(root, s.driver), ids)
	}
	if s.driver != "btrfs" {
		assertNothingLeftOnZFS(t, root, ids)
		return
	}
	want := []string{"root/btrfs"}
	if _, err := os.Stat(filepath.Join(filepath.Dir(root), foreign)); err == nil {
		want = append(want, foreign)
	}
	for _, id := range ids {
		want = append(want, "root/btrfs/subvolumes/"+id)
		if id == "nested" && !s.shared {
			want = append(want, "root/btrfs/subvolumes/nested/volume", "root/btrfs/subvolumes/nested/volume/inner")
		}
	}
	assert.ElementsMatch(t, want, testfs.Subvolumes(t, filepath.Dir(root)))
	assertEmpty(t, filepath.Join(root, "btrfs"))
}

// assertEmpty asserts that a home on btrfs has nothing that is being made, and no view.
func assertEmpty(t *testing.T, home string) {
	t.Helper()
	for _, dir := range []string{"staging", "views"} {
		entries, err := os.ReadDir(filepath.Join(home, dir))
		require.NoError(t, err)
		assert.Empty(t, entries, dir)
	}
}

// TestKilledAtRandom kills a process that makes and removes layers as fast as it can, many times and at any moment.
// In the end it finds no qgroup without a subvolume.
func TestKilledAtRandom(t *testing.T) { inEachOwn(t, killAtRandom) }

func killAtRandom(t *testing.T, s system) {
	root := s.root(t)
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	kills, longest := 15, 700*time.Millisecond
	if s.driver == "zfs" {
		longest = 3 * time.Second // in the slow test machine
	}
	if s.slow() {
		kills = 3
	}
	for range kills {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestChurn$")
		cmd.Env = append(os.Environ(), victimSystemEnv+"="+s.name, victimRootEnv+"="+root)
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(rng.Int64N(int64(longest)))) // the moment is the random part here
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()

		d, err := s.tryOpen(root, user.IdentityMapping{})
		require.NoError(t, err)
		ids := layerIDs(t, d)
		for _, id := range ids {
			v, err := d.Backend().Stat(t.Context(), id)
			require.NoError(t, err)
			if s.limits() && strings.HasPrefix(id, "limited") {
				assert.EqualValues(t, limitBytes, v.Limit.Bytes, id)
			}
		}
		assertNothingLeft(t, s, root, ids)
		require.NoError(t, d.Cleanup())
	}
	d := s.open(t, root, user.IdentityMapping{})
	for _, id := range slices.Backward(layerIDs(t, d)) {
		require.NoError(t, d.Remove(id))
	}
	if s.driver == "btrfs" {
		require.NoError(t, d.Cleanup())
		testfs.WaitDeleted(t, filepath.Dir(root))
		s.open(t, root, user.IdentityMapping{})
		assert.Empty(t, testfs.StaleQgroups(t, filepath.Dir(root)))
	}
}

// TestChurn is not a test: it is the process that TestKilledAtRandom kills.
func TestChurn(t *testing.T) {
	if os.Getenv(victimRootEnv) == "" || os.Getenv(victimOperationEnv) != "" {
		return
	}
	s := systemNamed(os.Getenv(victimSystemEnv))
	d, err := s.tryOpen(os.Getenv(victimRootEnv), user.IdentityMapping{})
	require.NoError(t, err)
	sized := &graphdriver.CreateOpts{}
	if s.limits() {
		sized.StorageOpt = map[string]string{"size": "64M"}
	}
	for i := 0; ; i++ {
		base, limited := fmt.Sprintf("base-%d-%d", os.Getpid(), i), fmt.Sprintf("limited-%d-%d", os.Getpid(), i)
		require.NoError(t, d.Create(base, "", nil))
		require.NoError(t, os.WriteFile(get(t, d, base)+"/file", make([]byte, fileSize), 0o600))
		require.NoError(t, d.Put(base))
		require.NoError(t, d.CreateReadWrite(limited, base, sized))
		require.NoError(t, os.WriteFile(get(t, d, limited)+"/file", make([]byte, fileSize), 0o600))
		diff, err := d.Diff(limited, base)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, diff)
		require.NoError(t, err)
		require.NoError(t, diff.Close())
		require.NoError(t, d.Put(limited))
		require.NoError(t, d.Remove(limited))
		if i%2 == 0 {
			require.NoError(t, d.Remove(base))
		}
	}
}
