package equivalence

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// difference is one between Cowshed and a peer, of a tar that each has applied.
type difference struct {
	peer string
	// One of them is set.
	mine, theirs error  // only Cowshed, or only the peer, refuses the tar
	tree         string // a line of treecmp.Diff with the trees of Cowshed and of the peer
	path         string // that it is about
}

func (d difference) String() string {
	switch {
	case d.mine != nil:
		return fmt.Sprintf("cowshed alone refuses it, not %s: %v", d.peer, d.mine)
	case d.theirs != nil:
		return fmt.Sprintf("%s refuses it, not cowshed: %v", d.peer, d.theirs)
	}
	return fmt.Sprintf("cowshed and %s: %s", d.peer, d.tree)
}

// compareTars compares what Cowshed and its peers make of the tars that find finds, applied to an empty tree and then
// once more. It fails unless each difference is reviewed and each review of short tars, or all, is needed.
func compareTars(t *testing.T, find func(f *finder)) {
	mnt := testfs.Btrfs(t, testfs.WithSize(4<<30))
	counts := make(map[string]int)
	number := 0
	f := &finder{seen: make(map[[32]byte]bool)}
	f.found = func(s sample) {
		number++
		hdrs := headersOf(s.data)
		for _, d := range compareTar(t, mnt, s, hdrs) {
			if r := reviewOf(d, s, hdrs); r != nil {
				counts[r.name]++
			} else {
				t.Errorf("%s: %v", s.name, d)
			}
		}
	}
	find(f)
	t.Logf("%d tars compared, skipped for their size: %q, differences: %v", number, f.skipped, counts)
	for _, r := range reviews {
		if counts[r.name] == 0 && (!r.long || testfs.Long()) {
			t.Errorf("no tar needs the review %q any more: remove it", r.name)
		}
	}
}

// compareTar applies a tar with Cowshed and its peers, twice, and returns the differences.
func compareTar(t *testing.T, mnt string, s sample, hdrs []*tar.Header) []difference {
	t.Helper()
	// What is outside of a tree is in reach of a hostile tar: the volume around it, and the host.
	jail := filepath.Join(mnt, "jail")
	require.NoError(t, os.Mkdir(jail, 0o755))
	defer func() { require.NoError(t, os.RemoveAll(jail)) }()
	outside := append([]string{jail}, reach(hdrs)...)
	require.NoError(t, os.WriteFile(filepath.Join(jail, "f"), []byte("outside"), 0o600))
	all := append([]tool{cowshed}, tarPeers...)
	for _, p := range all {
		require.NoError(t, os.Mkdir(filepath.Join(jail, p.name), 0o755))
	}

	for _, empty := range []bool{true, false} {
		errs := make(map[string]error)
		for _, p := range all {
			dir := filepath.Join(jail, p.name)
			before := states(outside)
			errs[p.name] = p.apply(t.Context(), dir, bytes.NewReader(s.data), empty)
			require.Equal(t, before, states(outside), "%s: %s has changed what is outside of the tree", s.name, p.name)
			settle(t, dir)
		}
		diffs := differencesIn(t, jail, errs)
		if len(diffs) > 0 || errs[cowshed.name] != nil {
			return diffs
		}
	}
	return nil
}

// differences compares the trees, and the errors, of the tools.
func differencesIn(t *testing.T, jail string, errs map[string]error) []difference {
	t.Helper()
	var diffs []difference
	mine := errs[cowshed.name]
	for _, p := range tarPeers {
		theirs := errs[p.name]
		switch {
		case mine != nil && theirs != nil:
		case mine != nil || theirs != nil:
			diffs = append(diffs, difference{peer: p.name, mine: mine, theirs: theirs})
		default:
			lines, err := treecmp.Diff(filepath.Join(jail, cowshed.name), filepath.Join(jail, p.name), treecmp.Options{})
			require.NoError(t, err)
			for _, line := range lines {
				var name string
				_, err := fmt.Sscanf(line, "%q:", &name)
				require.NoError(t, err, line)
				diffs = append(diffs, difference{peer: p.name, tree: line, path: name})
			}
		}
	}
	return diffs
}

// reach returns paths of the host that a tool would touch which takes the names and links of a tar as they are.
func reach(hdrs []*tar.Header) []string {
	var paths []string
	links := make(map[string]string)
	for _, hdr := range hdrs {
		name := path.Clean(hdr.Name)
		if path.IsAbs(name) {
			paths = append(paths, name)
		}
		for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
			if target := links[dir]; path.IsAbs(target) {
				paths = append(paths, target, target+strings.TrimPrefix(name, dir))
			}
		}
		switch hdr.Typeflag {
		case tar.TypeLink:
			if path.IsAbs(hdr.Linkname) {
				paths = append(paths, hdr.Linkname)
			}
		case tar.TypeSymlink:
			links[name] = hdr.Linkname
		}
	}
	return paths
}

// states describes files, so that whatever was done to one of them shows.
func states(paths []string) map[string]unix.Stat_t {
	all := make(map[string]unix.Stat_t)
	for _, p := range paths {
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			st.Atim = unix.Timespec{}
			all[p] = st
		}
	}
	return all
}
