package zfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// TestFull does every operation while a pool fills up, and while the dataset that holds the volumes reaches its quota.
// The home is on the full filesystem. An operation that fails says ENOSPC and leaves nothing. EDQUOT would be the limit of a
// volume. Volumes can be removed at each level. A home can be opened, and emptied.
func TestFull(t *testing.T) {
	levels := []int{100}
	if testfs.Long() {
		levels = []int{95, 96, 97, 98, 99, 100}
	}
	for name, properties := range map[string][]string{
		"pool":  {},
		"quota": {"-o", "quota=16M"},
	} {
		t.Run(name, func(t *testing.T) {
			pool, _ := testfs.OwnZpool(t, 96<<20, 128<<20)
			mountpoint := t.TempDir() + "/root"
			root := pool + "/root"
			zfs(t, append(append([]string{"create", "-o", "mountpoint=" + mountpoint}, properties...), root)...)
			f := &full{faultyOn(t, root, mountpoint), mountpoint, nil}
			f.prepare(t)
			for _, level := range levels {
				require.NoError(t, f.Create(t.Context(), fmt.Sprintf("removed-at-%d", level), cowcommon.VolumeOptions{}))
			}
			for _, level := range levels {
				f.fillTo(t, level)
				f.tryAll(t, fmt.Sprintf("%d %%", level))
				require.NoError(t, f.Remove(t.Context(), fmt.Sprintf("removed-at-%d", level)))
			}
			f.empty(t)
		})
	}
}

type full struct {
	faulty
	mountpoint string
	stream     []byte // of a volume of 2 MiB
}

// prepare makes the volumes "image", sealed; "top", cloned from it; "base"; and "ballast", which the test fills.
func (f *full) prepare(t *testing.T) {
	ctx := t.Context()
	for _, name := range []string{"image", "base", "ballast"} {
		require.NoError(t, f.Create(ctx, name, cowcommon.VolumeOptions{}))
		fill(t, f.Backend, name, "file", randomBytes(1<<20))
	}
	require.NoError(t, f.Clone(ctx, "top", "image", cowcommon.VolumeOptions{}))
	fill(t, f.Backend, "top", "added", randomBytes(1<<10))
	require.NoError(t, f.Create(ctx, "sent", cowcommon.VolumeOptions{}))
	fill(t, f.Backend, "sent", "file", randomBytes(2<<20))
	require.NoError(t, f.Seal(ctx, "sent"))
	var stream bytes.Buffer
	require.NoError(t, f.send(ctx, "sent", &stream))
	f.stream = stream.Bytes()
	require.NoError(t, f.Remove(ctx, "sent"))
}

// send writes a sealed volume as a stream.
func (f *full) send(ctx context.Context, volume string, to io.Writer) error {
	v, err := f.View(ctx, volume)
	if err != nil {
		return err
	}
	return errors.Join(f.Send(ctx, to, nil, v), v.Close())
}

// apply extracts a layer of that many bytes into a volume.
func (f *full) apply(ctx context.Context, volume string, size int) error {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	content := randomBytes(size)
	err := w.WriteHeader(&tar.Header{Name: "applied", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(size)})
	_, writeErr := w.Write(content)
	if err := errors.Join(err, writeErr, w.Close()); err != nil {
		return err
	}
	_, err = cowcommon.Apply(ctx, f.Backend, volume, &layer, layertar.ApplyOptions{})
	return err
}

// fillTo fills the dataset until that many percent of it are in use. With 100 it fills it to the last byte and the last
// entry.
func (f *full) fillTo(t *testing.T, percent int) {
	t.Helper()
	dir, err := f.Mount(t.Context(), "ballast", "")
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Unmount(t.Context(), "ballast")) }()
	for {
		zpoolSync(t, f.zfs.pool)
		used, available := f.space(t)
		write := available - (used+available)*(100-percent)/100
		if write < 1<<20 {
			break
		}
		file, err := os.CreateTemp(dir, "")
		require.NoError(t, err)
		_, err = file.Write(randomBytes(write))
		require.NoError(t, file.Close())
		if err != nil {
			require.True(t, fault.IsFull(err), err)
			break
		}
	}
	if percent < 100 {
		return
	}
	for size := 1 << 20; size >= 0; {
		zpoolSync(t, f.zfs.pool)
		file, err := os.CreateTemp(dir, "")
		if err == nil {
			_, err = file.Write(randomBytes(size))
			err = errors.Join(err, file.Close())
		}
		switch {
		case fault.IsFull(err) && size == 0:
			return
		case fault.IsFull(err):
			size /= 16
		default:
			require.NoError(t, err)
		}
	}
}

func zpoolSync(t *testing.T, pool string) {
	t.Helper()
	run(t, "zpool", "sync", pool)
}

// space returns the bytes in use and the bytes available.
func (f *full) space(t *testing.T) (used, available int) {
	t.Helper()
	out := strings.Fields(zfs(t, "list", "-Hpo", "used,available", f.root))
	require.Len(t, out, 2)
	used, err := strconv.Atoi(out[0])
	require.NoError(t, err)
	available, err = strconv.Atoi(out[1])
	require.NoError(t, err)
	return used, available
}

// tryAll tries all operations. Each succeeds, and is undone. Or it says that there is no space, and leaves nothing.
func (f *full) tryAll(t *testing.T, level string) {
	t.Helper()
	ctx := t.Context()
	d := cowdriver.New(Name, f.Backend, cowdriver.Options{})
	remove := func() error { return f.Remove(ctx, "new") }
	needsNoSpace := map[string]bool{"view of sealed": true, "usage": true, "mount": true, "send": true}
	remakeBase := func() error {
		return errors.Join(f.Remove(ctx, "base"), f.Create(ctx, "base", cowcommon.VolumeOptions{}))
	}
	for _, try := range []struct {
		what     string
		do, undo func() error
	}{
		{"create", func() error { return f.Create(ctx, "new", cowcommon.VolumeOptions{}) }, remove},
		{"create owned", func() error { return f.Create(ctx, "new", cowcommon.VolumeOptions{UID: 1, GID: 1}) }, remove},
		{"clone", func() error { return f.Clone(ctx, "new", "image", cowcommon.VolumeOptions{}) }, remove},
		{"clone and seal", func() error { return f.Clone(ctx, "new", "base", cowcommon.VolumeOptions{}) }, func() error {
			return errors.Join(remove(), remakeBase())
		}},
		{"seal", func() error { return f.Seal(ctx, "base") }, remakeBase},
		{"keep and restore", func() error {
			k, err := f.Keep(ctx, "base")
			if err != nil {
				return err
			}
			return errors.Join(k.Restore(ctx), k.Close())
		}, nil},
		{"send", func() error { return f.send(ctx, "image", io.Discard) }, nil},
		{"apply", func() error { return f.apply(ctx, "ballast", 2<<20) }, nil},
		{"files of a diff", func() error {
			_, release, err := d.DiffPath("top")
			if err != nil {
				return err
			}
			return release()
		}, nil},
		{"view", func() error { return closeView(f.View(ctx, "base")) }, nil},
		{"view of sealed", func() error { return closeView(f.View(ctx, "image")) }, nil},
		{"changes", func() error {
			changes, err := d.Changes("top", "image")
			if err == nil {
				assert.Len(t, changes, 1)
			}
			return err
		}, nil},
		{"diff", func() error {
			diff, err := d.Diff("top", "image")
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, diff)
			return errors.Join(err, diff.Close())
		}, nil},
		{"usage", func() error { _, err := f.Usage(ctx, "base"); return err }, nil},
		{"limit", func() error { return f.SetLimit(ctx, "base", quota.Limit{Bytes: 8 << 20}) }, func() error {
			return f.SetLimit(ctx, "base", quota.Limit{})
		}},
		{"rename", func() error { return f.Rename(ctx, "base", "new") }, func() error { return f.Rename(ctx, "new", "base") }},
		{"mount", func() error { return errors.Join(second(f.Mount(ctx, "base", "")), f.Unmount(ctx, "base")) }, nil},
		{"receive", func() error { return f.Receive(ctx, "new", "", bytes.NewReader(f.stream)) }, remove},
		{"receive of nothing", func() error { return f.Receive(ctx, "new", "", bytes.NewReader(nil)) }, nil},
	} {
		before := f.state(t)
		err := try.do()
		switch {
		case try.what == "receive of nothing": // it fails with and without space
			require.Error(t, err)
			assert.Equal(t, before, f.state(t), "%s at %s", try.what, level)
		case err != nil:
			assert.False(t, needsNoSpace[try.what], "%s at %s: %v", try.what, level, err)
			t.Logf("%s at %s: %v", try.what, level, err)
			require.ErrorIs(t, err, unix.ENOSPC, "%s at %s", try.what, level)
			assert.NotErrorIs(t, err, unix.EDQUOT, "%s at %s", try.what, level)
			assert.Equal(t, before, f.state(t), "%s at %s: %v", try.what, level, err)
		case try.undo != nil:
			if err := try.undo(); !fault.IsFull(err) {
				require.NoError(t, err, "%s at %s", try.what, level)
			}
		}
		if try.undo != nil {
			f.assertTold(t, try.what+" at "+level)
		}
		for _, dir := range []string{f.locks, f.views, f.graph, f.intents} {
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			assert.Empty(t, entries, "%s at %s", try.what, level)
		}
	}
}

func closeView(v cowcommon.View, err error) error {
	if err != nil {
		return err
	}
	return v.Close()
}

// empty opens the home again, while no other process has it open, and removes everything.
func (f *full) empty(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	require.NoError(t, f.Backend.Close())
	require.NoError(t, f.beside.Close())
	f.Backend, f.beside = openOn(t, f.root, f.mountpoint), openOn(t, f.root, f.mountpoint)
	require.NoError(t, f.Remove(ctx, "image"), "it has a clone")
	f.assertTold(t, "removed image")
	retained, err := f.beside.Retained(ctx)
	require.NoError(t, err)
	assert.Equal(t, 1, retained.Volumes)
	for v, err := range f.beside.Volumes(ctx) {
		require.NoError(t, err)
		require.NoError(t, f.Remove(ctx, v.Name))
		f.assertTold(t, "removed "+v.Name)
	}
	assert.Len(t, f.state(t), 2, "only the root")
	require.Eventually(t, func() bool {
		used, available := f.space(t)
		return available > used
	}, testfs.Patience, 100*time.Millisecond, "the space is free")
	require.NoError(t, f.Create(ctx, "after", cowcommon.VolumeOptions{}))
	fill(t, f.Backend, "after", "file", randomBytes(1<<20))
	require.NoError(t, f.Remove(ctx, "after"))
}

// TestCounterWithoutSpace: without space for a write the counter still counts, and no count comes back.
func TestCounterWithoutSpace(t *testing.T) {
	testfs.Root(t)
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"))
	defer func() { assert.NoError(t, unix.Unmount(dir, 0)) }()
	file, err := os.Create(filepath.Join(dir, counterName))
	require.NoError(t, err)
	defer file.Close()
	require.NoError(t, file.Truncate(counterSize)) // a hole: a write to it needs space
	c := counter{file}
	seen := map[count]bool{}
	add := func() {
		before, now, err := c.add(t.Context())
		require.NoError(t, err)
		read, readErr := c.read()
		require.NoError(t, readErr)
		assert.Equal(t, now, read)
		assert.NotEqual(t, before, now)
		assert.False(t, seen[now], now)
		seen[now] = true
	}
	require.ErrorIs(t, os.WriteFile(dir+"/all", make([]byte, 1<<20), 0o600), unix.ENOSPC)
	add()
	add()
	assert.Equal(t, map[count]bool{{0, counterSize - 1}: true, {0, counterSize - 2}: true}, seen)
	require.NoError(t, os.Remove(dir+"/all"))
	add()
	assert.True(t, seen[count{1, counterSize}])
	add()
}
