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

// compareTars compares the results of Cowshed and its peers for the tars that find finds, applied to an empty tree
// and then once more. It fails unless each difference is reviewed and each review of short tars, or all, is needed.
func compareTars(t *testing.T, find func(f *finder)) {
	mnt := testfs.Btrfs(t, testfs.WithSize(4<<30))
	counts := make(map[string]int)
	number := 0
	var refused []string
	f := &finder{seen: make(map[[32]byte]bool)}
	f.found = func(s sample) {
		number++
		diffs, err := compareTar(t, mnt, s)
		if err != nil {
			refused = append(refused, fmt.Sprintf("%s: %v", s.name, err))
		}
		for _, d := range diffs {
			if r := reviewOf(d, s); r != nil {
				counts[r.name]++
			} else {
				t.Errorf("%s: %v", s.name, d)
			}
		}
	}
	find(f)
	t.Logf("refused by all:\n%s", strings.Join(refused, "\n"))
	t.Logf("%d tars compared, %d of them refused by all, skipped for their size: %q, differences: %v", number, len(refused), f.skipped, counts)
	for _, r := range reviews {
		if counts[r.name] == 0 && (!r.long || testfs.Long()) {
			t.Errorf("no tar needs the review %q any more: remove it", r.name)
		}
	}
}

// compareTar applies a tar with Cowshed and its peers, twice, and returns the differences; or Cowshed's error if all refuse
// it.
func compareTar(t *testing.T, mnt string, s sample) ([]difference, error) {
	t.Helper()
	// A hostile tar has the surroundings of a tree in reach: the volume around it, and the host.
	jail := filepath.Join(mnt, "jail")
	require.NoError(t, os.Mkdir(jail, 0o755))
	defer func() { require.NoError(t, os.RemoveAll(jail)) }()
	require.NoError(t, os.WriteFile(filepath.Join(jail, "f"), []byte("outside"), 0o600))
	all := append([]tool{cowshed}, tarPeers...)
	for _, p := range all {
		require.NoError(t, os.Mkdir(filepath.Join(jail, p.name), 0o755))
	}

	for _, empty := range []bool{true, false} {
		errs := make(map[string]error)
		for _, p := range all {
			dir := filepath.Join(jail, p.name)
			before := states(t, jail, reach(s.hdrs))
			errs[p.name] = p.apply(t.Context(), dir, bytes.NewReader(s.data), empty)
			require.Equal(t, before, states(t, jail, reach(s.hdrs)), "%s: %s has changed what is outside of the tree", s.name, p.name)
			settle(t, dir)
		}
		diffs := differencesIn(t, jail, errs)
		switch {
		case len(diffs) > 0:
			return diffs, nil
		case errs[cowshed.name] != nil:
			return nil, errs[cowshed.name]
		}
	}
	return nil, nil
}

// differencesIn compares the trees, and the errors, of the tools.
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

// states describes the surroundings of the trees and files of the host, so that any change to them shows.
func states(t *testing.T, jail string, host []string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	names, err := os.ReadDir(jail)
	require.NoError(t, err)
	for _, name := range names {
		all[name.Name()] = "beside the tree"
	}
	for _, p := range append([]string{filepath.Join(jail, "f")}, host...) {
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			continue
		}
		all[p] = fmt.Sprintf("inode %d, mode %o, owner %d:%d", st.Ino, st.Mode, st.Uid, st.Gid)
		if st.Mode&unix.S_IFMT == unix.S_IFREG { // others change by themselves, as /tmp does
			all[p] += fmt.Sprintf(", links %d, size %d, changed %v", st.Nlink, st.Size, st.Ctim)
		}
	}
	return all
}

// TestStates has a tar that a naive tool would let change each kind of thing outside of the tree, and does that.
func TestStates(t *testing.T) {
	jail, host := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(host, name) }
	for _, p := range []string{filepath.Join(jail, "f"), in("named"), in("linked")} {
		require.NoError(t, os.WriteFile(p, nil, 0o600))
	}
	hdrs := headersOf(tarOf(t, file(in("named"), ""), link(tar.TypeSymlink, "l", host), file("l/new", ""), link(tar.TypeLink, "h", in("linked"))))
	for _, change := range []func() error{
		func() error { return os.WriteFile(filepath.Join(jail, "x"), nil, 0o600) },
		func() error { return os.WriteFile(filepath.Join(jail, "f"), []byte("1"), 0o600) },
		func() error { return os.WriteFile(in("named"), []byte("1"), 0o600) },
		func() error { return os.WriteFile(in("new"), nil, 0o600) },
		func() error { return os.Link(in("linked"), filepath.Join(t.TempDir(), "h")) },
		func() error { return os.Chmod(host, 0o500) },
	} {
		before := states(t, jail, reach(hdrs))
		require.NoError(t, change())
		require.NotEqual(t, before, states(t, jail, reach(hdrs)))
	}
}
