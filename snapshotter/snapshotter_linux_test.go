package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// fill writes to a file until the size is reached or an error comes, and makes sure that it is written back.
func fill(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, mib)
	_, _ = rand.Read(block) // nothing that could be compressed
	for range size / mib {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}

func TestLimits(t *testing.T) {
	for _, mode := range modes[:2] {
		t.Run(mode.name, func(t *testing.T) { testLimits(t, onBtrfs(mode.opts...)) })
	}
}

func testLimits(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{DefaultLimit: quota.Limit{Bytes: 8 * mib}, BuildLimit: quota.Limit{Bytes: 24 * mib}})
	h.image("image")
	const unpack, step = "default/%d/extract-123-Abc_ sha256:abc", "moby/%d/zo2wm3h5dsw5v1yoo4iiplkfu"
	for i, c := range []struct {
		key    string // with a number, as containerd numbers them
		opt    snapshots.Opt
		size   int
		denied bool
	}{
		{"%d-by-label", label(snapshots.LabelSnapshotMaxSize, "4194304"), 6 * mib, true},
		{"%d-by-default", label("other", "label"), 16 * mib, true},
		{"%d-more-than-default", label(snapshots.LabelSnapshotMaxSize, "67108864"), 32 * mib, false},
		{unpack, label("other", "label"), 16 * mib, false},
		{unpack, label("other", "label"), 32 * mib, true},
		{step, label("other", "label"), 16 * mib, false},
		{step, label("other", "label"), 32 * mib, true},
		{step, label(snapshots.LabelSnapshotMaxSize, "67108864"), 32 * mib, false},
		// The label of an image's manifest has no effect.
		{unpack, label(snapshots.LabelSnapshotMaxSize, "4194304"), 6 * mib, false},
		{unpack, label(snapshots.LabelSnapshotMaxSize, "67108864"), 32 * mib, true},
		// The annotation of a pod, which its sandbox has as a label.
		{"k8s.io/%d/sandbox", label(snapshots.LabelSnapshotRef, "sha256:abc"), 16 * mib, true},
	} {
		c.key = fmt.Sprintf(c.key, i)
		h.prepare(c.key, "image", c.opt)
		h.in(c.key, func(dir string) {
			err := fill(filepath.Join(dir, "large"), c.size)
			if !c.denied {
				assert.NoError(t, err, c.key)
				return
			}
			assert.ErrorIs(t, err, unix.EDQUOT, c.key)
			assert.NoError(t, os.Remove(filepath.Join(dir, "large")), c.key)
		})
	}
}

// TestLimitOfStranger: an image's manifest does not turn quotas on.
func TestLimitOfStranger(t *testing.T) {
	h := newHost(t, Options{})
	const unpack = "default/1/extract-123-Abc_ sha256:abc"
	h.prepare(unpack, "", label(snapshots.LabelSnapshotMaxSize, "67108864"))
	for volume, err := range h.backend.Volumes(t.Context()) {
		require.NoError(t, err)
		assert.Zero(t, volume.Limit)
	}
	assert.Contains(t, h.backend.Status(t.Context()), [2]string{"Quota Mode", "off (policy auto)"})
}

// An invalid request has the documented type of error and changes nothing.
func TestBadRequests(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	h.image("other")
	h.prepare("active", "image")
	h.prepare("rootless", "")
	h.view("view", "image")
	require.NoError(t, h.Cleanup(t.Context()))

	prepare := func(key, parent string, opts ...snapshots.Opt) func(context.Context) error {
		return func(ctx context.Context) error { _, err := h.Prepare(ctx, key, parent, opts...); return err }
	}
	view := func(key, parent string, opts ...snapshots.Opt) func(context.Context) error {
		return func(ctx context.Context) error { _, err := h.View(ctx, key, parent, opts...); return err }
	}
	commit := func(name, key string, opts ...snapshots.Opt) func(context.Context) error {
		return func(ctx context.Context) error { return h.Commit(ctx, name, key, opts...) }
	}
	remove := func(key string) func(context.Context) error {
		return func(ctx context.Context) error { return h.Remove(ctx, key) }
	}
	update := func(info snapshots.Info, paths ...string) func(context.Context) error {
		return func(ctx context.Context) error { _, err := h.Update(ctx, info, paths...); return err }
	}
	volumeLabel := map[string]string{VolumeLabel: "s-x"}
	ids := func(uids, gids string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: uids, snapshots.LabelSnapshotGIDMapping: gids})
	}

	for name, c := range map[string]struct {
		do   func(context.Context) error
		want error
	}{
		"prepare on unknown parent":       {prepare("new", "nothing"), errdefs.ErrNotFound},
		"prepare on active parent":        {prepare("new", "active"), errdefs.ErrInvalidArgument},
		"prepare on view":                 {prepare("new", "view"), errdefs.ErrInvalidArgument},
		"prepare existing key":            {prepare("active", "image"), errdefs.ErrAlreadyExists},
		"prepare existing key, no parent": {prepare("active", ""), errdefs.ErrAlreadyExists},
		"prepare key of a view":           {prepare("view", "image"), errdefs.ErrAlreadyExists},
		"prepare name of a committed one": {prepare("image", ""), errdefs.ErrAlreadyExists},
		"prepare without key":             {prepare("", "image"), errdefs.ErrInvalidArgument},
		"prepare with too long a key":     {prepare(strings.Repeat("k", maxKeyLength+1), "image"), errdefs.ErrInvalidArgument},
		"prepare with a volume":           {prepare("new", "image", snapshots.WithLabels(volumeLabel)), errdefs.ErrInvalidArgument},
		"limit with unit":                 {prepare("new", "image", label(snapshots.LabelSnapshotMaxSize, "10G")), errdefs.ErrInvalidArgument},
		"limit of zero":                   {prepare("new", "image", label(snapshots.LabelSnapshotMaxSize, "0")), errdefs.ErrInvalidArgument},
		"negative limit":                  {prepare("new", "", label(snapshots.LabelSnapshotMaxSize, "-1")), errdefs.ErrInvalidArgument},
		"limit that overflows":            {prepare("new", "image", label(snapshots.LabelSnapshotMaxSize, "9223372036854775808")), errdefs.ErrInvalidArgument},
		"empty limit":                     {prepare("new", "image", label(snapshots.LabelSnapshotMaxSize, "")), errdefs.ErrInvalidArgument},
		"unknown root style":              {prepare("new", "image", label(RootStyleLabel, "overlay")), errdefs.ErrInvalidArgument},
		"empty root style":                {prepare("new", "", label(RootStyleLabel, "")), errdefs.ErrInvalidArgument},
		"unknown inherited style":         {prepare("new", "image", label(InheritedRootStyleLabel, "Shared")), errdefs.ErrInvalidArgument},
		"view of an unknown style":        {view("new", "image", label(RootStyleLabel, "overlay")), errdefs.ErrInvalidArgument},
		"commit of an unknown style":      {commit("new", "active", label(RootStyleLabel, "overlay")), errdefs.ErrInvalidArgument},
		"update to an unknown style":      {update(snapshots.Info{Name: "active", Labels: map[string]string{RootStyleLabel: "overlay"}}, "labels"), errdefs.ErrInvalidArgument},
		"uid mapping only":                {prepare("new", "image", ids("0:1000:1", "")), errdefs.ErrInvalidArgument},
		"id mapping of two numbers":       {prepare("new", "image", ids("0:1000", "0:1000:1")), errdefs.ErrInvalidArgument},
		"id mapping beyond all ids":       {prepare("new", "image", ids("0:4294967290:65536", "0:1000:1")), errdefs.ErrInvalidArgument},
		"empty id mapping":                {prepare("new", "image", ids("0:1000:0", "0:1000:1")), errdefs.ErrInvalidArgument},
		"id mapping with an option":       {prepare("new", "image", ids("0:1000:1", "0:1000:1,rw")), errdefs.ErrInvalidArgument},
		"view of unknown parent":          {view("new", "nothing"), errdefs.ErrNotFound},
		"view of active parent":           {view("new", "active"), errdefs.ErrInvalidArgument},
		"view with existing key":          {view("active", "image"), errdefs.ErrAlreadyExists},
		"commit unknown key":              {commit("new", "nothing"), errdefs.ErrNotFound},
		"commit view":                     {commit("new", "view"), errdefs.ErrFailedPrecondition},
		"commit committed":                {commit("new", "image"), errdefs.ErrFailedPrecondition},
		"commit to existing name":         {commit("image", "active"), errdefs.ErrAlreadyExists},
		"commit to its own key":           {commit("active", "active"), errdefs.ErrAlreadyExists},
		"commit without name":             {commit("", "active"), errdefs.ErrInvalidArgument},
		"commit to another parent":        {commit("new", "active", snapshots.WithParent("other")), errdefs.ErrInvalidArgument},
		"rebase":                          {commit("new", "rootless", snapshots.WithParent("image")), errdefs.ErrNotImplemented},
		"remove unknown key":              {remove("nothing"), errdefs.ErrNotFound},
		"remove parent":                   {remove("image"), errdefs.ErrFailedPrecondition},
		"update unknown key":              {update(snapshots.Info{Name: "nothing"}), errdefs.ErrNotFound},
		"update parent":                   {update(snapshots.Info{Name: "active", Parent: "other"}, "parent"), errdefs.ErrInvalidArgument},
		"update volume":                   {update(snapshots.Info{Name: "active", Labels: volumeLabel}, "labels"), errdefs.ErrInvalidArgument},
		"remove volume label":             {update(snapshots.Info{Name: "active"}, "labels."+VolumeLabel), errdefs.ErrInvalidArgument},
		"stat unknown key":                {func(ctx context.Context) error { _, err := h.Stat(ctx, "nothing"); return err }, errdefs.ErrNotFound},
		"usage of unknown key":            {func(ctx context.Context) error { _, err := h.Usage(ctx, "nothing"); return err }, errdefs.ErrNotFound},
		"mounts of unknown key":           {func(ctx context.Context) error { _, err := h.Mounts(ctx, "nothing"); return err }, errdefs.ErrNotFound},
		"mounts of committed":             {func(ctx context.Context) error { _, err := h.Mounts(ctx, "image"); return err }, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			before := h.state()
			assert.ErrorIs(t, c.do(t.Context()), c.want)
			assert.Equal(t, before, h.state())
		})
	}
	// An active snapshot can still be written to after all that.
	h.write("active", "still", nil)
	h.write("rootless", "still", nil)
}

func TestLimitWhereQuotasAreRefused(t *testing.T) {
	h := newHost(t, Options{})
	require.NoError(t, h.Close())
	backend, err := btrfs.Open(t.Context(), filepath.Join(h.mnt, "volumes"), btrfs.Options{Quota: quota.PolicyOff})
	require.NoError(t, err)
	h.Snapshotter, err = New(t.Context(), filepath.Join(h.mnt, "snapshotter"), backend, Options{})
	require.NoError(t, err)
	before := h.state()
	_, err = h.Prepare(t.Context(), "key", "", label(snapshots.LabelSnapshotMaxSize, "1048576"))
	assert.Error(t, err)
	assert.Equal(t, before, h.state())
}

func TestView(t *testing.T) { testView(t, onBtrfs()) }

func testView(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{})
	h.image("image")
	before := h.volumes()
	mounts := h.view("view", "image")
	assert.Equal(t, before, h.volumes(), "a view is no volume")
	again, err := h.Mounts(t.Context(), "view")
	require.NoError(t, err)
	assert.Equal(t, mounts, again)
	require.Len(t, mounts, 1)
	assert.True(t, mounts[0].ReadOnly())

	dir, unmount := h.mountAt(mounts)
	assert.FileExists(t, filepath.Join(dir, "file"))
	assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), unix.EROFS)
	h.in("view", func(dir string) {
		assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), unix.EROFS, "the volume itself neither")
	})
	unmount()

	usage, err := h.Usage(t.Context(), "view")
	require.NoError(t, err)
	assert.Zero(t, usage)
	require.NoError(t, h.Remove(t.Context(), "view"))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Equal(t, before, h.volumes())

	dir, unmount = h.mountAt(h.view("empty", ""))
	assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), unix.EROFS)
	unmount()
	assert.Len(t, h.volumes(), len(before)+1)
	require.NoError(t, h.Remove(t.Context(), "empty"))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Equal(t, before, h.volumes())
}

// A mount of an active snapshot is writable and takes the tree with it, and no other can mistake it for a view.
func TestPrepareIsWritable(t *testing.T) { testPrepareIsWritable(t, onBtrfs()) }

func testPrepareIsWritable(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{})
	h.image("image")
	for _, parent := range []string{"", "image"} {
		key := "on " + parent
		mounts := h.prepare(key, parent)
		require.Len(t, mounts, 1)
		assert.False(t, mounts[0].ReadOnly())
		dir, unmount := h.mountAt(mounts)
		assert.NoError(t, os.WriteFile(filepath.Join(dir, "new"), []byte(parent), 0o644))
		unmount()
		assert.Equal(t, parent, h.content(key, "new"))
	}
}

func TestRemoveAndCleanup(t *testing.T) {
	h := testRemoveAndCleanup(t, onBtrfs(testfs.WithSimpleQuota()))
	testfs.WaitDeleted(t, h.mnt)
}

func testRemoveAndCleanup(t *testing.T, fs filesystem) *host {
	h := newHostOn(t, fs, Options{})
	h.image("image")
	h.prepare("active", "image")
	removed := h.volume("active")

	require.NoError(t, h.Remove(t.Context(), "active"))
	assert.Contains(t, h.volumes(), removed, "not before Cleanup")
	h.prepare("active", "image") // the key is free at once
	require.NoError(t, h.Cleanup(t.Context()))
	assert.NotContains(t, h.volumes(), removed)
	assert.Contains(t, h.volumes(), h.volume("active"))

	// A volume that is not there any more keeps nothing from being removed.
	require.NoError(t, h.backend.Remove(t.Context(), h.volume("active")))
	require.NoError(t, h.Remove(t.Context(), "active"))
	require.NoError(t, h.Cleanup(t.Context()))

	// A mounted snapshot's volume is destroyed after its unmount.
	_, unmount := h.mountAt(h.prepare("mounted", "image"))
	mounted := h.volume("mounted")
	require.NoError(t, h.Remove(t.Context(), "mounted"))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Contains(t, h.volumes(), mounted)
	unmount()
	require.NoError(t, h.Cleanup(t.Context()))
	assert.NotContains(t, h.volumes(), mounted)

	// Without Cleanup it is the next start.
	require.NoError(t, h.Remove(t.Context(), "image"))
	require.NoError(t, h.restart(nil))
	assert.Empty(t, h.volumes())
	assert.Empty(t, h.keys())
	return h
}

func TestCleanupCancelled(t *testing.T) {
	h := newHost(t, Options{})
	h.prepare("active", "")
	require.NoError(t, h.Remove(t.Context(), "active"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, h.Cleanup(ctx), context.Canceled)
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Empty(t, h.volumes())
}

func TestCommitSeals(t *testing.T) { testCommitSeals(t, onBtrfs()) }

func testCommitSeals(t *testing.T, fs filesystem) {
	h := newHostOn(t, fs, Options{})
	dir, unmount := h.mountAt(h.prepare("active", ""))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("before"), 0o644))
	unmount()
	volume := h.volume("active")
	h.commit("image", "active")
	assert.Equal(t, volume, h.volume("image"), "the volume stays the same")
	h.in("image", func(dir string) {
		assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "file"), []byte("after"), 0o644), unix.EROFS)
	})
	assert.Equal(t, []string{volume}, h.volumes())
}

// A snapshot that is still mounted is committed as it is, and nothing written later reaches it.
func TestCommitMounted(t *testing.T) {
	h := testCommitMounted(t, onBtrfs())
	assert.Equal(t, []string{h.volume("image")}, h.volumes())
}

func testCommitMounted(t *testing.T, fs filesystem) *host {
	h := newHostOn(t, fs, Options{})
	dir, unmount := h.mountAt(h.prepare("active", ""))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("before"), 0o644))
	h.commit("image", "active")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("after"), 0o644), "the mount goes on")

	assert.Equal(t, "before", h.content("image", "file"))
	h.in("image", func(dir string) {
		assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "file"), []byte("after"), 0o644), unix.EROFS)
	})
	unmount()
	require.NoError(t, h.Cleanup(t.Context()))
	return h
}

func TestLabels(t *testing.T) {
	h := newHost(t, Options{})
	ctx := t.Context()
	h.prepare("active", "", label("a", "1"))
	info, err := h.Stat(ctx, "active")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"a": "1"}, info.Labels)

	info, err = h.Update(ctx, snapshots.Info{Name: "active", Labels: map[string]string{"b": "2"}})
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"b": "2"}, info.Labels)
	info, err = h.Update(ctx, snapshots.Info{Name: "active", Labels: map[string]string{"c": "3"}}, "labels.c")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"b": "2", "c": "3"}, info.Labels)
	info, err = h.Update(ctx, snapshots.Info{Name: "active"}, "labels")
	require.NoError(t, err)
	assert.Empty(t, info.Labels)

	h.write("active", "file", nil) // the volume is still known
	require.NoError(t, h.Commit(ctx, "image", "active", label("d", "4")))
	require.NoError(t, h.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		assert.Equal(t, map[string]string{"d": "4"}, info.Labels)
		return nil
	}))
	h.prepare("child", "image")
	assert.FileExists(t, filepath.Join(h.dir("child"), "file"))
}

func TestWalkOfNothing(t *testing.T) {
	h := newHost(t, Options{})
	assert.Empty(t, h.keys())
	assert.ErrorIs(t, h.Walk(t.Context(), nil, "no filter("), errdefs.ErrInvalidArgument)
	h.prepare("active", "")
	stop := errors.New("stop")
	assert.ErrorIs(t, h.Walk(t.Context(), func(context.Context, snapshots.Info) error { return stop }), stop)
}

func TestUsage(t *testing.T) {
	for _, mode := range modes {
		for _, inodes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, inodes %t", mode.name, inodes), func(t *testing.T) {
				h := newHost(t, Options{CountInodes: inodes}, mode.opts...)
				h.image("image")
				h.prepare("active", "image")
				require.NoError(t, fill(filepath.Join(h.dir("active"), "file"), 4*mib))
				testfs.Sync(t, h.mnt)
				check := func(key string, size int64) {
					t.Helper()
					testfs.WaitDeleted(t, h.mnt) // classic quotas do not count data that views still share
					usage, err := h.Usage(t.Context(), key)
					require.NoError(t, err)
					assert.InDelta(t, size, usage.Size, mib/2)
					if inodes {
						assert.EqualValues(t, 1, usage.Inodes)
					} else {
						assert.Zero(t, usage.Inodes)
					}
				}
				check("image", mib)
				check("active", 4*mib)
				testfs.WaitDeleted(t, h.mnt)
				h.commit("child", "active")
				check("child", 4*mib)
				check("child", 4*mib)
				h.prepare("grandchild", "child")
				require.NoError(t, fill(filepath.Join(h.dir("grandchild"), "more"), 2*mib))
				testfs.Sync(t, h.mnt)
				check("grandchild", 2*mib)
				check("child", 4*mib) // whatever others share with it
			})
		}
	}
}

func TestIDMapping(t *testing.T) {
	h := newHost(t, Options{})
	t.Cleanup(runtime.GC) // mount.All leaves a descriptor of its child process to it
	h.image("image")
	mapping := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:100000:65536",
		snapshots.LabelSnapshotGIDMapping: "0:200000:65536",
	})
	before := h.state()
	mounts, err := h.Prepare(t.Context(), "active", "image", mapping)
	if detect.IDMappedMounts(h.mnt) != nil {
		assert.ErrorIs(t, err, errdefs.ErrNotImplemented)
		assert.Equal(t, before, h.state())
		return
	}
	require.NoError(t, err)
	again, err := h.Mounts(t.Context(), "active")
	require.NoError(t, err)
	assert.Equal(t, mounts, again)

	dir, unmount := h.mountAt(mounts)
	defer unmount()
	var stat unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(dir, "file"), &stat))
	assert.EqualValues(t, []uint32{100000, 200000}, []uint32{stat.Uid, stat.Gid})
	assert.ErrorIs(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644), unix.EOVERFLOW, "the host's root has no id there")
}

func TestConcurrentClients(t *testing.T) {
	h := newHost(t, Options{DefaultLimit: quota.Limit{Bytes: 64 * mib}}, testfs.WithSimpleQuota())
	h.image("image")
	before := h.keys()
	var clients sync.WaitGroup
	for client := range 16 {
		clients.Go(func() {
			for round := range 5 {
				if err := oneRound(h, fmt.Sprintf("%d-%d", client, round)); err != nil {
					t.Errorf("client %d, round %d: %v", client, round, err)
					return
				}
			}
		})
	}
	clients.Wait()
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Equal(t, before, h.keys())
	assert.Len(t, h.volumes(), 1)
}

func oneRound(h *host, id string) error {
	ctx := context.Background()
	if _, err := h.Prepare(ctx, "a"+id, "image"); err != nil {
		return err
	}
	volume, err := h.Volume(ctx, "a"+id)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(h.path(volume), "new"), []byte(id), 0o644); err != nil {
		return err
	}
	if _, err := h.Usage(ctx, "a"+id); err != nil {
		return err
	}
	if err := h.Commit(ctx, "c"+id, "a"+id); err != nil {
		return err
	}
	if _, err := h.View(ctx, "v"+id, "c"+id); err != nil {
		return err
	}
	if err := h.Remove(ctx, "c"+id); !errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("remove parent: %w", err)
	}
	for _, key := range []string{"v" + id, "c" + id} {
		if err := h.Remove(ctx, key); err != nil {
			return err
		}
	}
	return h.Cleanup(ctx)
}

// Of several clients that want the same, one gets it and nothing is left of the attempts of the others.
func TestRaces(t *testing.T) {
	h := newHost(t, Options{})
	h.image("image")
	race := func(do func(i int) error) (won int) {
		t.Helper()
		errs := make([]error, 8)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = do(i) })
		}
		wg.Wait()
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			assert.True(t, errdefs.IsAlreadyExists(err) || errdefs.IsNotFound(err) || errdefs.IsAborted(err), "%v", err)
		}
		return won
	}
	assert.Equal(t, 1, race(func(int) error { _, err := h.Prepare(t.Context(), "key", "image"); return err }))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 2)
	assert.Equal(t, 1, race(func(i int) error { return h.Commit(t.Context(), fmt.Sprint("name-", i), "key") }))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 2)
	for i := range 8 {
		h.prepare(fmt.Sprint("key-", i), "image")
	}
	assert.Equal(t, 1, race(func(i int) error { return h.Commit(t.Context(), "name", fmt.Sprint("key-", i)) }))
	require.NoError(t, h.Cleanup(t.Context()))
	assert.Len(t, h.volumes(), 10)
	for i := range 8 { // those that lost can be written to
		key := fmt.Sprint("key-", i)
		if _, err := h.Stat(t.Context(), key); err == nil {
			h.write(key, "file", nil)
		}
	}
	assert.Equal(t, 1, race(func(int) error { return h.Remove(t.Context(), "name") }))
}
