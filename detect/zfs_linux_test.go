package detect

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

func TestZFSDataset(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fakeHost)
		want   error
		reason string
	}{
		"well":                   {},
		"degraded":               {change: func(h *fakeHost) { h.health = "DEGRADED" }},
		"no module":              {func(h *fakeHost) { h.filesystems = "nodev\tproc\n" }, graphdriver.ErrPrerequisites, `run "modprobe zfs"`},
		"no device":              {func(h *fakeHost) { h.noDevice = true }, graphdriver.ErrPrerequisites, "device is missing: in a container, pass the device in"},
		"unknown version":        {func(h *fakeHost) { h.version = errors.New("OpenZFS 9.9") }, graphdriver.ErrPrerequisites, "OpenZFS 9.9"},
		"unknown interface":      {func(h *fakeHost) { h.asked = errdefs.ErrFailedPrecondition }, graphdriver.ErrPrerequisites, ""},
		"no pool":                {func(h *fakeHost) { h.noPool = fs.ErrNotExist }, graphdriver.ErrIncompatibleFS, "there is no pool tank"},
		"suspended":              {func(h *fakeHost) { h.health = "SUSPENDED" }, graphdriver.ErrIncompatibleFS, `run "zpool clear tank"`},
		"faulted":                {func(h *fakeHost) { h.health = "FAULTED" }, graphdriver.ErrIncompatibleFS, `the pool tank is FAULTED: "zpool status tank"`},
		"unavailable":            {func(h *fakeHost) { h.health = "UNAVAIL" }, graphdriver.ErrIncompatibleFS, "tank is UNAVAIL"},
		"read-only pool":         {func(h *fakeHost) { h.facts.poolReadOnly = true }, graphdriver.ErrIncompatibleFS, `imported read-only: run "zpool export tank"`},
		"no dataset":             {func(h *fakeHost) { h.asked = unix.ENOENT }, graphdriver.ErrIncompatibleFS, `"zfs create tank/layers" makes it`},
		"volume":                 {func(h *fakeHost) { h.facts.kind = "volume" }, graphdriver.ErrIncompatibleFS, "tank/layers is a volume: choose a filesystem"},
		"key not loaded":         {func(h *fakeHost) { h.facts.keyUnavailable, h.facts.mounted = true, false }, graphdriver.ErrIncompatibleFS, `run "zfs load-key tank/layers"`},
		"not mounted":            {func(h *fakeHost) { h.facts.mounted = false }, graphdriver.ErrIncompatibleFS, `run "zfs mount tank/layers"`},
		"read-only dataset":      {func(h *fakeHost) { h.facts.readOnly = true }, graphdriver.ErrIncompatibleFS, `run "zfs set readonly=off tank/layers"`},
		"no capability":          {func(h *fakeHost) { h.privilege.sysAdmin = false }, graphdriver.ErrIncompatibleFS, `lacks CAP_SYS_ADMIN, without which no dataset can be mounted on Linux, whatever "zfs allow" delegates`},
		"nested namespace":       {func(h *fakeHost) { h.privilege.initialNamespace = false }, graphdriver.ErrIncompatibleFS, `"zfs zone /proc/PID/ns/user tank/layers"`},
		"zoned":                  {func(h *fakeHost) { h.facts.zoned = true }, graphdriver.ErrIncompatibleFS, "handed to a user namespace"},
		"zoned in its namespace": {change: func(h *fakeHost) { h.facts.zoned, h.privilege.initialNamespace = true, false }},
		"no answer":              {func(h *fakeHost) { h.asked = errdefs.ErrUnavailable }, errdefs.ErrUnavailable, "state of the dataset tank/layers"},
		"no privilege known":     {func(h *fakeHost) { h.noPrivilege = errUnknown }, errUnknown, ""},
		"no health known":        {func(h *fakeHost) { h.noPool = errUnknown }, errUnknown, "state of the pool tank"},
	} {
		t.Run(name, func(t *testing.T) {
			h := fakeHost{filesystems: "nodev\tproc\nnodev\tzfs\n", health: "ONLINE", facts: facts{kind: "filesystem", mounted: true}}
			h.privilege.initialNamespace, h.privilege.sysAdmin = true, true
			if c.change != nil {
				c.change(&h)
			}
			err := h.host(t).check(t.Context(), "tank/layers")
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.reason)
			isReason := errors.Is(c.want, graphdriver.ErrPrerequisites) || errors.Is(c.want, graphdriver.ErrIncompatibleFS)
			assert.Equal(t, isReason, graphdriver.IsDriverNotSupported(err), "what is not known is no answer")
		})
	}
}

var errUnknown = errors.New("unknown")

// fakeHost is a host with ZFS in a state that real ones are hard to bring into.
type fakeHost struct {
	filesystems string
	noDevice    bool
	version     error
	health      string
	noPool      error
	facts       facts
	asked       error
	privilege   zfsPrivilege
	noPrivilege error
}

func (f fakeHost) host(t *testing.T) zfsHost {
	t.Helper()
	dir := t.TempDir()
	h := zfsHost{filesystems: filepath.Join(dir, "filesystems"), device: filepath.Join(dir, "device")}
	require.NoError(t, os.WriteFile(h.filesystems, []byte(f.filesystems), 0o600))
	if !f.noDevice {
		require.NoError(t, os.WriteFile(h.device, nil, 0o600))
	}
	h.version = func() error { return f.version }
	h.pool = func(pool string) (string, error) {
		assert.Equal(t, "tank", pool)
		return f.health, f.noPool
	}
	h.ask = func(_ context.Context, name string) (facts, error) {
		assert.Equal(t, "tank/layers", name)
		return f.facts, f.asked
	}
	h.privilege = func() (zfsPrivilege, error) { return f.privilege, f.noPrivilege }
	return h
}

// TestDescribeZFS: the kernel leaves out properties that have their default.
func TestDescribeZFS(t *testing.T) {
	set := func(name string, n uint64) zfsctl.Properties {
		return zfsctl.Properties{name: nvlist.List{"value": n}}
	}
	for name, c := range map[string]struct {
		pool zfsctl.Properties
		from zfsctl.Dataset
		want facts
	}{
		"defaults":       {nil, zfsctl.Dataset{Type: zfsctl.Filesystem}, facts{kind: "filesystem"}},
		"volume":         {nil, zfsctl.Dataset{Type: zfsctl.Volume}, facts{kind: "volume"}},
		"snapshot":       {nil, zfsctl.Dataset{Type: zfsctl.Filesystem, IsSnapshot: true}, facts{kind: "snapshot"}},
		"other":          {nil, zfsctl.Dataset{Type: 9}, facts{kind: "dataset of type 9"}},
		"pool read-only": {set("readonly", 1), zfsctl.Dataset{Type: zfsctl.Filesystem}, facts{kind: "filesystem", poolReadOnly: true}},
		"read-only":      {set("readonly", 0), zfsctl.Dataset{Type: zfsctl.Filesystem, Properties: set("readonly", 1)}, facts{kind: "filesystem", readOnly: true}},
		"zoned":          {nil, zfsctl.Dataset{Type: zfsctl.Filesystem, Properties: set("zoned", 1)}, facts{kind: "filesystem", zoned: true}},
		"locked":         {nil, zfsctl.Dataset{Type: zfsctl.Filesystem, Properties: set("keystatus", 1)}, facts{kind: "filesystem", keyUnavailable: true}},
		"unlocked":       {nil, zfsctl.Dataset{Type: zfsctl.Filesystem, Properties: set("keystatus", 2)}, facts{kind: "filesystem"}},
	} {
		assert.Equal(t, c.want, describeZFS(c.pool, c.from), name)
	}
}

// TestAnswerWithin: nobody waits for a kernel that does not answer.
func TestAnswerWithin(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	stuck := func() (int, error) { <-end; return 1, nil }
	_, err := within(t.Context(), time.Millisecond, stuck)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "has not answered for 1ms")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = within(ctx, time.Hour, stuck)
	require.ErrorIs(t, err, context.Canceled)
	got, err := within(t.Context(), time.Hour, func() (int, error) { return 2, errUnknown })
	require.ErrorIs(t, err, errUnknown)
	assert.Equal(t, 2, got)
}

func TestZFSElsewhere(t *testing.T) {
	err := ZFS(t.Context(), "/proc/self")
	require.ErrorIs(t, err, graphdriver.ErrPrerequisites)
	assert.ErrorContains(t, err, "/proc/self is on proc (proc, mounted on /proc), not on ZFS")
}

// TestZFSReal asks a real pool.
func TestZFSReal(t *testing.T) {
	dataset, dir := testfs.ZFS(t)
	zfs := func(args ...string) {
		t.Helper()
		out, err := exec.Command("zfs", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	require.NoError(t, ZFS(t.Context(), dir))
	require.NoError(t, ZFS(t.Context(), filepath.Join(dir, "not/made/yet")))
	require.NoError(t, ZFSDataset(t.Context(), dataset))
	f, err := Probe(dir)
	require.NoError(t, err)
	assert.Equal(t, []string{"zfs", dataset}, []string{f.Type, f.Source})

	require.ErrorIs(t, ZFSDataset(t.Context(), dataset+"/absent"), graphdriver.ErrIncompatibleFS)
	require.ErrorIs(t, ZFSDataset(t.Context(), "no-such-pool/a"), graphdriver.ErrIncompatibleFS)
	zfs("snapshot", dataset+"@s")
	require.ErrorContains(t, ZFSDataset(t.Context(), dataset+"@s"), "is a snapshot")

	zfs("set", "readonly=on", dataset)
	err = ZFS(t.Context(), dir)
	require.ErrorIs(t, err, graphdriver.ErrIncompatibleFS)
	assert.ErrorContains(t, err, "zfs set readonly=off "+dataset)
	zfs("set", "readonly=off", dataset)

	zfs("create", "-V", "1m", dataset+"/volume")
	require.ErrorContains(t, ZFSDataset(t.Context(), dataset+"/volume"), "is a volume")
	zfs("create", "-o", "canmount=noauto", dataset+"/unmounted")
	require.ErrorContains(t, ZFSDataset(t.Context(), dataset+"/unmounted"), "zfs mount "+dataset+"/unmounted")

	key := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600))
	zfs("create", "-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file://"+key, dataset+"/encrypted")
	require.NoError(t, ZFSDataset(t.Context(), dataset+"/encrypted"))
	zfs("unmount", dataset+"/encrypted")
	zfs("unload-key", dataset+"/encrypted")
	require.ErrorContains(t, ZFSDataset(t.Context(), dataset+"/encrypted"), "zfs load-key "+dataset+"/encrypted")
}
