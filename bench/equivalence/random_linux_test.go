package equivalence

import (
	"archive/tar"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "first seed of what is random; 0: the time")
	seedsFlag = flag.Int("seeds", 12, "how many random trees and layers to try")
)

// past is about the time of all that tests put into trees, to distinguish it from new files.
var past = time.Unix(1_500_000_000, 0)

// seeds calls fn with a number of seeds.
func seeds(t *testing.T, fn func(t *testing.T, seed uint64)) {
	t.Helper()
	first := *seedFlag
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	for i := range uint64(*seedsFlag) {
		seed := first + i
		if !t.Run("", func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("repeat with -seed=%d -seeds=1", seed)
				}
			}()
			fn(t, seed)
		}) {
			return
		}
	}
}

// settle gives every directory that was made or changed just now the same time, since when exactly that was is
// nobody's intention.
func settle(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil && time.Since(info.ModTime()) < 24*time.Hour && info.ModTime().Before(time.Now()) {
			err = os.Chtimes(p, past, past)
		}
		return err
	}))
}

// forest changes a tree at random.
type forest struct {
	t    testing.TB
	rnd  *rand.Rand
	dir  string
	next int64 // makes times differ
}

var names = []string{"a", "b", "c", "dir", "e.txt", "täg", "\xff\xfe", "sp ace", strings.Repeat("long", 40)}

// pick returns a random path in the tree: mostly of an existing file, and else of a possible one.
func (f *forest) pick() string {
	p := f.dir
	for {
		p = filepath.Join(p, names[f.rnd.IntN(len(names))])
		if !isDir(p) || f.rnd.IntN(4) == 0 {
			return p
		}
	}
}

// existing returns a path of a kind, "" if it finds none.
func (f *forest) existing(ok func(fs.FileMode) bool) string {
	for range 20 {
		p := f.pick()
		if info, err := os.Lstat(p); err == nil && ok(info.Mode()) {
			return p
		}
	}
	return ""
}

func notDir(m fs.FileMode) bool  { return !m.IsDir() }
func regular(m fs.FileMode) bool { return m.IsRegular() }

// time sets the time of a path: whole seconds or not, and in any year that layers can tell.
func (f *forest) time(p string) {
	f.next++
	when := past.Add(time.Duration(f.next) * time.Second)
	switch f.rnd.IntN(6) {
	case 0:
		when = when.Add(time.Duration(f.rnd.IntN(1e9)))
	case 1:
		when = time.Unix(f.next, 0)
	case 2:
		when = time.Unix(1<<33+f.next, 0) // beyond the range of a plain header
	}
	ts := unix.NsecToTimespec(when.UnixNano())
	require.NoError(f.t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

func (f *forest) attributes(p string) {
	require.NoError(f.t, os.Lchown(p, f.rnd.IntN(3)*1000, []int{0, 50, 3_000_000}[f.rnd.IntN(3)]))
	info, err := os.Lstat(p)
	require.NoError(f.t, err)
	if info.Mode()&fs.ModeSymlink == 0 {
		require.NoError(f.t, unix.Chmod(p, []uint32{0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0}[f.rnd.IntN(7)]))
	}
	if info.Mode().IsRegular() || info.IsDir() {
		for _, x := range []string{"user.x", "user.lösung", "trusted.y"} {
			if f.rnd.IntN(8) == 0 {
				require.NoError(f.t, unix.Lsetxattr(p, x, []byte{byte(f.rnd.IntN(256)), 0, '\n'}, 0))
			}
		}
	}
	if info.Mode().IsRegular() && f.rnd.IntN(6) == 0 {
		require.NoError(f.t, unix.Lsetxattr(p, "security.capability", []byte(pingCapability), 0))
	}
}

// data returns the content of a file: none, a little, some pages, or much with holes.
func (f *forest) data() []byte {
	b := make([]byte, []int{0, 5, 511, 512, 513, 9000, 70_000, 1<<20 + 7}[f.rnd.IntN(8)])
	for i := range b {
		if i>>17&1 == 0 {
			b[i] = byte(i*7 + f.rnd.IntN(2))
		}
	}
	return b
}

// change does n things to the tree.
func (f *forest) change(n int) {
	for range n {
		p := f.pick()
		_, err := os.Lstat(p)
		free := err != nil
		switch op := f.rnd.IntN(14); {
		case op < 4 && free:
			require.NoError(f.t, os.WriteFile(p, f.data(), 0o600))
		case op < 7 && free:
			require.NoError(f.t, os.Mkdir(p, 0o755))
		case op == 7 && free:
			require.NoError(f.t, os.Symlink([]string{"a", "../dir/b", "/etc/passwd", "ü" + strings.Repeat("x", 120)}[f.rnd.IntN(4)], p))
		case op == 8 && free:
			require.NoError(f.t, unix.Mknod(p, []uint32{unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK}[f.rnd.IntN(3)]|0o600, int(unix.Mkdev(uint32(f.rnd.IntN(4096)), uint32(f.rnd.IntN(1<<20))))))
		case op == 9 && free:
			q := f.existing(notDir)
			if q == "" {
				continue
			}
			require.NoError(f.t, os.Link(q, p))
		case op == 10:
			q := f.existing(regular)
			if q == "" {
				continue
			}
			require.NoError(f.t, os.WriteFile(q, f.data(), 0o600))
			p = q
		case op == 11 && !free:
			require.NoError(f.t, os.RemoveAll(p))
			continue
		case op == 12 && free:
			q := f.existing(func(fs.FileMode) bool { return true })
			if q == "" || strings.HasPrefix(p, q+"/") {
				continue
			}
			require.NoError(f.t, os.Rename(q, p))
		case free:
			continue
		}
		f.attributes(p)
		f.time(p)
	}
}

// whole gives every link of a file that has a changed link a new inode of which the changed set has all names:
// a change list cannot say that a new name is a link to an old file that is not in it. See
// TestDifferencesInWriting.
func whole(t testing.TB, dir string) {
	t.Helper()
	done := make(map[uint64]bool)
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || st.Nlink < 2 || done[st.Ino] {
			return err
		}
		done[st.Ino] = true
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return os.Lchown(p, int(st.Uid)+1, int(st.Gid))
		}
		if err := os.Chmod(p, 0o611); err != nil {
			return err
		}
		return os.Truncate(p, st.Size+1)
	}))
}

// TestRandomTrees writes random trees, and random changes to them, with each tool and applies the tars with Cowshed.
// It applies Cowshed's tars with each tool.
func TestRandomTrees(t *testing.T) {
	v := newVolumes(t, testfs.Btrfs(t, testfs.WithSize(4<<30)))
	number := 0
	seeds(t, func(t *testing.T, seed uint64) {
		f := &forest{t: t, rnd: rand.New(rand.NewPCG(seed, 1))}
		number++
		upper := v.make(fmt.Sprintf("upper-%d", number))
		defer v.remove(upper)
		lower, below := "", make(map[string]string)
		for i := range 2 {
			if i > 0 {
				lower = v.clone(fmt.Sprintf("lower-%d", number), upper)
				defer v.remove(lower)
			}
			f.dir = upper
			f.change(250)
			if i > 0 {
				whole(t, upper)
			}
			listed := changedDirs(t, upper, lower)
			for _, writer := range tools {
				layer := writer.written(t, upper, lower)
				for _, applier := range tools {
					if writer.name != cowshed.name && applier.name != cowshed.name {
						continue
					}
					pair := writer.name + "-" + applier.name
					if i == 0 {
						below[pair] = v.make(fmt.Sprintf("%s-%d", pair, number))
						defer v.remove(below[pair])
					}
					applier.applied(t, below[pair], layer, i == 0)
					requireEqual(t, upper, below[pair], treecmp.Options{
						WholeSeconds: true,
						SkipTime:     func(p string) bool { return isDir(filepath.Join(upper, p)) && !listed[p] },
						SkipXattr: func(p, name string) bool {
							// A layer cannot take an attribute from a directory that is there in both.
							return !keptXattr(writer, applier, name) || i > 0 && isDir(filepath.Join(upper, p))
						},
					}, fmt.Sprintf("step %d written by %s and applied by %s", i, writer.name, applier.name))
				}
			}
		}
	})
}

// entry is an entry of a layer that a test makes.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
}

func folder(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

func link(kind byte, name, target string) entry {
	return entry{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}}
}

func (e entry) xattr(name, value string) entry {
	records := map[string]string{"SCHILY.xattr." + name: value}
	maps.Copy(records, e.PAXRecords)
	e.PAXRecords = records
	return e
}

// tarOf makes a layer.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag != tar.TypeXGlobalHeader {
			h.Format = tar.FormatPAX
			if h.ModTime.IsZero() {
				h.ModTime = past
			}
		}
		h.Size = int64(len(e.data))
		require.NoError(t, tw.WriteHeader(&h), "%q", h.Name)
		_, err := tw.Write([]byte(e.data))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

// randomLayer makes a layer of up to n entries whose names collide as much as they can: implied parents, paths
// through symbolic links, duplicates, hard links, whiteouts and opaque markers. kinds has the files of earlier
// layers, and gets those of this one.
func randomLayer(rnd *rand.Rand, kinds map[string]byte, n int) []entry {
	var entries []entry
	made := make(map[string]byte)
	kindOf := func(p string) byte {
		if k, ok := made[p]; ok {
			return k
		}
		return kinds[p]
	}
	put := func(e entry) {
		e.Mode = []int64{0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777}[rnd.IntN(6)]
		e.ModTime = past.Add(time.Duration(rnd.IntN(1000)) * time.Second)
		e.Uid, e.Gid = rnd.IntN(3), rnd.IntN(3)
		if rnd.IntN(10) == 0 && e.Typeflag == tar.TypeReg {
			e = e.xattr("user.x", string([]byte{byte(rnd.IntN(256))}))
		}
		entries = append(entries, e)
		made[strings.TrimSuffix(e.Name, "/")] = e.Typeflag
	}
	// linked returns the symbolic link that p leads through, if any.
	linked := func(p string) string {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if kindOf(d) == tar.TypeSymlink {
				return d
			}
		}
		return ""
	}
	// directories makes an entry for most directories above p that have none, and says whether p can be there.
	directories := func(p string) bool {
		elems := strings.Split(p, "/")
		for i := 1; i < len(elems); i++ {
			if k := kindOf(strings.Join(elems[:i], "/")); k != 0 && k != tar.TypeDir {
				return false
			}
		}
		for i := 1; i < len(elems); i++ {
			d := strings.Join(elems[:i], "/")
			if made[d] == 0 && rnd.IntN(4) > 0 {
				put(folder(d))
			}
		}
		return true
	}
	// taken: the times of a directory that is replaced in the same layer could not be set afterwards.
	taken := func(p string) bool {
		if made[p] == tar.TypeDir {
			return true
		}
		for q := range made {
			if strings.HasPrefix(q, p+"/") {
				return true
			}
		}
		return false
	}
	for range n {
		p := names[rnd.IntN(len(names))]
		for rnd.IntN(3) > 0 && strings.Count(p, "/") < 4 {
			p += "/" + names[rnd.IntN(len(names))]
		}
		if l := linked(p); l != "" {
			// A name that nothing else has: replacing a directory under another of its names is a difference.
			if rnd.IntN(4) == 0 {
				put(file(fmt.Sprintf("%s/through%d", l, len(entries)), p))
			}
			continue
		}
		if !directories(p) {
			continue
		}
		op := rnd.IntN(10)
		if op < 8 && op != 3 && taken(p) {
			continue
		}
		switch op {
		case 0, 1:
			put(file(p, strings.Repeat(p, rnd.IntN(5))))
		case 2:
			put(file(p, strings.Repeat("long", 30_000+rnd.IntN(3000))))
		case 3:
			if made[p] == 0 || made[p] == tar.TypeDir {
				put(folder(p))
			}
		case 4:
			put(link(tar.TypeSymlink, p, []string{"a", "/dir", "nowhere/b", "../c"}[rnd.IntN(4)]))
		case 5:
			targets := slices.DeleteFunc(slices.Sorted(maps.Keys(made)), func(q string) bool { return made[q] != tar.TypeReg || q == p })
			if len(targets) > 0 {
				put(link(tar.TypeLink, p, targets[rnd.IntN(len(targets))]))
			}
		case 6:
			put(entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: p}})
		case 7:
			put(entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: p, Devmajor: 1, Devminor: int64(rnd.IntN(300))}})
		case 8:
			if made[p] == 0 && !taken(p) {
				entries = append(entries, file(path.Join(path.Dir(p), ".wh."+path.Base(p)), ""))
			}
		}
	}
	maps.Copy(kinds, made)
	return entries
}

// TestRandomLayers applies random layers, one on the other, and expects the same tree of each tool, or an error
// of each.
func TestRandomLayers(t *testing.T) {
	v := newVolumes(t, testfs.Btrfs(t, testfs.WithSize(4<<30)))
	number, applied, refused := 0, 0, 0
	seeds(t, func(t *testing.T, seed uint64) {
		rnd, kinds := rand.New(rand.NewPCG(seed, 2)), make(map[string]byte)
		number++
		dirs := make(map[string]string)
		for _, p := range tools {
			dirs[p.name] = v.make(fmt.Sprintf("%s-%d", p.name, number))
			defer v.remove(dirs[p.name])
		}
		for depth := range 4 {
			entries := randomLayer(rnd, kinds, 40)
			layer := tarOf(t, entries...)
			errs := make(map[string]error)
			for _, p := range tools {
				errs[p.name] = p.apply(t.Context(), dirs[p.name], bytes.NewReader(layer), depth == 0)
				settle(t, dirs[p.name])
			}
			if err := errs[goArchive.name]; err != nil && strings.Contains(err.Error(), "path escapes from parent") {
				refused++
				return // a path through a link above the root: see TestDifferencesInApplying
			}
			for _, p := range tools[1:] {
				require.Equal(t, errs[p.name] == nil, errs[cowshed.name] == nil, "%v\n%s", errs, describe(entries))
			}
			if err := errors.Join(slices.Collect(maps.Values(errs))...); err != nil {
				refused++
				return
			}
			applied++
			for _, p := range tools[1:] {
				requireEqual(t, dirs[cowshed.name], dirs[p.name], treecmp.Options{}, p.name+"\n"+describe(entries))
			}
		}
	})
	t.Logf("%d layers applied, %d refused by all", applied, refused)
	assert.Greater(t, applied, refused, "too few layers make sense")
}

func describe(entries []entry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%c %.40q %q (%d)\n", e.Typeflag, e.Name, e.Linkname, len(e.data))
	}
	return b.String()
}
