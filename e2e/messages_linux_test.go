package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/faulttest"
	"github.com/cowshed/cowshed/quota"
	"github.com/cowshed/cowshed/snapshotter"
)

// TestMessages has operations fail through the graph driver and the snapshotter: each message says each thing once.
func TestMessages(t *testing.T) {
	inEachOwn(t, func(t *testing.T, s system) {
		root := s.root(t)
		d := s.open(t, root, user.IdentityMapping{})
		require.NoError(t, d.Create("base", "", nil))
		require.NoError(t, d.Create("child", "base", nil))
		_, err := d.Get("child", "")
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, d.Put("child")) })
		failing := driverFailures(t.Context(), d)
		for operation, err := range failing {
			t.Run(operation, func(t *testing.T) { checkMessage(t, err) })
		}
		message := failing["create what is there"].Error()
		assert.True(t, strings.HasPrefix(message, `create layer "base": already exists`), message)

		sn, err := snapshotter.New(t.Context(), t.TempDir(), backendOf(t, s, root), snapshotter.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, sn.Close()) })
		for operation, err := range snapshotFailures(t, sn) {
			t.Run(operation, func(t *testing.T) { checkMessage(t, err) })
		}
	})
}

func checkMessage(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	t.Log(err)
	faulttest.SaidOnce(t, err.Error())
}

// backendOf opens a second home for the snapshotter, beside the graph driver's.
func backendOf(t *testing.T, s system, root string) cowcommon.Backend {
	t.Helper()
	d, err := s.tryOpen(s.besides(t, root), user.IdentityMapping{})
	require.NoError(t, err)
	return d.Backend()
}

func driverFailures(ctx context.Context, d *cowdriver.Driver) map[string]error {
	second := func(_ any, err error) error { return err }
	sized := func(size string) *graphdriver.CreateOpts {
		return &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": size}}
	}
	backend := d.Backend()
	return map[string]error{
		"create what is there":       d.Create("base", "", nil),
		"create without parent":      d.Create("new", "absent", nil),
		"create the child again":     d.Create("child", "base", nil),
		"create with a bad id":       d.Create("no/id", "", nil),
		"create with a bad parent":   d.Create("new", "no/id", nil),
		"create with a bad size":     d.Create("new", "", sized("-1")),
		"create with another option": d.Create("new", "", &graphdriver.CreateOpts{StorageOpt: map[string]string{"x": "y"}}),
		"remove what is held":        d.Remove("child"),
		"remove a bad id":            d.Remove(".."),
		"get what is absent":         second(d.Get("absent", "")),
		"describe what is absent":    second(d.GetMetadata("absent")),
		"diff what is absent":        second(d.Diff("absent", "base")),
		"diff with an absent parent": second(d.Diff("child", "absent")),
		"changes of what is absent":  second(d.Changes("absent", "")),
		"size of what is absent":     second(d.DiffSize("absent", "base")),
		"files of what is absent":    second(d.DiffGetter("absent")),
		"apply to what is sealed":    second(d.ApplyDiff("base", "", strings.NewReader(""))),
		"apply to what is absent":    second(d.ApplyDiff("absent", "", strings.NewReader(""))),
		"apply no tar":               second(d.ApplyDiff("child", "base", strings.NewReader(strings.Repeat("x", 1024)))),
		"usage of what is absent":    second(d.Usage(ctx, "absent")),
		"limit what is absent":       d.SetLimit(ctx, "absent", 1<<30),
		"seal what is held":          cowcommon.Seal(ctx, backend, "child"),
		"seal what is absent":        cowcommon.Seal(ctx, backend, "absent"),
		"rename to what is there":    cowcommon.Rename(ctx, backend, "child", "base"),
		"rename what is held":        cowcommon.Rename(ctx, backend, "child", "other"),
		"keep what is sealed":        second(cowcommon.Keep(ctx, backend, "base")),
		"sync what is absent":        backend.Sync(ctx, "absent"),
		"view what is absent":        second(backend.View(ctx, "absent")),
		"receive nothing":            cowcommon.Receive(ctx, backend, "received", "", strings.NewReader("")),
		"clone where it is there":    backend.Clone(ctx, "child", "base", cowcommon.VolumeOptions{}),
		"limit with too little":      cowcommon.SetLimit(ctx, cowcommon.ReadOnly(backend, assert.AnError), "child", quota.Limit{}),
		"create where it is read":    cowcommon.ReadOnly(backend, assert.AnError).Create(ctx, "new", cowcommon.VolumeOptions{}),
	}
}

func snapshotFailures(t *testing.T, sn *snapshotter.Snapshotter) map[string]error {
	t.Helper()
	ctx := t.Context()
	second := func(_ any, err error) error { return err }
	_, err := sn.Prepare(ctx, "unpack", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "image", "unpack"))
	_, err = sn.Prepare(ctx, "active", "image")
	require.NoError(t, err)
	tooBig := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: "big"})
	return map[string]error{
		"prepare what is there":     second(sn.Prepare(ctx, "active", "image")),
		"prepare on what is absent": second(sn.Prepare(ctx, "new", "absent")),
		"prepare on an active one":  second(sn.Prepare(ctx, "new", "active")),
		"prepare with a bad label":  second(sn.Prepare(ctx, "new", "image", tooBig)),
		"prepare without a key":     second(sn.Prepare(ctx, "", "image")),
		"view what is absent":       second(sn.View(ctx, "view", "absent")),
		"commit what is absent":     sn.Commit(ctx, "new", "absent"),
		"commit to what is there":   sn.Commit(ctx, "image", "active"),
		"commit what is committed":  sn.Commit(ctx, "new", "image"),
		"mounts of a committed":     second(sn.Mounts(ctx, "image")),
		"mounts of what is absent":  second(sn.Mounts(ctx, "absent")),
		"remove what is absent":     sn.Remove(ctx, "absent"),
		"remove a parent":           sn.Remove(ctx, "image"),
		"stat what is absent":       second(sn.Stat(ctx, "absent")),
		"usage of what is absent":   second(sn.Usage(ctx, "absent")),
		"update what is absent":     second(sn.Update(ctx, snapshots.Info{Name: "absent"})),
		"restore what is not lost":  sn.Restore(ctx, "absent", ""),
		"discard what is not lost":  sn.Discard(ctx, "absent"),
	}
}

// besides is a second root of a system on the filesystem of the first.
func (s system) besides(t testing.TB, root string) string {
	t.Helper()
	if s.driver == "zfs" {
		return s.root(t)
	}
	return filepath.Join(root, "containers")
}
