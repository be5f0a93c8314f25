package btrfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// levels are the percentages of used space at which operations are tested.
var levels = []int{95, 96, 97, 98, 99, 100}

// fillings are the ways in which a filesystem can be full.
var fillings = map[string]func(t *testing.T, mnt string, percent int){
	"data": func(t *testing.T, mnt string, percent int) { testfs.Fill(t, mnt, testfs.Data, percent) },
	"metadata": func(t *testing.T, mnt string, percent int) {
		testfs.Fill(t, mnt, testfs.Data, 100)
		testfs.Fill(t, mnt, testfs.Metadata, percent)
	},
}

// TestFullFilesystem runs every operation on filesystems that become fuller and fuller.
func TestFullFilesystem(t *testing.T) {
	for mode, opts := range modes {
		for filling, fill := range fillings {
			t.Run(mode+"/"+filling, func(t *testing.T) {
				t.Parallel()
				f := newFull(t, filling, opts)
				for _, level := range levels {
					fill(t, f.mnt, level)
					f.level = level
					f.tryEverything()
				}
				f.empty()
			})
		}
	}
}

// fullHome is a home on a filesystem that becomes full.
type fullHome struct {
	t       *testing.T
	mnt     string
	filling string
	driver  *cowdriver.Driver
	level   int
	stream  []byte
	layer   []byte   // a tar with a file of 1 MiB
	foreign foreign  // has the subvolume "source"
	names   []string // of the present volumes
}

// victims make volumes of several kinds. There is one volume of each kind per level, which is removed at that level.
var victims = map[string]func(f *fullHome, name string){
	"plain": func(f *fullHome, name string) { f.create(name) },
	"sealed": func(f *fullHome, name string) {
		f.create(name)
		require.NoError(f.t, f.backend().Seal(f.t.Context(), name))
	},
	"parent": func(f *fullHome, name string) {
		f.create(name)
		f.names = append(f.names, name+"-child")
		require.NoError(f.t, f.backend().Clone(f.t.Context(), name+"-child", name, cowcommon.VolumeOptions{}))
	},
	"nested":        func(f *fullHome, name string) { f.nest(f.create(name)) },
	"source":        func(f *fullHome, name string) { f.create(name) },
	"sealed-later":  func(f *fullHome, name string) { f.create(name) },
	"source-nested": func(f *fullHome, name string) { f.nest(f.create(name)) },
	"nested-sealed": func(f *fullHome, name string) {
		f.nest(f.create(name))
		require.NoError(f.t, f.backend().Seal(f.t.Context(), name))
	},
}

func newFull(t *testing.T, filling string, opts []testfs.BtrfsOption) *fullHome {
	f := &fullHome{t: t, filling: filling, mnt: testfs.Btrfs(t, append(slices.Clone(opts), testfs.WithSize(256<<20))...)}
	f.open()
	t.Cleanup(func() { assert.NoError(t, f.driver.Cleanup()) })
	for _, level := range levels {
		for victim, make := range victims {
			make(f, fmt.Sprintf("%s-%d", victim, level))
		}
	}
	f.create("writable")
	f.nest(f.create("writable-nested"))
	f.create("base")
	f.names = append(f.names, "top")
	require.NoError(t, f.backend().Clone(t.Context(), "top", "base", cowcommon.VolumeOptions{}))
	require.NoError(t, os.WriteFile(f.path("top")+"/changed", make([]byte, 100<<10), 0o600))
	require.NoError(t, f.backend().Seal(t.Context(), "top"))
	f.stream = f.send("base", "top")
	f.layer = layerOf(t, 1<<20)
	f.foreign = newForeign(t, f.mnt)
	f.foreign.Create("source", "")
	f.ballast("ballast")
	return f
}

// layerOf is a tar with a file of that many bytes.
func layerOf(t *testing.T, size int) []byte {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "applied", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(size)}))
	_, err := w.Write(make([]byte, size))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return layer.Bytes()
}

func (f *fullHome) open() {
	b, err := Open(f.t.Context(), filepath.Join(f.mnt, "home"), Options{})
	require.NoError(f.t, err, f.level)
	f.driver = cowdriver.New(Name, b, cowdriver.Options{})
}

func (f *fullHome) backend() *Backend { return f.driver.Backend().(*Backend) }

func (f *fullHome) path(name string) string {
	return filepath.Join(f.mnt, "home", subvolumesName, name)
}

// create makes a volume with some content and returns its path.
func (f *fullHome) create(name string) string {
	require.NoError(f.t, f.backend().Create(f.t.Context(), name, cowcommon.VolumeOptions{}))
	f.names = append(f.names, name)
	require.NoError(f.t, os.WriteFile(f.path(name)+"/file", make([]byte, 64<<10), 0o600))
	return f.path(name)
}

// nest makes subvolumes inside the subvolume at path, and makes one of them read-only.
func (f *fullHome) nest(path string) {
	for _, at := range []string{path, path + "/nested"} {
		dir, err := os.Open(at)
		require.NoError(f.t, err)
		require.NoError(f.t, btrfsctl.CreateSubvolume(int(dir.Fd()), "nested", nil))
		require.NoError(f.t, dir.Close())
	}
	dir, err := os.Open(path + "/nested")
	require.NoError(f.t, err)
	defer dir.Close()
	require.NoError(f.t, btrfsctl.SetReadOnly(int(dir.Fd()), true))
}

// ballast makes a large volume. Without it, the filesystem has room again.
func (f *fullHome) ballast(name string) {
	path := f.create(name)
	require.NoError(f.t, os.WriteFile(path+"/data", make([]byte, 16<<20), 0o600))
	for i := range 400 {
		file := fmt.Sprintf("%s/%d", path, i)
		require.NoError(f.t, os.WriteFile(file, nil, 0o600))
		require.NoError(f.t, unix.Setxattr(file, "user.ballast", make([]byte, 14<<10), 0))
	}
	require.NoError(f.t, f.backend().Sync(f.t.Context(), name))
}

func (f *fullHome) send(base, top string) []byte {
	b, ctx := f.backend(), f.t.Context()
	from, err := b.View(ctx, base)
	require.NoError(f.t, err)
	to, err := b.View(ctx, top)
	require.NoError(f.t, err)
	var stream bytes.Buffer
	require.NoError(f.t, b.Send(ctx, &stream, from, to))
	require.NoError(f.t, errors.Join(from.Close(), to.Close()))
	return stream.Bytes()
}

// must asserts that an operation succeeds on a full filesystem too.
func (f *fullHome) must(what string, err error) {
	assert.NoError(f.t, err, "%s at %d %%", what, f.level)
	f.assertClean(what)
}

// may asserts that an operation succeeds or fails for want of space, and reports whether it has succeeded.
func (f *fullHome) may(what string, err error) bool {
	if err != nil {
		assert.True(f.t, errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT), "%s at %d %%: %v", what, f.level, err)
	}
	f.assertClean(what)
	return err == nil
}

// assertClean asserts that the home has the volumes in names and nothing else.
func (f *fullHome) assertClean(after string) {
	assert.ElementsMatch(f.t, f.names, volumes(f.t, f.backend()), "after %s at %d %%", after, f.level)
	for _, dir := range []string{stagingName, viewsName, removingName} {
		entries, err := os.ReadDir(filepath.Join(f.mnt, "home", dir))
		require.NoError(f.t, err)
		for _, entry := range entries {
			assert.True(f.t, isQgroupMark(entry), "%s/%s after %s at %d %%", dir, entry.Name(), after, f.level)
		}
	}
}

func (f *fullHome) forget(name string) {
	f.names = slices.DeleteFunc(f.names, func(n string) bool { return n == name })
}

// tryEverything runs every operation once, and removes all that they make.
func (f *fullHome) tryEverything() {
	f.tryReading()
	f.tryMaking()
	f.tryChanging()
	if f.level == levels[0] || f.level == 100 || testfs.Long() { // each takes some commits
		f.tryForking()
		f.tryFilling()
	}
	assert.NoError(f.t, f.driver.Cleanup())
	f.open()
	f.assertClean("close and open")
	for victim := range victims {
		name := fmt.Sprintf("%s-%d", victim, f.level)
		f.forget(name)
		f.must("remove "+name, f.driver.Remove(name))
	}
}

func (f *fullHome) tryReading() {
	b, ctx := f.backend(), f.t.Context()
	_, err := b.Stat(ctx, "top")
	f.must("stat", err)
	assert.NotEmpty(f.t, b.Status(ctx))
	_, err = b.Mount(ctx, "writable", "")
	f.must("mount", err)
	f.must("unmount", b.Unmount(ctx, "writable"))
	_, err = b.MountSpec(ctx, "writable", true)
	f.must("mount spec", err)

	for _, name := range []string{"top", "writable", "writable-nested"} {
		parent := map[string]string{"top": "base"}[name]
		_, err = f.driver.Changes(name, parent)
		f.may("changes of "+name, err)
		diff, err := f.driver.Diff(name, parent)
		if err == nil {
			_, err = io.Copy(io.Discard, diff)
			err = errors.Join(err, diff.Close())
		}
		f.may("diff of "+name, err)
		_, err = f.driver.DiffSize(name, parent)
		f.may("diff size of "+name, err)
		_, err = f.driver.Usage(ctx, name)
		f.may("usage of "+name, err)
		files, err := f.driver.DiffGetter(name)
		if err == nil {
			err = files.Close()
		}
		f.may("diff getter of "+name, err)
	}
	assert.NotEmpty(f.t, f.send("base", "top"))
	f.assertClean("send")
}

func (f *fullHome) tryMaking() {
	b, ctx := f.backend(), f.t.Context()
	sources := map[string]string{
		"clone of writable": fmt.Sprintf("source-%d", f.level),
		"clone with nested": fmt.Sprintf("source-nested-%d", f.level),
	}
	for what, create := range map[string]func(name string) error{
		"create":             func(name string) error { return f.driver.CreateReadWrite(name, "", nil) },
		"clone of sealed":    func(name string) error { return f.driver.CreateReadWrite(name, "base", nil) },
		"clone of writable":  func(name string) error { return f.driver.Create(name, sources["clone of writable"], nil) },
		"clone with nested":  func(name string) error { return f.driver.Create(name, sources["clone with nested"], nil) },
		"receive":            func(name string) error { return b.Receive(ctx, name, "base", bytes.NewReader(f.stream)) },
		"clone with a limit": func(name string) error { return f.cloneLimited(name) },
		"adopt": func(name string) error {
			return b.Adopt(ctx, name, "", filepath.Join(f.mnt, "foreign/source"), cowcommon.VolumeOptions{})
		},
	} {
		err := create("new")
		if err == nil {
			f.names = append(f.names, "new")
		}
		f.may(what, err)
		if source := sources[what]; source != "" {
			v, statErr := b.Stat(ctx, source)
			require.NoError(f.t, statErr)
			assert.Equal(f.t, err == nil, v.Sealed, "%s at %d %%: %v", what, f.level, err)
			assert.Equal(f.t, v.Sealed, !f.canWrite(source))
		}
		f.forget("new")
		f.must("remove what came of "+what, b.Remove(ctx, "new"))
	}
}

// tryForking forks a volume and exchanges another for it.
func (f *fullHome) tryForking() {
	b, ctx := f.backend(), f.t.Context()
	err := b.Fork(ctx, "writable", "moment", []string{"fork"}, cowcommon.VolumeOptions{})
	if err == nil {
		f.names = append(f.names, "moment", "fork")
	}
	if f.may("fork", err) {
		err := b.Exchange(ctx, "writable", "fork")
		if f.may("exchange", err) {
			f.may("exchange back", b.Exchange(ctx, "writable", "fork"))
		}
		for _, name := range []string{"fork", "moment"} {
			f.forget(name)
			f.must("remove "+name, b.Remove(ctx, name))
		}
	}
	plain := fmt.Sprintf("sealed-later-%d", f.level)
	err = b.Seal(ctx, plain)
	f.may("seal", err)
	v, statErr := b.Stat(ctx, plain)
	require.NoError(f.t, statErr)
	assert.Equal(f.t, err == nil, v.Sealed, "%v", err)
	assert.Equal(f.t, v.Sealed, !f.canWrite(plain))
}

// tryFilling keeps a volume, fills it with a layer, and takes it back.
func (f *fullHome) tryFilling() {
	b, ctx := f.backend(), f.t.Context()
	kept, err := b.Keep(ctx, "writable")
	if err == nil {
		if _, err := f.driver.ApplyDiff("writable", "", bytes.NewReader(f.layer)); err == nil {
			assert.FileExists(f.t, f.path("writable")+"/applied")
		} else {
			assert.True(f.t, fault.IsFull(err), "apply at %d %%: %v", f.level, err)
		}
		if err := kept.Restore(ctx); err == nil {
			assert.NoFileExists(f.t, f.path("writable")+"/applied")
		} else {
			assert.True(f.t, fault.IsFull(err), "restore at %d %%: %v", f.level, err)
		}
		assert.NoError(f.t, kept.Close())
	}
	f.may("keep", err)
	_, release, err := f.driver.DiffPath("top")
	if err == nil {
		err = release()
	}
	f.may("files of a diff", err)
}

// cloneLimited clones with a limit if quotas are on. If they are off, it clones without, since the first limit would
// turn them on.
func (f *fullHome) cloneLimited(name string) error {
	mode, err := f.backend().quotas.Mode()
	require.NoError(f.t, err)
	var opts *graphdriver.CreateOpts
	if mode != quota.Off {
		opts = &graphdriver.CreateOpts{StorageOpt: map[string]string{"size": "10M"}}
	}
	return f.driver.CreateReadWrite(name, "base", opts)
}

// canWrite reports whether a volume is not read-only. Overwriting the mode of a file needs no space.
func (f *fullHome) canWrite(name string) bool {
	err := os.Chmod(f.path(name)+"/file", 0o640)
	if !errors.Is(err, unix.EROFS) {
		require.NoError(f.t, err)
	}
	return err == nil
}

func (f *fullHome) tryChanging() {
	b, ctx := f.backend(), f.t.Context()
	plain := fmt.Sprintf("plain-%d", f.level)
	if err := b.Rename(ctx, plain, "renamed"); err == nil {
		f.forget(plain)
		f.names = append(f.names, "renamed")
		f.may("rename", nil)
		f.forget("renamed")
		f.must("remove renamed", b.Remove(ctx, "renamed"))
	} else {
		f.may("rename", err)
	}
	mode, err := b.quotas.Mode()
	require.NoError(f.t, err)
	if mode != quota.Off {
		f.may("limit", b.SetLimit(ctx, "writable", quota.Limit{Bytes: 10 << 20}))
	}
	f.must("sync", b.Sync(ctx, "writable"))
	_, err = f.driver.ApplyDiff("writable", "", bytes.NewReader(nil))
	f.may("apply of nothing", err)
}

// empty removes every volume, and shows that the filesystem has room after that.
func (f *fullHome) empty() {
	b := f.backend()
	for _, name := range slices.Clone(f.names) {
		f.forget(name)
		f.must("remove "+name, f.driver.Remove(name))
	}
	f.foreign.Destroy("source")
	assert.Equal(f.t, []string{"home"}, testfs.Subvolumes(f.t, f.mnt))
	testfs.WaitDeleted(f.t, f.mnt)
	f.create("again")
	assert.NoError(f.t, b.Close())
	f.open()
	if f.filling != "metadata" { // full metadata may have left no room to mark qgroups of earlier processes
		assert.Empty(f.t, testfs.StaleQgroups(f.t, f.mnt))
	}
	f.assertClean("everything")
}
