package detect

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// The states below are in the words of OpenZFS 2.1 to 2.3.
const (
	wellPool    = "health\tONLINE\nreadonly\toff\n"
	wellDataset = "type\tfilesystem\nmounted\tyes\nreadonly\toff\nkeystatus\t-\nzoned\toff\n"
)

func TestZFSDataset(t *testing.T) {
	well := func() map[string]string {
		return map[string]string{
			"filesystems": "nodev\tproc\nnodev\tzfs\n", "device": "", "commands": "zfs zpool",
			"pool": wellPool, "dataset": wellDataset, "privilege": "initial admin",
		}
	}
	for name, c := range map[string]struct {
		change map[string]string // of the host
		want   error
		reason string
	}{
		"well":                   {},
		"degraded":               {change: map[string]string{"pool": "health\tDEGRADED\nreadonly\toff\n"}},
		"encrypted, key loaded":  {change: map[string]string{"dataset": strings.Replace(wellDataset, "keystatus\t-", "keystatus\tavailable", 1)}},
		"no module":              {map[string]string{"filesystems": "nodev\tproc\n"}, graphdriver.ErrPrerequisites, `run "modprobe zfs"`},
		"no device":              {map[string]string{"device": "missing"}, graphdriver.ErrPrerequisites, "device is missing: in a container, pass the device in"},
		"unknown version":        {map[string]string{"version": "9.9"}, graphdriver.ErrPrerequisites, "OpenZFS 9.9"},
		"no command":             {map[string]string{"commands": "zpool"}, graphdriver.ErrPrerequisites, "the command zfs is missing: install the package"},
		"no zpool command":       {map[string]string{"commands": "zfs"}, graphdriver.ErrPrerequisites, "the command zpool is missing"},
		"no pool":                {map[string]string{"pool": ""}, graphdriver.ErrIncompatibleFS, "cannot ask for the state of the pool tank"},
		"suspended":              {map[string]string{"pool": "health\tSUSPENDED\nreadonly\toff\n"}, graphdriver.ErrIncompatibleFS, `run "zpool clear tank"`},
		"faulted":                {map[string]string{"pool": "health\tFAULTED\nreadonly\toff\n"}, graphdriver.ErrIncompatibleFS, `the pool tank is FAULTED: "zpool status tank"`},
		"unavailable":            {map[string]string{"pool": "health\tUNAVAIL\nreadonly\toff\n"}, graphdriver.ErrIncompatibleFS, "tank is UNAVAIL"},
		"read-only pool":         {map[string]string{"pool": "health\tONLINE\nreadonly\ton\n"}, graphdriver.ErrIncompatibleFS, `imported read-only: run "zpool export tank"`},
		"no dataset":             {map[string]string{"dataset": ""}, graphdriver.ErrIncompatibleFS, `"zfs create tank/layers" makes it`},
		"volume":                 {map[string]string{"dataset": "type\tvolume\nmounted\t-\nreadonly\toff\nkeystatus\t-\nzoned\t-\n"}, graphdriver.ErrIncompatibleFS, "tank/layers is a volume: choose a filesystem"},
		"key not loaded":         {map[string]string{"dataset": "type\tfilesystem\nmounted\tno\nreadonly\toff\nkeystatus\tunavailable\nzoned\toff\n"}, graphdriver.ErrIncompatibleFS, `run "zfs load-key tank/layers"`},
		"not mounted":            {map[string]string{"dataset": strings.Replace(wellDataset, "mounted\tyes", "mounted\tno", 1)}, graphdriver.ErrIncompatibleFS, `run "zfs mount tank/layers"`},
		"read-only dataset":      {map[string]string{"dataset": strings.Replace(wellDataset, "readonly\toff", "readonly\ton", 1)}, graphdriver.ErrIncompatibleFS, `run "zfs set readonly=off tank/layers"`},
		"no capability":          {map[string]string{"privilege": "initial"}, graphdriver.ErrIncompatibleFS, `lacks CAP_SYS_ADMIN, without which no dataset can be mounted on Linux, whatever "zfs allow" delegates`},
		"nested namespace":       {map[string]string{"privilege": "admin"}, graphdriver.ErrIncompatibleFS, `"zfs zone /proc/PID/ns/user tank/layers"`},
		"zoned":                  {map[string]string{"dataset": strings.Replace(wellDataset, "zoned\toff", "zoned\ton", 1)}, graphdriver.ErrIncompatibleFS, "handed to a user namespace"},
		"zoned in its namespace": {change: map[string]string{"privilege": "admin", "dataset": strings.Replace(wellDataset, "zoned\toff", "zoned\ton", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			state := well()
			for part, value := range c.change {
				state[part] = value
			}
			err := fakeZFS(t, state).check(t.Context(), "tank/layers")
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, c.want)
			assert.ErrorContains(t, err, c.reason)
		})
	}

	// An unreadable value is not taken for an answer.
	for part, value := range map[string]string{
		"pool":      "health ONLINE\n",
		"dataset":   "type\tfilesystem\n",
		"privilege": "unknown",
	} {
		state := well()
		state[part] = value
		err := fakeZFS(t, state).check(t.Context(), "tank/layers")
		require.Error(t, err, part)
		assert.False(t, graphdriver.IsDriverNotSupported(err), "%s: %v", part, err)
	}
}

// fakeZFS is a host with ZFS in a state that real ones are hard to bring into.
func fakeZFS(t *testing.T, state map[string]string) zfsHost {
	t.Helper()
	dir := t.TempDir()
	h := zfsHost{filesystems: filepath.Join(dir, "filesystems"), device: filepath.Join(dir, "device")}
	h.version = func() error {
		if state["version"] != "" {
			return errors.New("OpenZFS " + state["version"])
		}
		return nil
	}
	require.NoError(t, os.WriteFile(h.filesystems, []byte(state["filesystems"]), 0o600))
	if state["device"] != "missing" {
		require.NoError(t, os.WriteFile(h.device, nil, 0o600))
	}
	h.lookPath = func(command string) (string, error) {
		for have := range strings.FieldsSeq(state["commands"]) {
			if have == command {
				return command, nil
			}
		}
		return "", exec.ErrNotFound
	}
	h.run = func(_ context.Context, command string, args ...string) ([]byte, error) {
		part, name := "pool", "tank"
		if command == "zfs" {
			part, name = "dataset", "tank/layers"
		}
		require.Equal(t, name, args[len(args)-1])
		if state[part] == "" {
			return nil, errors.New(command + ": no such thing")
		}
		return []byte(state[part]), nil
	}
	h.privilege = func() (zfsPrivilege, error) {
		p := zfsPrivilege{
			initialNamespace: strings.Contains(state["privilege"], "initial"),
			sysAdmin:         strings.Contains(state["privilege"], "admin"),
		}
		if state["privilege"] == "unknown" {
			return p, errors.New("unknown")
		}
		return p, nil
	}
	return h
}

func TestParseProperties(t *testing.T) {
	p, err := parseProperties([]byte("type\tfilesystem\nmountpoint\t/a\tb\ncomment\t\n"), "type", "comment")
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"type": "filesystem", "mountpoint": "/a\tb", "comment": ""}, p)

	p, err = parseProperties(nil)
	require.NoError(t, err)
	assert.Empty(t, p)

	_, err = parseProperties([]byte("type filesystem\n"))
	require.ErrorContains(t, err, "no tab")
	_, err = parseProperties([]byte("type\tfilesystem\n"), "mounted")
	require.ErrorContains(t, err, "no property mounted")
}

func FuzzParseProperties(f *testing.F) {
	for _, s := range []string{wellPool, wellDataset, "", "\t", "\n", "a\tb", "a\tb\n\n", "type\tfilesystem\nmountpoint\t/a\tb\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		if properties, err := parseProperties(out, "type"); err == nil {
			require.Contains(t, properties, "type")
		}
		_, _ = parsePool(out)
		_, _ = parseDataset(out)
	})
}

func TestZFSElsewhere(t *testing.T) {
	err := ZFS(t.Context(), "/proc/self")
	require.ErrorIs(t, err, graphdriver.ErrPrerequisites)
	assert.ErrorContains(t, err, "/proc/self is on proc (proc, mounted on /proc), not on ZFS")
}

func TestRunCommand(t *testing.T) {
	out, err := runCommand(t.Context(), "sh", "-c", "echo out; echo err >&2")
	require.NoError(t, err)
	assert.Equal(t, "out\n", string(out))
	_, err = runCommand(t.Context(), "sh", "-c", "echo why >&2; exit 3")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.ErrorContains(t, err, "exit status 3: why")
	_, err = runCommand(t.Context(), "no-such-command-of-cowshed")
	require.ErrorIs(t, err, exec.ErrNotFound)
}

// TestZFSReal asks a real pool.
func TestZFSReal(t *testing.T) {
	dataset, dir := testfs.ZFS(t)
	zfs := func(args ...string) {
		t.Helper()
		_, err := runCommand(t.Context(), "zfs", args...)
		require.NoError(t, err)
	}
	require.NoError(t, ZFS(t.Context(), dir))
	require.NoError(t, ZFS(t.Context(), filepath.Join(dir, "not/made/yet")))
	require.NoError(t, ZFSDataset(t.Context(), dataset))
	f, err := Probe(dir)
	require.NoError(t, err)
	assert.Equal(t, []string{"zfs", dataset}, []string{f.Type, f.Source})

	require.ErrorIs(t, ZFSDataset(t.Context(), dataset+"/absent"), graphdriver.ErrIncompatibleFS)
	require.ErrorIs(t, ZFSDataset(t.Context(), "no-such-pool/a"), graphdriver.ErrIncompatibleFS)

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
