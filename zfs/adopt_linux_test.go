package zfs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/adopttest"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// foreign is a dataset in which another program keeps datasets, as moby's driver does.
type foreign struct {
	t      *testing.T
	holder string
}

func newForeign(t *testing.T, root string) foreign {
	t.Helper()
	holder := root + "/others"
	zfs(t, "create", "-o", "mountpoint=none", holder)
	return foreign{t, holder}
}

// Source is the name of a dataset.
func (f foreign) Source(name string) string { return f.holder + "/" + name }

func (f foreign) Create(name, from string) {
	f.t.Helper()
	f.create(name, from)
}

// create is Create with options of zfs create or zfs clone.
func (f foreign) create(name, from string, options ...string) {
	f.t.Helper()
	options = append([]string{"-o", "mountpoint=legacy"}, options...)
	if from == "" {
		zfs(f.t, append(append([]string{"create"}, options...), f.Source(name))...)
		return
	}
	snapshot := f.Source(from) + "@7" + strings.Map(func(r rune) rune { return '0' + r%10 }, name)
	zfs(f.t, "snapshot", snapshot)
	zfs(f.t, append(append([]string{"clone"}, options...), snapshot, f.Source(name))...)
	zfs(f.t, "destroy", "-d", snapshot)
}

func (f foreign) Mounted(name string, do func(dir string)) {
	f.t.Helper()
	dir := f.t.TempDir()
	require.NoError(f.t, unix.Mount(f.Source(name), dir, "zfs", 0, ""))
	do(dir)
	require.NoError(f.t, unix.Unmount(dir, 0))
}

func (f foreign) write(name, path, content string) {
	f.t.Helper()
	f.Mounted(name, func(dir string) {
		require.NoError(f.t, os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755))
		require.NoError(f.t, os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644))
	})
}

func (f foreign) Destroy(name string) {
	f.t.Helper()
	zfs(f.t, "destroy", "-r", f.Source(name))
}

// state lists all of the other program's datasets and snapshots.
func (f foreign) state() string {
	f.t.Helper()
	return zfs(f.t, "list", "-Hr", "-t", "all", "-o", "name,origin", f.holder)
}

// TestAdopt: the contract. When adopted volumes are removed before they are settled, nothing is left of them on the foreign
// datasets.
func TestAdopt(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	f := newForeign(t, root)
	adopttest.Adopt(t, f, func() adopttest.Backend { return openOn(t, root, mountpoint) }, nil)

	b, ctx := openOn(t, root, mountpoint), t.Context()
	adopttest.AdoptChain(t, b, f)
	before := regexp.MustCompile(`(?m)^.*@`+clonePrefix+`.*\n`).ReplaceAllString(f.state(), "")
	for _, name := range []string{"c", "b", "a"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	assert.Equal(t, before, f.state())
}

// TestAdoptAgain: volumes of one foreign dataset are relatives.
func TestAdoptAgain(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	f.write("1", "file", "x")
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{}))
	f.write("1", "more", "x")
	require.NoError(t, b.Adopt(ctx, "b", "a", f.Source("1"), cowcommon.VolumeOptions{}))
	require.NoError(t, b.Adopt(ctx, "other", "", f.Source("1"), cowcommon.VolumeOptions{}))
	check := func() {
		t.Helper()
		adopttest.CheckParent(t, b, "a", "")
		adopttest.CheckParent(t, b, "b", "a")
		adopttest.CheckParent(t, b, "other", "")
		assert.Equal(t, []string{"A /more"}, adopttest.Changes(t, b, "b", "a"))
	}
	check()
	for _, name := range []string{"a", "b", "other"} {
		require.NoError(t, b.Settle(ctx, name))
	}
	f.Destroy("1")
	check()
	for _, name := range []string{"a", "b", "other"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	assertOnly(t, b, "others")
}

// TestAdoptNot: such datasets are not adopted, and nothing is left.
func TestAdoptNot(t *testing.T) {
	b := open(t)
	f := newForeign(t, b.root)
	f.create("outer", "")
	f.create("outer/inner", "")
	zfs(t, "create", "-s", "-V", "1M", f.Source("volume"))
	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600))
	f.create("secret", "", "-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file://"+key)
	f.create("acls", "", "-o", "acltype=posix")
	f.create("no-xattrs", "", "-o", "xattr=off")
	moby := strings.Repeat("0123456789abcdef", 4)
	zfs(t, "create", "-o", "mountpoint=legacy", b.datasetOf(moby))
	f.create("held", "")
	zfs(t, "snapshot", f.Source("held")+"@snapshot")
	more := map[string]adopttest.Refusal{
		"no room": {Name: "new", Source: f.Source("held"), Want: errdefs.ErrInvalidArgument, Limit: quota.Limit{Bytes: 4096, Scope: quota.ScopeTotal}},
	}
	for name, r := range map[string]struct {
		source string
		want   error
	}{
		"nested":        {f.Source("outer"), errdefs.ErrNotImplemented},
		"a path":        {"/tank", errdefs.ErrNotImplemented},
		"a snapshot":    {f.Source("held@snapshot"), errdefs.ErrNotImplemented},
		"a zvol":        {f.Source("volume"), errdefs.ErrNotImplemented},
		"encrypted":     {f.Source("secret"), errdefs.ErrNotImplemented},
		"other ACLs":    {f.Source("acls"), errdefs.ErrNotImplemented},
		"no attributes": {f.Source("no-xattrs"), errdefs.ErrNotImplemented},
		"moby's, here":  {b.datasetOf(moby), errdefs.ErrNotImplemented},
		"another pool":  {"elsewhere/good", errdefs.ErrNotImplemented},
		"a layer here":  {b.datasetOf("there"), errdefs.ErrInvalidArgument},
		"the home":      {b.root, errdefs.ErrInvalidArgument},
	} {
		more[name] = adopttest.Refusal{Name: "new", Source: r.source, Want: r.want}
	}
	before := ""
	adopttest.AdoptNot(t, b, f, f.Source("nothing"), more, func(t *testing.T) {
		now := zfs(t, "list", "-Hr", "-t", "all", "-o", "name", b.root)
		if before == "" {
			before = now // the first refusal is compared with the others
			assert.Equal(t, 1, strings.Count(now, "@"+clonePrefix), "the snapshot of the parent alone")
		}
		assert.Equal(t, before, now)
		intents, err := os.ReadDir(b.intents)
		require.NoError(t, err)
		assert.Empty(t, intents)
	})
}

// TestAdoptRecovers: the next start destroys the snapshots that a crash has left on foreign datasets, and nothing else.
func TestAdoptRecovers(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b, ctx := openOn(t, root, mountpoint), t.Context()
	f := newForeign(t, root)
	f.create("1", "")
	before := f.state()
	origin := func(name string) string { return f.Source("1") + "@" + clonePrefix + name }
	intend := func(name, origin string) {
		t.Helper()
		require.NoError(t, b.intend(ctx, name, origin))
	}
	intend("not taken", origin("0"))
	intend("taken", origin("1"))
	zfs(t, "snapshot", origin("1"))
	intend("half", origin("2"))
	zfs(t, "snapshot", origin("2"))
	zfs(t, "clone", "-o", "mountpoint=legacy", origin("2"), b.datasetOf("half"))
	for name, content := range map[string]string{
		"cut off": f.Source("1") + "@cow", "long": strings.Repeat("x", 1<<20), "elsewhere": "elsewhere/x@" + clonePrefix + "1",
		"a dataset": f.Source("1"),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(b.intents, name), []byte(content), 0o600))
	}
	require.NoError(t, b.Adopt(ctx, "whole", "", f.Source("1"), cowcommon.VolumeOptions{}))
	d, err := b.volume(ctx, "whole")
	require.NoError(t, err)
	intend("whole", d.origin)
	require.NoError(t, b.Close())
	b = openOn(t, root, mountpoint)
	assertOnly(t, b, "whole", "others", "others/1")
	intents, err := os.ReadDir(b.intents)
	require.NoError(t, err)
	assert.Empty(t, intents)
	require.NoError(t, b.Remove(ctx, "whole"))
	assert.Equal(t, before, f.state())

	// Beside others, which have the home open.
	beside := openOn(t, root, mountpoint)
	intend("taken", origin("1"))
	zfs(t, "snapshot", origin("1"))
	require.NoError(t, beside.recoverBeside(ctx))
	assert.Equal(t, before, f.state())
}

// TestIntentLeft: an intent that is left, with the snapshot that it names, is ended before the volume is made again.
func TestIntentLeft(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	before := f.state()
	origin := f.Source("1") + "@" + clonePrefix + "left"
	makers := map[string]func(name string) error{
		"create": func(name string) error { return b.Create(ctx, name, cowcommon.VolumeOptions{}) },
		"adopt":  func(name string) error { return b.Adopt(ctx, name, "", f.Source("1"), cowcommon.VolumeOptions{}) },
	}
	for name, do := range makers {
		require.NoError(t, b.intend(ctx, name, origin))
		zfs(t, "snapshot", origin)
		require.NoError(t, do(name), name)
		assert.NotContains(t, f.state(), origin, name)
		require.NoError(t, b.Remove(ctx, name))
		assert.Equal(t, before, f.state())
	}
	intents, err := os.ReadDir(b.intents)
	require.NoError(t, err)
	assert.Empty(t, intents)

	// As long as the snapshot cannot be destroyed, the intent stays.
	require.NoError(t, b.intend(ctx, "held", origin))
	zfs(t, "snapshot", origin)
	zfs(t, "hold", "tag", origin)
	for _, do := range makers {
		require.ErrorIs(t, do("held"), unix.EBUSY)
	}
	zfs(t, "release", "tag", origin)
	require.NoError(t, makers["adopt"]("held"))
	assert.NotContains(t, f.state(), origin)
}

// TestIntentOfWhole: the kernel says whether a volume is half-made. The index may have it as it was while it was being made.
func TestIntentOfWhole(t *testing.T) {
	b, ctx := open(t), t.Context()
	require.NoError(t, b.Create(ctx, "whole", cowcommon.VolumeOptions{}))
	require.NoError(t, b.intend(ctx, "whole", ""))
	d, err := b.volume(ctx, "whole")
	require.NoError(t, err)
	// As old as the intent, and without its properties.
	b.volumes.update("whole", func(d *dataset) { d.marked, d.created = false, time.Now() })
	require.NoError(t, b.endLeftIntents(ctx))
	b.volumes.set("whole", d)
	there, err := b.zfs.exists(ctx, b.datasetOf("whole"))
	require.NoError(t, err)
	assert.True(t, there)
	assert.NoFileExists(t, filepath.Join(b.intents, "whole"))
}

// TestSettle: volumes outlive the foreign datasets that they were adopted from.
func TestSettle(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b, ctx := openOn(t, root, mountpoint), t.Context()
	f := newForeign(t, root)
	adopttest.AdoptChain(t, b, f)
	require.NoError(t, b.Clone(ctx, "container", "b", cowcommon.VolumeOptions{}))
	_, err := b.Mount(ctx, "c", "") // a container that runs
	require.NoError(t, err)
	for _, name := range []string{"a", "b", "c"} {
		if name == "b" { // another process goes on
			require.NoError(t, b.Unmount(ctx, "c"))
			require.NoError(t, b.Close())
			b = openOn(t, root, mountpoint)
			_, err := b.Mount(ctx, "c", "")
			require.NoError(t, err)
		}
		require.NoError(t, b.Settle(ctx, name))
		require.NoError(t, b.Settle(ctx, name), "again")
		adopttest.CheckChain(t, b)
	}
	require.NoError(t, b.Settle(ctx, "container"))
	require.ErrorIs(t, b.Settle(ctx, "none"), errdefs.ErrNotFound)
	for _, source := range []string{"3", "2", "1"} {
		f.Destroy(source)
	}
	adopttest.CheckChain(t, b)
	require.NoError(t, b.Unmount(ctx, "c"))
	assertContent(t, b, "container", "dir/two", "two")
	assert.NotContains(t, zfs(t, "list", "-Hr", "-t", "all", "-o", "name", root), clonePrefix, "the snapshots went with the sources")

	for _, name := range []string{"a", "b", "c", "container"} {
		require.NoError(t, b.Remove(ctx, name))
	}
	assertOnly(t, b, "others")
}

// TestSettleRemoved: a removed volume lives on for its clones, which settle it.
func TestSettleRemoved(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	f.write("1", "file", "x")
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "child", "a", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Remove(ctx, "a"))
	require.NoError(t, b.Settle(ctx, "child"))
	f.Destroy("1")
	assertContent(t, b, "child", "file", "x")
	require.NoError(t, b.Remove(ctx, "child"))
	assertOnly(t, b, "others")
}

// TestSettleRemoveBefore: a volume that was settled half is removed as any other.
func TestSettleRemoveBefore(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	before := f.state()
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{}))
	d, err := b.volume(ctx, "a")
	require.NoError(t, err)
	require.NoError(t, b.zfs.kernel.DestroySnapshotLater(d.origin))
	require.NoError(t, b.Remove(ctx, "a"))
	assert.Equal(t, before, f.state())
}

// TestSettleLimit: a volume that holds more than its limit when it is settled gets a higher one.
func TestSettleLimit(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	f.create("2", "1")
	f.write("2", "file", string(randomBytes(8<<20)))
	f.create("3", "1")
	f.write("3", "file", string(randomBytes(1<<20)))
	require.NoError(t, b.Adopt(ctx, "base", "", f.Source("1"), cowcommon.VolumeOptions{}))
	limits := map[string]quota.Limit{"over": {Bytes: 4 << 20}, "under": {Bytes: 16 << 20}}
	require.NoError(t, b.Adopt(ctx, "over", "base", f.Source("2"), cowcommon.VolumeOptions{Limit: limits["over"]}))
	require.NoError(t, b.Adopt(ctx, "under", "base", f.Source("3"), cowcommon.VolumeOptions{Limit: limits["under"]}))
	for _, name := range []string{"base", "over", "under"} {
		require.NoError(t, b.Settle(ctx, name))
	}
	v, err := b.Stat(ctx, "under")
	require.NoError(t, err)
	assert.Equal(t, limits["under"], v.Limit)
	v, err = b.Stat(ctx, "over")
	require.NoError(t, err)
	assert.Greater(t, v.Limit.Bytes, uint64(8<<20))
	assert.Less(t, v.Limit.Bytes, uint64(16<<20))
	f.Destroy("3")
	f.Destroy("2")
	f.Destroy("1")
	usage, err := b.Usage(ctx, "over")
	require.NoError(t, err)
	assert.Greater(t, usage.Bytes, uint64(8<<20))

	// A crash before the promotion, and after it.
	f.create("4", "")
	require.NoError(t, b.Adopt(ctx, "crashed", "", f.Source("4"), cowcommon.VolumeOptions{Limit: limits["under"]}))
	without := func() { zfs(t, "set", "quota=none", limitProperty+"=16777216", b.datasetOf("crashed")) }
	without()
	require.NoError(t, b.Settle(ctx, "crashed"))
	for range 2 {
		v, err = b.Stat(ctx, "crashed")
		require.NoError(t, err)
		assert.Equal(t, limits["under"], v.Limit)
		without()
		require.NoError(t, b.Settle(ctx, "crashed"))
	}
}

// TestSettleLeavesVolumes: a volume is settled without a change of other volumes, such as its parent.
func TestSettleLeavesVolumes(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	f.write("1", "file", "x")
	zfs(t, "snapshot", f.Source("1")+"@of-others")
	limit := quota.Limit{Bytes: 16 << 20}
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{Limit: limit}))
	require.NoError(t, b.Clone(ctx, "child", "a", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "removed", "child", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Clone(ctx, "last", "removed", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Remove(ctx, "removed"))
	before := zfs(t, "list", "-Hr", "-t", "all", "-o", "name,origin,quota", b.root)
	for _, name := range []string{"child", "last"} {
		require.NoError(t, b.CheckSettle(ctx, name))
		require.NoError(t, b.Settle(ctx, name))
	}
	assert.Equal(t, before, zfs(t, "list", "-Hr", "-t", "all", "-o", "name,origin,quota", b.root))
	zfs(t, "destroy", f.Source("1")+"@of-others")
	require.NoError(t, b.Settle(ctx, "a"))
	f.Destroy("1")
	assertContent(t, b, "last", "file", "x")
}

// mortal is a kernel of a process that is killed after some changes of properties and datasets. It changes one property after
// the other, and quotas first, as the kernel does.
type mortal struct {
	kernel
	left int
}

func (k *mortal) call(do func() error) error {
	if k.left == 0 {
		return refused(unix.EIO)
	}
	k.left--
	return do()
}

func (k *mortal) Set(name string, values zfsctl.Values) error {
	values = maps.Clone(values)
	if quota, ok := values["quota"]; ok {
		delete(values, "quota")
		if err := k.call(func() error { return k.kernel.Set(name, zfsctl.Values{"quota": quota}) }); err != nil || len(values) == 0 {
			return err
		}
	}
	return k.call(func() error { return k.kernel.Set(name, values) })
}

func (k *mortal) DestroySnapshotLater(name string) error {
	return k.call(func() error { return k.kernel.DestroySnapshotLater(name) })
}

func (k *mortal) Promote(name string) error {
	return k.call(func() error { return k.kernel.Promote(name) })
}

// TestSettleLimitSurvives: a limit survives a crash between any two steps of Settle, and each error. A limit that is set after
// a crash stays.
func TestSettleLimitSurvives(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	assertLimit := func(name string, want quota.Limit) {
		t.Helper()
		b.volumes.invalidate()
		v, err := b.Stat(ctx, name)
		require.NoError(t, err)
		assert.Equal(t, want, v.Limit, name)
	}
	whole, limit := b.zfs.kernel, quota.Limit{Bytes: 16 << 20}
	killed := 0
	for done := false; !done; killed++ {
		name := "killed" + strconv.Itoa(killed)
		require.NoError(t, b.Adopt(ctx, name, "", f.Source("1"), cowcommon.VolumeOptions{Limit: limit}))
		b.zfs.kernel = &mortal{kernel: whole, left: killed}
		done = b.Settle(ctx, name) == nil
		b.zfs.kernel = whole
		if killed%2 == 0 {
			require.NoError(t, b.Settle(ctx, name))
			assertLimit(name, limit)
		}
		newer := quota.Limit{Bytes: 32 << 20}
		require.NoError(t, b.SetLimit(ctx, name, newer))
		require.NoError(t, b.Settle(ctx, name))
		assertLimit(name, newer)
		require.NoError(t, b.Remove(ctx, name))
	}
	assert.Equal(t, 6, killed-1, "the steps of Settle")

	faults := &faultyKernel{kernel: whole}
	b.zfs.kernel, b.zfs.patience = faults, testfs.Patience
	for _, command := range []string{"destroy later", "promote"} {
		require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{Limit: limit}))
		ctx := cancelledAt(t, faults.arm(command, "interrupted-before"))
		require.Error(t, b.Settle(ctx, "a"), command)
		assertLimit("a", limit)
		assert.NotContains(t, zfs(t, "get", "-H", "-o", "value", limitProperty, b.datasetOf("a")), "1")
		require.NoError(t, b.Remove(t.Context(), "a"))
	}
}

// setCounter is a kernel that counts changes of properties.
type setCounter struct {
	kernel
	sets int
}

func (k *setCounter) Set(name string, values zfsctl.Values) error {
	k.sets++
	return k.kernel.Set(name, values)
}

// TestSettleInterrupted: each step of Settle whose call has happened, and was interrupted, has happened. Settle repeats no step.
func TestSettleInterrupted(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	whole := b.zfs.kernel
	for _, command := range []string{"set", "destroy later", "promote"} {
		require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 16 << 20}}))
		counts := &setCounter{kernel: whole}
		faults := &faultyKernel{kernel: counts}
		hit := faults.arm(command, "interrupted-after")
		b.zfs.kernel = faults
		require.NoError(t, b.Settle(ctx, "a"), command)
		b.zfs.kernel = whole
		testfs.Receive(t, hit)
		assert.Equal(t, 4, counts.sets, "%s: the limit is recorded, lifted, set and forgotten", command)
		require.NoError(t, b.Remove(ctx, "a"))
	}
}

// meddled is a kernel in which another process does something before a change of properties, each time once.
type meddled struct {
	kernel
	after int // changes before that one
	done  bool
	do    func()
}

func (k *meddled) Set(name string, values zfsctl.Values) error {
	if k.after == 0 {
		k.done = true
		k.do()
	}
	k.after--
	return k.kernel.Set(name, values)
}

// TestSettleBesideLimit: a limit that another process sets while a volume is settled stays, whenever that is.
func TestSettleBesideLimit(t *testing.T) {
	root, mountpoint := testfs.ZFS(t)
	b, beside, ctx := openOn(t, root, mountpoint), openOn(t, root, mountpoint), t.Context()
	f := newForeign(t, root)
	f.create("1", "")
	whole, newer := b.zfs.kernel, quota.Limit{Bytes: 32 << 20}
	changes := 0
	for {
		name := "settled" + strconv.Itoa(changes)
		require.NoError(t, b.Adopt(ctx, name, "", f.Source("1"), cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 16 << 20}}))
		limited := make(chan error, 1)
		k := &meddled{kernel: whole, after: changes, do: func() {
			go func() { limited <- beside.SetLimit(ctx, name, newer) }()
			select {
			case err := <-limited: // without waiting
				limited <- err
			case <-time.After(time.Second):
			}
		}}
		b.zfs.kernel = k
		require.NoError(t, b.Settle(ctx, name))
		b.zfs.kernel = whole
		if !k.done {
			break
		}
		require.NoError(t, testfs.Receive(t, limited))
		for _, b := range []*Backend{b, beside} {
			b.volumes.invalidate()
			v, err := b.Stat(ctx, name)
			require.NoError(t, err)
			assert.Equal(t, newer, v.Limit, "after %d changes", changes)
		}
		require.NoError(t, b.Remove(ctx, name))
		changes++
	}
	assert.Equal(t, 4, changes, "the changes of properties by Settle")
}

// TestSettleRoom: it is known before whether all volumes together have room under quotas, beside reservations.
func TestSettleRoom(t *testing.T) {
	root, _ := testfs.ZFS(t)
	outer, ctx := root+"/outer", t.Context()
	home := outer + "/home"
	zfs(t, "create", "-o", "mountpoint=none", outer)
	zfs(t, "create", home)
	b, err := Open(ctx, filepath.Join(t.TempDir(), "home"), home, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	f := newForeign(t, root)
	f.create("1", "")
	f.write("1", "file", string(randomBytes(12<<20)))
	f.create("2", "1")
	f.write("2", "more", string(randomBytes(6<<20)))
	limit := cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 4 << 20}} // Settle lifts it
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), limit))
	require.NoError(t, b.Adopt(ctx, "b", "a", f.Source("2"), limit))
	for name, source := range map[string]string{"c": "3", "d": "4"} {
		f.create(source, "")
		f.write(source, "file", string(randomBytes(8<<20)))
		require.NoError(t, b.Adopt(ctx, name, "", f.Source(source), cowcommon.VolumeOptions{}))
	}
	hasRoom := func(names ...string) {
		t.Helper()
		require.NoError(t, b.CheckSettle(ctx, names...))
		for _, name := range names {
			require.NoError(t, b.Settle(ctx, name))
		}
	}
	hasNoRoom := func(at string, names ...string) {
		t.Helper()
		err := b.CheckSettle(ctx, names...)
		require.ErrorIs(t, err, unix.EDQUOT)
		require.ErrorContains(t, err, "come to "+at+",")
		last := names[len(names)-1]
		for _, name := range names[:len(names)-1] {
			require.NoError(t, b.Settle(ctx, name))
		}
		require.Error(t, b.Settle(ctx, last), "%s: the kernel says so too", last)
	}
	zfs(t, "set", "quota=15M", "refquota=1M", home)
	require.NoError(t, b.CheckSettle(ctx, "a"))
	require.NoError(t, b.CheckSettle(ctx, "b"))
	hasNoRoom(home, "a", "b")
	zfs(t, "set", "quota=20M", home)
	hasRoom("a", "b")

	zfs(t, "set", "quota=none", "reservation=30M", home)
	zfs(t, "set", "quota=31M", outer)
	hasRoom("a", "c")
	hasNoRoom(outer, "c", "d")
	zfs(t, "set", "quota=36M", outer)
	hasRoom("d")
}

// TestSettleNot: snapshots of others do not become a layer's.
func TestSettleNot(t *testing.T) {
	b, ctx := open(t), t.Context()
	f := newForeign(t, b.root)
	f.create("1", "")
	zfs(t, "snapshot", f.Source("1")+"@of-others")
	require.NoError(t, b.Adopt(ctx, "a", "", f.Source("1"), cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 1 << 20}}))
	zfs(t, "snapshot", f.Source("1")+"@later")
	before := zfs(t, "list", "-Hr", "-t", "all", "-o", "name,origin,quota", b.root)
	err := b.Settle(ctx, "a")
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	require.ErrorContains(t, err, f.Source("1")+"@of-others")
	require.NotContains(t, err.Error(), "@later")
	require.ErrorIs(t, b.CheckSettle(ctx, "a"), errdefs.ErrFailedPrecondition)
	assert.Equal(t, before, zfs(t, "list", "-Hr", "-t", "all", "-o", "name,origin,quota", b.root))
	zfs(t, "destroy", f.Source("1")+"@of-others")

	// The snapshot of a foreign dataset may have the name of one of the volume's.
	zfs(t, "snapshot", b.datasetOf("a@7"))
	require.NoError(t, b.zfs.kernel.Snapshot(f.Source("1")+"@"+clonePrefix+"x"))
	f.create("2", "1")
	zfs(t, "snapshot", f.Source("2")+"@"+clonePrefix+"y")
	require.NoError(t, b.Adopt(ctx, "b", "", f.Source("2"), cowcommon.VolumeOptions{}))
	zfs(t, "snapshot", b.datasetOf("b@"+clonePrefix+"y"))
	for name, err := range map[string]error{"check": b.CheckSettle(ctx, "b"), "settle": b.Settle(ctx, "b")} {
		require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, name)
		require.ErrorContains(t, err, "the snapshots "+f.Source("2")+"@"+clonePrefix+"y have names", name)
	}
	require.NoError(t, b.CheckSettle(ctx, "a"))
	require.NoError(t, b.Settle(ctx, "a"))
	zfs(t, "destroy", b.datasetOf("a@7"))
	require.NoError(t, b.CheckSettle(ctx, "a"))
	require.ErrorIs(t, b.CheckSettle(ctx, "none"), errdefs.ErrNotFound)
}

// TestAdoptFullPool: without space nothing is adopted or settled, and all is as before. Removing works.
func TestAdoptFullPool(t *testing.T) {
	pool, _ := testfs.OwnZpool(t, 96<<20, 256<<20)
	b, err := Open(t.Context(), t.TempDir()+"/home", pool, Options{})
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Close()) }()
	ctx := t.Context()
	f := newForeign(t, pool)
	f.create("1", "")
	for _, name := range []string{"kept", "removed"} {
		require.NoError(t, b.Adopt(ctx, name, "", f.Source("1"), cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 4 << 20}}))
	}
	f.create("filler", "")
	f.Mounted("filler", func(dir string) {
		require.ErrorIs(t, os.WriteFile(dir+"/all", randomBytes(120<<20), 0o644), unix.ENOSPC)
		for n := range 50 { // until not one block is left
			_ = os.WriteFile(filepath.Join(dir, strconv.Itoa(n)), randomBytes(1<<10), 0o644)
		}
	})
	state := func() string { return zfs(t, "list", "-Hr", "-t", "all", "-o", "name,origin,quota", pool) }
	before := state()
	require.ErrorIs(t, b.Adopt(ctx, "new", "", f.Source("1"), cowcommon.VolumeOptions{}), unix.ENOSPC)
	assert.Equal(t, before, state())
	if err := b.Settle(ctx, "kept"); err != nil { // OpenZFS 2.1 finds space for it
		require.ErrorIs(t, err, unix.ENOSPC)
		assert.Equal(t, before, state())
	}
	require.NoError(t, b.Remove(ctx, "removed"))
	f.Destroy("filler")
	require.NoError(t, b.Settle(ctx, "kept"))
	f.Destroy("1")
	v, err := b.Stat(ctx, "kept")
	require.NoError(t, err)
	assert.Equal(t, quota.Limit{Bytes: 4 << 20}, v.Limit)
}
