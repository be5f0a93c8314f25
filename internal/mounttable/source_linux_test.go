package mounttable

import (
	"bufio"
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/overlaysource"
	"github.com/cowshed/cowshed/internal/testfs"
)

// Volumes that the sources in these tests name.
const (
	ours   overlaysource.Volume = 0xa11
	theirs overlaysource.Volume = 0xb22
)

// homes are two filesystems with a volume of the same name.
type homes struct {
	t           *testing.T
	ours, other string // mount points
}

func newHomes(t *testing.T) homes {
	t.Helper()
	h := homes{t, t.TempDir(), t.TempDir()}
	for _, dir := range []string{h.ours, h.other} {
		h.mount("home", dir, "tmpfs", 0, "")
		require.NoError(t, os.MkdirAll(dir+"/subvolumes/web/upper", 0o755))
		require.NoError(t, os.MkdirAll(dir+"/subvolumes/image", 0o755))
	}
	return h
}

// mount mounts something privately until the test ends.
func (h homes) mount(source, at, fsType string, flags uintptr, data string) {
	h.t.Helper()
	require.NoError(h.t, unix.Mount(source, at, fsType, flags, data))
	h.t.Cleanup(func() { assert.NoError(h.t, unix.Unmount(at, unix.MNT_DETACH)) })
	require.NoError(h.t, unix.Mount("", at, "", unix.MS_PRIVATE, ""))
}

// layers are the options of an overlay of the volume in a home.
func layers(home string) string {
	return "lowerdir=" + home + "/subvolumes/web/upper:" + home + "/subvolumes/image"
}

// users lists the overlays that use the volume of our home, with each way to find mounts: the same with each.
func (h homes) users(names func(overlaysource.Source) bool) (points []string) {
	h.t.Helper()
	dir, err := os.Open(h.ours)
	require.NoError(h.t, err)
	defer dir.Close()
	fs, err := New(int(dir.Fd()))
	require.NoError(h.t, err)
	withoutSources := &Filesystem{device: fs.device, noSources: true}
	var before []string
	for i, fs := range []*Filesystem{fs, fs, withoutSources, fs.ByProc()} {
		uses, err := fs.UsesOf("/subvolumes/web", names)
		require.NoError(h.t, err)
		points = nil
		var described []string
		for _, use := range uses {
			points, described = append(points, use.Mountpoint), append(described, use.String())
		}
		if i > 0 {
			assert.ElementsMatch(h.t, before, described, "way %d", i)
		}
		before = described
	}
	return points
}

func source(upper, lower overlaysource.Volume) string {
	return overlaysource.Source{Upper: upper, Lower: lower, Name: "web"}.String()
}

// TestSourceOfOverlay: the source of an overlay says that it uses a volume, or that it does not although its paths end like the
// volume's. A source that lies can only add a use.
func TestSourceOfOverlay(t *testing.T) {
	for name, c := range map[string]struct {
		source string
		ofOurs bool // the layers are those of our home
		known  bool // our volume is known
		uses   bool
	}{
		"ours":                        {source(ours, theirs), true, true, true},
		"ours as the lower":           {source(theirs, ours), true, true, true},
		"ours of a former version":    {"web", true, true, true},
		"ours and the source lies":    {source(theirs, theirs), true, true, true},
		"ours without a volume":       {source(theirs, theirs), true, false, true},
		"foreign":                     {source(theirs, theirs), false, true, false},
		"foreign without a volume":    {source(theirs, theirs), false, false, true},
		"foreign of a former version": {"web", false, true, true},
		"foreign by an admin":         {"overlay", false, true, true},
		"foreign with no source":      {"", false, true, true},
		"foreign and the source lies": {source(ours, theirs), false, true, true},
		"escaped space of ours":       {source(ours, theirs) + " x", false, true, true},
		"escaped space":               {source(theirs, theirs) + " x", false, true, false},
		"escaped slash":               {`cowshed\057b22-b22/web`, false, true, true},
		"escaped newline":             {"cowshed/b22-b22\n/web", false, true, true},
		"escaped in front":            {"\t" + source(theirs, theirs), false, true, true},
		"hash":                        {"#" + source(theirs, theirs), false, true, true},
		"ours after a newline":        {"x\n" + source(theirs, theirs), true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHomes(t)
			home := h.other
			if c.ofOurs {
				home = h.ours
			}
			at := t.TempDir()
			h.mount(c.source, at, "overlay", 0, layers(home))
			var names func(overlaysource.Source) bool
			if c.known {
				names = func(s overlaysource.Source) bool { return s.Has(ours) }
			}
			var want []string
			if c.uses {
				want = []string{at}
			}
			assert.ElementsMatch(t, want, h.users(names))
		})
	}
}

// TestSourceWithoutPath: the source tells the use that no path tells, since the mount that the layers were given by is gone.
func TestSourceWithoutPath(t *testing.T) {
	h := newHomes(t)
	bound, at := t.TempDir(), t.TempDir()
	require.NoError(t, unix.Mount(h.ours+"/subvolumes/web", bound, "", unix.MS_BIND, ""))
	h.mount(source(ours, theirs), at, "overlay", 0, "lowerdir="+bound+":"+h.other)
	require.NoError(t, unix.Unmount(bound, 0))
	dir, err := os.Open(h.ours)
	require.NoError(t, err)
	defer dir.Close()
	fs, err := New(int(dir.Fd()))
	require.NoError(t, err)
	for _, fs := range []*Filesystem{fs, {device: fs.device, noSources: true}, fs.ByProc()} {
		uses, err := fs.UsesOf("/subvolumes/web", func(s overlaysource.Source) bool { return s.Upper == ours })
		require.NoError(t, err)
		require.Len(t, uses, 1)
		assert.Contains(t, uses[0].String(), "a layer (cowshed/a11-b22/web) of the overlay mounted on "+at)
	}
}

// TestSourceInUserNamespace: the source of an overlay in another user namespace may lie. So it does not stand for the
// comparison of paths.
func TestSourceInUserNamespace(t *testing.T) {
	h := newHomes(t)
	at := t.TempDir()
	command := exec.CommandContext(t.Context(), "unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-ec",
		`cd /; mount -t overlay "$0" -o "$1" "$2"; echo ready; read wait`, source(theirs, theirs), layers(h.other), at)
	command.Stderr = os.Stderr
	_, err := command.StdinPipe() // read waits
	require.NoError(t, err)
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	testfs.Start(t, command)
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	assert.Equal(t, []string{at}, h.users(func(s overlaysource.Source) bool { return s.Has(ours) }))
}
