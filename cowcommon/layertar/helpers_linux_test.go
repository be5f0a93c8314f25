package layertar

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/go-archive"
	"github.com/stretchr/testify/require"
)

// past is the time of all that tests put into layers, to distinguish it from new files.
var past = time.Unix(1_500_000_000, 0)

// ent is an entry of a test layer. Owner and time are filled in by tarOf if they are not given.
type ent struct {
	tar.Header
	data string
}

func file(name, data string) ent {
	return ent{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
}

func folder(name string) ent {
	return ent{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

func symlink(name, target string) ent {
	return ent{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) ent {
	return ent{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func fifo(name string) ent {
	return ent{Header: tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o600}}
}

func (e ent) mode(mode int64) ent               { e.Mode = mode; return e }
func (e ent) owner(uid, gid int) ent            { e.Uid, e.Gid = uid, gid; return e }
func (e ent) time(t time.Time) ent              { e.ModTime = t; return e }
func (e ent) xattr(name, value string) ent      { return e.pax(paxXattr+name, value) }
func (e ent) with(change func(*tar.Header)) ent { change(&e.Header); return e }
func (e ent) pax(key, value string) ent {
	records := map[string]string{key: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

// tarOf makes a layer. Entries without an owner belong to the user who runs the test.
func tarOf(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Format = tar.FormatPAX
		h.Size = int64(len(e.data))
		if h.ModTime.IsZero() {
			h.ModTime = past
		}
		if h.Uid == 0 && h.Gid == 0 {
			h.Uid, h.Gid = os.Getuid(), os.Getgid()
		}
		require.NoError(t, tw.WriteHeader(&h), "%q", h.Name)
		_, err := tw.Write([]byte(e.data))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	return b.Bytes()
}

// rawTar joins blocks to a tar, for forms that archive/tar would not write.
func rawTar(parts ...[]byte) []byte {
	return append(bytes.Join(parts, nil), make([]byte, 2*blockSize)...)
}

// rawHeader makes a header block (POSIX.1-2001 "ustar Interchange Format").
func rawHeader(kind byte, name string, size int64) []byte {
	b := make([]byte, blockSize)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], fmt.Sprintf("%07o\x00", os.Getuid()))
	copy(b[116:], fmt.Sprintf("%07o\x00", os.Getgid()))
	if size < 1<<33 && size >= 0 {
		copy(b[124:], fmt.Sprintf("%011o\x00", size))
	} else { // base-256, of GNU tar
		for i := range 12 {
			b[135-i] = byte(size >> min(63, 8*i))
		}
		b[124] |= 0x80
	}
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	return sum(b)
}

// sum gives a header block its checksum.
func sum(b []byte) []byte {
	copy(b[148:], "        ")
	n := 0
	for _, c := range b {
		n += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", n))
	return b
}

// rawData pads data to blocks.
func rawData(data string) []byte {
	return append([]byte(data), make([]byte, -len(data)&(blockSize-1))...)
}

// rawPAX makes an extended header of keys and values.
func rawPAX(kv ...string) []byte {
	var b strings.Builder
	for i := 0; i < len(kv); i += 2 {
		rest := " " + kv[i] + "=" + kv[i+1] + "\n"
		n := len(rest)
		for len(fmt.Sprint(n))+len(rest) != n {
			n = len(fmt.Sprint(n)) + len(rest)
		}
		fmt.Fprint(&b, n, rest)
	}
	return append(rawHeader(tar.TypeXHeader, "PaxHeaders.0/x", int64(b.Len())), rawData(b.String())...)
}

// apply applies a layer, which must succeed.
func apply(t testing.TB, dir string, layer []byte, opts ApplyOptions) int64 {
	t.Helper()
	n, err := Apply(t.Context(), dir, bytes.NewReader(layer), opts)
	require.NoError(t, err)
	return n
}

// write writes a change set, which must succeed.
func write(t testing.TB, dir string, changes []archive.Change, opts WriteOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, Write(t.Context(), &b, dir, changes, opts))
	return b.Bytes()
}

// all lists a whole tree as added.
func all(t testing.TB, dir string) []archive.Change {
	t.Helper()
	changes, err := archive.ChangesDirs(dir, "")
	require.NoError(t, err)
	return changes
}

// listing describes a tree in a way that fits into a test table: a line for each name, sorted.
func listing(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch d.Type() {
		case fs.ModeDir:
			rel += "/"
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			rel += " -> " + target
		case fs.ModeNamedPipe:
			rel += " |"
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += " = " + string(data)
		}
		lines = append(lines, rel)
		return nil
	})
	require.NoError(t, err)
	return lines
}

// headers returns the headers of a tar, and the data of their entries.
func headers(t testing.TB, layer []byte) (hdrs []*tar.Header, data map[string]string) {
	t.Helper()
	data = make(map[string]string)
	tr := tar.NewReader(bytes.NewReader(layer))
	for {
		hdr, err := tr.Next()
		if err != nil {
			require.ErrorContains(t, err, "EOF")
			return hdrs, data
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(tr)
		require.NoError(t, err)
		hdrs = append(hdrs, hdr)
		data[hdr.Name] = b.String()
	}
}

// settle gives every directory that was made or changed just now the same time, since when exactly that was
// is nobody's intention.
func settle(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if time.Since(info.ModTime()) < 24*time.Hour {
			return os.Chtimes(p, past, past)
		}
		return nil
	})
	require.NoError(t, err)
}

// layers makes random layers, which collide in names as much as they can.
type layers struct {
	rnd *rand.Rand
	// opaque puts opaque markers into layers, which then have an entry for each directory and no paths
	// through symbolic links: go-archive does not get those right.
	opaque bool
	names  []string
	lower  kindOf // made by earlier layers
}

func newLayers(seed uint64, opaque bool) *layers {
	return &layers{
		rnd:    rand.New(rand.NewPCG(seed, 1)),
		lower:  make(kindOf),
		opaque: opaque,
		names:  []string{"a", "b", "c", "dir", "e.txt", "täg", "\xff\xfe"},
	}
}

func (l *layers) path() string {
	p := l.names[l.rnd.IntN(len(l.names))]
	for l.rnd.IntN(3) > 0 && strings.Count(p, "/") < 4 {
		p += "/" + l.names[l.rnd.IntN(len(l.names))]
	}
	return p
}

// kindOf remembers the files that a layer has made, so that entries make sense more often than not.
type kindOf map[string]byte

// layer makes up to n entries.
func (l *layers) layer(n int) []ent {
	var entries []ent
	made := make(kindOf)
	put := func(e ent) {
		e = e.mode([]int64{0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777}[l.rnd.IntN(6)])
		e = e.time(past.Add(time.Duration(l.rnd.IntN(1000)) * time.Second))
		if os.Getuid() == 0 {
			e = e.owner(1+l.rnd.IntN(3), 1+l.rnd.IntN(3))
		} else {
			e = e.mode(e.Mode | 0o700) // or nothing could be made below it
		}
		entries = append(entries, e)
		made[strings.TrimSuffix(e.Name, "/")] = e.Typeflag
	}
	// parents makes the directories above p, and says whether p can be put there.
	parents := func(p string) bool {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			k, ok := made[d]
			if !ok {
				k, ok = l.lower[d]
			}
			if ok && k != tar.TypeDir && (l.opaque || k != tar.TypeSymlink || l.rnd.IntN(8) > 0) {
				return false
			}
		}
		if l.opaque {
			elems := strings.Split(p, "/")
			for i := 1; i < len(elems); i++ {
				if d := strings.Join(elems[:i], "/"); made[d] == 0 {
					put(folder(d))
				}
			}
		}
		return true
	}
	// taken: a directory that is replaced has no times for go-archive to set at the end.
	taken := func(p string) bool { return made[p] == tar.TypeDir || under(made, p) }
	for range n {
		p := l.path()
		if !parents(p) {
			continue
		}
		switch l.rnd.IntN(12) {
		case 0, 1, 2:
			if !taken(p) {
				put(file(p, strings.Repeat(p, l.rnd.IntN(5))))
			}
		case 3:
			if !taken(p) {
				put(file(p, strings.Repeat("long", 30_000+l.rnd.IntN(3000))))
			}
		case 4, 5:
			if made[p] == 0 || made[p] == tar.TypeDir {
				put(folder(p))
			}
		case 6:
			if !taken(p) && !l.opaque {
				put(symlink(p, []string{l.path(), "/" + l.path(), "missing/" + l.path()}[l.rnd.IntN(3)]))
			} else if !taken(p) {
				put(symlink(p, "nowhere/"+l.path()))
			}
		case 7:
			targets := slices.DeleteFunc(slices.Sorted(maps.Keys(made)), func(q string) bool { return made[q] != tar.TypeReg || q == p })
			if len(targets) > 0 && !taken(p) {
				put(hardlink(p, targets[l.rnd.IntN(len(targets))]))
			}
		case 8:
			if !taken(p) {
				put(fifo(p))
			}
		case 9:
			if !taken(p) && os.Getuid() == 0 {
				put(ent{Header: tar.Header{Typeflag: tar.TypeChar, Name: p, Devmajor: 1, Devminor: int64(l.rnd.IntN(300))}})
			}
		case 10:
			if made[p] == 0 && !under(made, p) {
				entries = append(entries, file(path.Join(path.Dir(p), archive.WhiteoutPrefix+path.Base(p)), ""))
			}
		case 11:
			if l.opaque {
				entries = append(entries, file(path.Join(path.Dir(p), archive.WhiteoutOpaqueDir), ""))
			}
		}
	}
	maps.Copy(l.lower, made)
	return entries
}

// under says whether something was made below a path.
func under(made kindOf, p string) bool {
	for q := range made {
		if strings.HasPrefix(q, p+"/") {
			return true
		}
	}
	return false
}

func must(t testing.TB, err error) {
	t.Helper()
	require.NoError(t, err)
}

func describe(entries []ent) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%c %q %q (%d)\n", e.Typeflag, e.Name, e.Linkname, len(e.data))
	}
	return b.String()
}

// heapInUse returns how much memory the heap of the process takes, garbage included.
func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
