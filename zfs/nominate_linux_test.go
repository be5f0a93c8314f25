package zfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/testfs"
)

// lineage is a filesystem and a chain of clones, each of the one before. All are mounted.
type lineage struct {
	t       testing.TB
	dataset string
	mnt     string
	prefix  string // of the lineage's names in dataset and mnt
	n       int
}

// newLineage makes a lineage in a dataset of its own.
func newLineage(t testing.TB) *lineage {
	t.Helper()
	dataset, mnt := testfs.ZFS(t)
	return newLineageIn(t, dataset, mnt, "")
}

// newLineageIn makes a lineage in a dataset that may have other lineages, with other prefixes.
func newLineageIn(t testing.TB, dataset, mnt, prefix string) *lineage {
	t.Helper()
	l := &lineage{t: t, dataset: dataset, mnt: mnt, prefix: prefix}
	zfs(t, "create", "-o", "mountpoint=legacy", l.name(0))
	l.mount(l.name(0), l.dir(0))
	return l
}

func (l *lineage) name(i int) string { return l.dataset + "/" + l.prefix + "l" + strconv.Itoa(i) }
func (l *lineage) dir(i int) string  { return filepath.Join(l.mnt, l.prefix+"l"+strconv.Itoa(i)) }

// current is the directory on which the last clone is mounted.
func (l *lineage) current() string { return l.dir(l.n) }

// clone seals the last clone, and makes and mounts a clone of it.
func (l *lineage) clone() string {
	l.t.Helper()
	zfs(l.t, "snapshot", l.name(l.n)+"@layer")
	zfs(l.t, "clone", "-o", "mountpoint=legacy", l.name(l.n)+"@layer", l.name(l.n+1))
	l.n++
	l.mount(l.name(l.n), l.current())
	return l.current()
}

// mount mounts a dataset or snapshot until the end of the test.
func (l *lineage) mount(name, dir string) {
	l.t.Helper()
	require.NoError(l.t, os.Mkdir(dir, 0o700))
	flags := uintptr(0)
	if strings.Contains(name, "@") {
		flags = unix.MS_RDONLY
	}
	require.NoError(l.t, unix.Mount(name, dir, "zfs", flags, ""))
	l.t.Cleanup(func() { assert.NoError(l.t, unix.Unmount(dir, 0)) })
}

// pair is two mounted snapshots.
type pair struct {
	base, top       string // full names
	baseDir, topDir string // their mount points
}

// freeze takes a snapshot of the last clone, and mounts it and the seal of an earlier one.
func (l *lineage) freeze(from int) pair {
	l.t.Helper()
	p := pair{base: l.name(from) + "@layer", top: l.name(l.n) + "@view"}
	zfs(l.t, "snapshot", p.top)
	p.baseDir = filepath.Join(l.mnt, fmt.Sprintf("%sbase%d-%d", l.prefix, from, l.n))
	p.topDir = filepath.Join(l.mnt, fmt.Sprintf("%stop%d-%d", l.prefix, from, l.n))
	l.mount(p.base, p.baseDir)
	l.mount(p.top, p.topDir)
	return p
}

// changedObjects asks the kernel, as a Backend does.
func changedObjects(t testing.TB, base, top string) (objectSet, error) {
	t.Helper()
	pool, _, _ := strings.Cut(base, "/")
	c, err := openControl(t.Context(), pool)
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.kernel.Close()) }()
	return c.changedObjects(t.Context(), base, top)
}

// hintsOf returns the hints from the kernel's answer and the directories.
func hintsOf(t testing.TB, p pair) (*treediff.Hints, error) {
	t.Helper()
	changed, err := changedObjects(t, p.base, p.top)
	require.NoError(t, err)
	return nominate(t.Context(), changes{top: changed}, p.baseDir, p.topDir)
}

// assertAgree asserts that comparing with the hints finds the changes of a walk, and files whose content alone differs.
// It returns the changes found with hints.
func assertAgree(t testing.TB, p pair, hints *treediff.Hints) []archive.Change {
	t.Helper()
	walked, err := treediff.Compare(t.Context(), p.topDir, p.baseDir, nil)
	require.NoError(t, err)
	native, err := treediff.Compare(t.Context(), p.topDir, p.baseDir, hints)
	require.NoError(t, err)

	// With hints, all names of all files with another content must be seen too, and nothing else.
	seen := make(map[string]archive.ChangeType)
	for _, c := range walked {
		seen[c.Path] = c.Kind
	}
	for _, path := range rewritten(t, p) {
		for dir := path; dir != "/"; dir = filepath.Dir(dir) {
			if _, ok := seen[dir]; !ok {
				seen[dir] = archive.ChangeModify
			}
		}
	}
	var want []archive.Change
	for path, kind := range seen {
		want = append(want, archive.Change{Path: path, Kind: kind})
	}
	slices.SortFunc(want, func(a, b archive.Change) int { return strings.Compare(a.Path, b.Path) })
	require.Equal(t, changeLines(want), changeLines(native), "with hints (right) is not what differs (left)")
	return native
}

// rewritten lists the files and symbolic links that both trees have at a path, but with another content.
func rewritten(t testing.TB, p pair) []string {
	t.Helper()
	base, err := openFrozenTree(p.baseDir)
	require.NoError(t, err)
	defer base.close()
	var paths []string
	require.NoError(t, filepath.WalkDir(p.topDir, func(top string, e os.DirEntry, walkErr error) error {
		if walkErr != nil {
			return walkErr
		}
		path := strings.TrimPrefix(top, p.topDir)
		info, ok, err := base.stat(strings.TrimPrefix(path, "/")) // not through symbolic links
		if err != nil {
			return err
		}
		topInfo, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case !ok || uint32(info.Mode)&unix.S_IFMT != topInfo.Sys().(*syscall.Stat_t).Mode&unix.S_IFMT:
		case e.Type() == os.ModeSymlink:
			a, err1 := os.Readlink(top)
			b, err2 := os.Readlink(p.baseDir + path)
			if a != b {
				paths = append(paths, path)
			}
			return errors.Join(err1, err2)
		case e.Type().IsRegular():
			a, err1 := os.ReadFile(top)
			b, err2 := os.ReadFile(p.baseDir + path)
			if !bytes.Equal(a, b) {
				paths = append(paths, path)
			}
			return errors.Join(err1, err2)
		}
		return nil
	}))
	return paths
}

func changeLines(changes []archive.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %q\n", c.Kind, c.Path)
	}
	return b.String()
}

// sh runs a script in a tree.
func sh(t testing.TB, dir, script string) {
	t.Helper()
	cmd := exec.Command("bash", "-euc", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// rewrite overwrites a file, and hides the change from lstat.
const rewrite = `rewrite() { local m; m=$(stat -c %y "$1"); printf "$2" | dd of="$1" conv=notrunc status=none; touch -d "$m" "$1"; }
`

// nominateCases are edits of a tree, with changes that must be found.
var nominateCases = []struct {
	name, base, edit string
	want             []string // some of the changes
}{
	{name: "nothing", base: `touch f; mkdir d`, edit: `:`},
	{name: "root", base: `touch f`, edit: `chmod 711 .; setfattr -n trusted.a -v b . || :`},
	{name: "add, modify, remove", base: `mkdir d e; echo 1 > d/f; echo 2 > d/g; echo 3 >e/h`,
		edit: `echo 11 > d/f; rm d/g; echo 4 > e/i`, want: []string{`C "/d/f"`, `D "/d/g"`, `A "/e/i"`}},
	{name: "removed from the root", base: `echo 1 > f; mkdir d; touch d/x; ln -s f l`, edit: `rm f l; rm -r d`, want: []string{`D "/f"`, `D "/d"`, `D "/l"`}},
	{name: "odd names", base: `for n in 'sp ace' $'tab\t' $'new\nline' 'back\slash' $'\xff\xfe' ü '(on_delete_queue)' '\0040' '<xattrdir>' $(printf 'x%.0s' {1..255}) "$(printf '\377%.0s' {1..255})"; do echo 1 > "$n"; mkdir "d$n" 2>/dev/null || :; touch "d$n/f" "d$n/g" || :; done`,
		edit: `for f in *; do if [ -d "$f" ]; then echo 11 > "$f/f"; mv "$f/g" "$f/ $f" || mv "$f/g" "$f/h"; else echo 22 > "$f"; fi; done; mv 'sp ace' 'spa ce'`},
	{name: "rewritten unseen", base: `mkdir d; echo aaaa > d/f; echo keep > d/g`, edit: rewrite + `rewrite d/f bbbb`, want: []string{`C "/d/f"`}},
	{name: "link rewritten unseen", base: `mkdir a b c; echo aaaa > a/f; ln a/f b/f; ln a/f c/f; ln a/f c/g`,
		edit: rewrite + `rewrite a/f bbbb`, want: []string{`C "/a/f"`, `C "/b/f"`, `C "/c/f"`, `C "/c/g"`}},
	{name: "link added", base: `mkdir a b; echo aaaa > a/f`, edit: `ln a/f b/f`, want: []string{`A "/b/f"`}},
	{name: "link added and rewritten", base: `mkdir a b; echo aaaa > a/f; ln a/f a/g`, edit: rewrite + `ln a/f b/f; rewrite b/f bbbb`, want: []string{`C "/a/f"`, `C "/a/g"`, `A "/b/f"`}},
	{name: "link removed", base: `mkdir a b; echo aaaa > a/f; ln a/f b/f; ln a/f b/g`, edit: rewrite + `rm b/g; rewrite a/f bbbb`, want: []string{`C "/a/f"`, `C "/b/f"`, `D "/b/g"`}},
	{name: "all but one link removed", base: `mkdir a b; echo aaaa > a/f; ln a/f b/f`, edit: rewrite + `rewrite a/f bbbb; rm b/f`, want: []string{`C "/a/f"`, `D "/b/f"`}},
	{name: "link renamed", base: `mkdir a b c; echo aaaa > a/f; ln a/f b/f`, edit: rewrite + `mv b/f c/f; rewrite c/f bbbb`, want: []string{`C "/a/f"`, `D "/b/f"`, `A "/c/f"`}},
	{name: "other link renamed", base: `mkdir a b c; echo aaaa > a/f; ln a/f b/f`, edit: `mv a/f c/f`, want: []string{`D "/a/f"`, `A "/c/f"`}},
	{name: "link to another file", base: `mkdir a b; echo aaaa > a/f; ln a/f b/f; echo bbbb > a/g; ln a/g b/g`, edit: `ln -f a/f b/g`},
	{name: "links of symbolic links and fifos", base: `mkdir a b; ln -s t a/l; ln a/l b/l; mkfifo a/p; ln a/p b/p`, edit: `chmod 600 a/p; chown -h 5 a/l`,
		want: []string{`C "/a/l"`, `C "/b/l"`, `C "/a/p"`, `C "/b/p"`}},
	{name: "directory renamed", base: `mkdir -p a/b/c; echo 1 > a/f; echo 2 > a/b/c/g; echo keep > a/b/c/k`, edit: `echo 22 > a/b/c/g; mv a z; echo 3 > z/b/new`},
	{name: "directories swapped", base: `mkdir -p a/s b/s; echo 1111 > a/s/f; echo 2222 > b/s/f; touch -d @1000000000 a/s/f b/s/f`,
		edit: `mv a t; mv b a; mv t b`, want: []string{`C "/a/s/f"`, `C "/b/s/f"`}},
	{name: "directory swapped and written", base: `mkdir -p a/s b/s; echo 1111 > a/s/f; ln a/s/f b/s/g`, edit: rewrite + `mv a t; mv b a; mv t b; rewrite b/s/f 3333; mv b t; mv a b; mv t a`,
		want: []string{`C "/a/s/f"`, `C "/b/s/g"`}},
	{name: "moved out and in", base: `mkdir -p a/b c; echo 1 > a/b/f; echo 2 > c/g`, edit: `mv a/b c/b; mv c/g a/g`},
	{name: "tree removed", base: `mkdir -p a/b/c/d; touch a/b/c/d/{1..50}; touch a/x`, edit: `rm -r a/b`, want: []string{`D "/a/b"`}},
	{name: "tree removed and made again", base: `mkdir -p a/b/c; touch -d @1 a/b/c/{1..50}`, edit: `rm -r a; mkdir -p a/b/c; touch -d @1 a/b/c/{1..40}`},
	{name: "file to directory and back", base: `echo 1 > f; mkdir d; echo 2 > d/x`, edit: `rm f; mkdir f; echo 3 > f/x; rm -r d; echo 4 > d`},
	{name: "xattrs, modes and owners", base: `touch x m o; mkdir d; for i in {1..99}; do touch u$i; done`,
		edit: `setfattr -n trusted.a -v b x 2>/dev/null || :; chmod 640 m; chown 7:8 o; chmod 700 d`, want: []string{`C "/m"`, `C "/o"`, `C "/d"`}},
	{name: "special files", base: `mknod ./c c 1 3; mknod ./b b 7 0; mkfifo p; ln -s one l; ln -s one k`, edit: `rm c; mknod ./c c 1 5; chmod 600 b; rm p; mkfifo p; ln -sfn two l; ln -sfT eno k; mknod n c 1 3`,
		want: []string{`C "/c"`, `C "/l"`, `C "/k"`, `A "/n"`}},
	{name: "symbolic link to directory and back", base: `mkdir d e; echo 1 > d/f; echo 2 > e/f; ln -s e l`, edit: `rm -r d; ln -s e d; rm l; mkdir l; echo 3 > l/f`},
	{name: "deep", base: `for i in {1..30}; do mkdir $(printf 'd%.0s' {1..100}); cd $(printf 'd%.0s' {1..100}); done; echo 1 > f`, edit: `find . -name f -exec sh -c 'echo 22 > "$1"' _ {} \;`},
	{name: "reused inode numbers", base: `mkdir d; for i in {1..200}; do echo $i > d/$i; done`, edit: `rm -r d; mkdir e; sync; for i in {1..200}; do echo $i > e/$i; done`},
	{name: "unlinked while open", base: `mkdir d; echo 1 > d/f; echo 2 > d/h; ln d/h g`,
		edit: `exec 9<d/f 8<d/h; rm d/f d/h; echo 3 > n; exec 7<n; rm n; zfs snapshot $(df --output=source . | tail -1)@unlinked`, want: []string{`D "/d/f"`, `D "/d/h"`}},

	{name: "added in the root, then linked elsewhere for a while", base: `mkdir b`, edit: `echo 1 > f; ln f b/f; rm b/f`, want: []string{`A "/f"`}},
	{name: "added, then linked elsewhere for a while", base: `mkdir a b`, edit: `echo 1 > a/f; ln a/f b/f; rm b/f`, want: []string{`A "/a/f"`}},
	{name: "linked elsewhere for a while, then written", base: `mkdir a b; echo 1 > a/f`, edit: rewrite + `ln a/f b/f; rm b/f; rewrite a/f 2`, want: []string{`C "/a/f"`}},
	{name: "written, of many linked elsewhere for a while", base: `mkdir a b; for i in {1..4}; do echo 1 > a/$i; ln a/$i b/$i; done; rm -r b`, edit: `echo 22 > a/2; chmod 600 a/3`,
		want: []string{`C "/a/2"`, `C "/a/3"`}},
}

func TestNominate(t *testing.T) {
	dataset, mnt := testfs.ZFS(t)
	for n, c := range nominateCases {
		t.Run(c.name, func(t *testing.T) {
			l := newLineageIn(t, dataset, mnt, fmt.Sprintf("case%d-", n))
			sh(t, l.current(), c.base)
			sh(t, l.clone(), c.edit)
			p := l.freeze(0)
			hints, err := hintsOf(t, p)
			require.NoError(t, err)
			got := changeLines(assertAgree(t, p, hints))
			for _, want := range c.want {
				assert.Contains(t, got, want+"\n")
			}
		})
	}
}

// TestNominateFewHints: there are few hints for few changes.
func TestNominateFewHints(t *testing.T) {
	l := newLineage(t)
	sh(t, l.current(), `mkdir d{1..20}; touch d{1..20}/f{1..100}`)
	sh(t, l.clone(), `echo 1 > d7/f5; rm d8/f6; touch d9/new`)
	p := l.freeze(0)
	hints, err := hintsOf(t, p)
	require.NoError(t, err)
	assert.LessOrEqual(t, hints.Len(), 5)
	assertAgree(t, p, hints)
}

// TestManyEntries: the entries of a directory are compared in memory up to a bound, of both trees together.
func TestManyEntries(t *testing.T) {
	const most = 10
	n := &nominator{most: most}
	dirs := [2]string{inBase: t.TempDir(), inTop: t.TempDir()}
	for i, dir := range dirs {
		tree, err := openFrozenTree(dir)
		require.NoError(t, err)
		defer tree.close()
		n.trees[i] = tree
	}
	compare := func() (differing int, err error) {
		err = n.compareEntries(t.Context(), "", func(string) error { differing++; return nil })
		return differing, err
	}
	made := 0
	add := func(tree, entries int) {
		for range entries {
			made++
			require.NoError(t, os.WriteFile(fmt.Sprintf("%s/f%d", dirs[tree], made), nil, 0o600))
		}
	}
	assertTooMany := func() {
		t.Helper()
		_, err := compare()
		var noHints *treediff.NoHintsError
		require.ErrorAs(t, err, &noHints)
		assert.Equal(t, "large-directory", noHints.Reason)
	}
	add(inBase, most/2)
	add(inTop, most/2)
	differing, err := compare()
	require.NoError(t, err)
	assert.Equal(t, most, differing)
	add(inTop, 1)
	assertTooMany()
	add(inBase, most)
	assertTooMany()
}

// TestNominateGrandchild compares across two generations.
func TestNominateGrandchild(t *testing.T) {
	l := newLineage(t)
	sh(t, l.current(), `mkdir a; echo 1 > a/f; echo 2 > a/g`)
	sh(t, l.clone(), `mv a b; rm b/g; echo 3 > b/h; ln b/h i`)
	sh(t, l.clone(), `echo 33 > i; mkdir a; mv b/f a/f`)
	p := l.freeze(0)
	hints, err := hintsOf(t, p)
	require.NoError(t, err)
	assertAgree(t, p, hints)
}

// TestNominateTooDeep has paths that are longer than the kernel looks up. Here zfs diff would crash the machine.
func TestNominateTooDeep(t *testing.T) {
	l := newLineage(t)
	sh(t, l.clone(), `n=$(printf 'd%.0s' {1..250}); for i in {1..400}; do mkdir $n; cd ./$n; done; touch f`)
	_, err := hintsOf(t, l.freeze(0))
	var noHints *treediff.NoHintsError
	require.ErrorAs(t, err, &noHints)
	assert.Equal(t, "path-too-long", noHints.Reason)
}

func TestNominateUnrelated(t *testing.T) {
	l := newLineage(t)
	l.clone()
	p := l.freeze(0)
	zfs(t, "create", "-o", "mountpoint=legacy", l.dataset+"/other")
	zfs(t, "snapshot", l.dataset+"/other@layer")
	_, err := changedObjects(t, l.dataset+"/other@layer", p.top)
	var noHints *treediff.NoHintsError
	require.ErrorAs(t, err, &noHints)
	assert.Equal(t, "unrelated", noHints.Reason)
	_, err = changedObjects(t, l.dataset+"/none@layer", p.top)
	require.ErrorIs(t, err, unix.ENOENT)
}

// TestNominateRandom makes three generations by random operations, many times.
func TestNominateRandom(t *testing.T) {
	rounds := 3
	if testfs.Long() {
		rounds = 8
	}
	for range rounds {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%#x", seed), func(t *testing.T) { nominateRandomly(t, seed) })
	}
}

func nominateRandomly(t *testing.T, seed uint64) {
	l := newLineage(t)
	edits := &randomEdits{rng: rand.New(rand.NewPCG(seed, 0)), root: l.current()}
	for range 200 {
		edits.edit(t)
	}
	for range 2 {
		edits.root = l.clone()
		for range 10 + edits.rng.IntN(150) {
			edits.edit(t)
		}
		p := l.freeze(l.n - 1)
		hints, err := hintsOf(t, p)
		require.NoError(t, err)
		assertAgree(t, p, hints)
	}
	p := l.freezeAgain(0)
	hints, err := hintsOf(t, p)
	require.NoError(t, err)
	assertAgree(t, p, hints)
}

// TestNominateRandomSiblings changes two clones of one snapshot at the same time, and compares each with the other.
func TestNominateRandomSiblings(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	l := newLineage(t)
	edits := &randomEdits{rng: rand.New(rand.NewPCG(seed, 0)), root: l.current()}
	for range 200 {
		edits.edit(t)
	}
	trees := [2]string{l.clone(), filepath.Join(l.mnt, "sibling")}
	names := [2]string{l.name(1), l.dataset + "/sibling"}
	zfs(t, "clone", "-o", "mountpoint=legacy", l.name(0)+"@layer", names[1])
	l.mount(names[1], trees[1])
	for range 150 {
		for _, edits.root = range trees {
			edits.edit(t)
		}
	}
	var views [2]string
	var changed [2]objectSet
	for i, name := range names {
		zfs(t, "snapshot", name+"@view")
		views[i] = filepath.Join(l.mnt, "view"+strconv.Itoa(i))
		l.mount(name+"@view", views[i])
		var err error
		changed[i], err = changedObjects(t, l.name(0)+"@layer", name+"@view")
		require.NoError(t, err)
	}
	for i := range names {
		hints, err := nominate(t.Context(), changes{base: changed[i], top: changed[1-i]}, views[i], views[1-i])
		require.NoError(t, err)
		assertAgree(t, pair{baseDir: views[i], topDir: views[1-i]}, hints)
	}
}

// freezeAgain pairs the last snapshot with the seal of an earlier clone.
func (l *lineage) freezeAgain(from int) pair {
	p := pair{base: l.name(from) + "@layer", top: l.name(l.n) + "@view", topDir: filepath.Join(l.mnt, fmt.Sprintf("top%d-%d", l.n-1, l.n))}
	p.baseDir = filepath.Join(l.mnt, fmt.Sprintf("base%d-%d", from, l.n))
	l.mount(p.base, p.baseDir)
	return p
}

// randomEdits changes a tree at random. It has few names, so that edits meet.
type randomEdits struct {
	rng  *rand.Rand
	root string
}

var editNames = []string{"a", "b", "c", "d", "sp ace", "new\nline", "\xff"}

func (r *randomEdits) pick() string {
	dir := r.root
	for r.rng.IntN(3) > 0 {
		next := filepath.Join(dir, editNames[r.rng.IntN(len(editNames))])
		if info, err := os.Lstat(next); err != nil || !info.IsDir() {
			break
		}
		dir = next
	}
	return filepath.Join(dir, editNames[r.rng.IntN(len(editNames))])
}

// edit tries one random change. Some changes are impossible, and then nothing happens.
func (r *randomEdits) edit(t testing.TB) {
	t.Helper()
	path, other := r.pick(), r.pick()
	info, err := os.Lstat(path)
	isFile := err == nil && info.Mode().IsRegular()
	switch r.rng.IntN(16) {
	case 0, 1, 2:
		if isFile || err != nil {
			_ = os.WriteFile(path, []byte(strconv.Itoa(r.rng.IntN(1000))), 0o644)
		}
	case 3, 4:
		_ = os.Mkdir(path, 0o755)
	case 5, 6:
		_ = os.Rename(path, other)
	case 7:
		_ = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
	case 8:
		_ = os.Remove(path)
	case 9:
		if path != r.root && r.rng.IntN(2) == 0 {
			_ = os.RemoveAll(path)
		}
	case 10, 11, 12:
		_ = os.Link(path, other)
	case 13:
		_ = os.Symlink(editNames[r.rng.IntN(3)], path)
	case 14:
		_ = os.Lchown(path, r.rng.IntN(3), r.rng.IntN(3))
	case 15:
		if isFile {
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			for i := range content {
				content[i] = byte(r.rng.Uint32())
			}
			require.NoError(t, os.WriteFile(path, content, 0))
			require.NoError(t, os.Chtimes(path, info.ModTime(), info.ModTime()))
		}
	}
}
