package testfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Subvolumes returns the paths, relative to the top of the filesystem and sorted, of all subvolumes of the
// btrfs mounted on mnt. Subvolumes that are deleted but not yet cleaned up by the kernel are not listed.
func Subvolumes(t testing.TB, mnt string) []string {
	t.Helper()
	paths, err := ListSubvolumes(mnt)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	return paths
}

// ListSubvolumes is [Subvolumes] for a goroutine that cannot end the test, as the condition of a wait.
func ListSubvolumes(mnt string) ([]string, error) {
	roots, err := readRoots(mnt)
	if err != nil {
		return nil, fmt.Errorf("list subvolumes: %w", err)
	}
	paths := make([]string, 0, len(roots))
	for id, r := range roots {
		if !r.linked {
			continue
		}
		path, err := roots.path(mnt, id)
		if errors.Is(err, unix.ENOENT) {
			continue // it has just been removed, with its directory
		}
		if err != nil {
			return nil, fmt.Errorf("list subvolumes: %w", err)
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths, nil
}

// WaitDeleted returns when the kernel has cleaned up all deleted subvolumes on the btrfs mounted on mnt. Their space
// is then free, and their qgroups are as the kernel leaves them. It fails the test after [Patience].
func WaitDeleted(t testing.TB, mnt string) {
	t.Helper()
	var left []uint64
	ok := eventually(patience, func() bool {
		// The cleaner sleeps for up to the commit interval; a sync wakes it.
		if err := ioctlPath(mnt, iocSync, nil); err != nil {
			t.Fatalf("testfs: sync %s: %v", mnt, err)
		}
		roots, err := readRoots(mnt)
		if err != nil {
			t.Fatalf("testfs: %v", err)
		}
		left = left[:0]
		for id, r := range roots {
			if !r.linked {
				left = append(left, id)
			}
		}
		return len(left) == 0
	})
	if !ok {
		t.Fatalf("testfs: deleted subvolumes %v of %s are not cleaned up", left, mnt)
	}
	// The last one may have been dropped since the sync. Its qgroup has its final numbers when that is committed.
	if err := ioctlPath(mnt, iocSync, nil); err != nil {
		t.Fatalf("testfs: sync %s: %v", mnt, err)
	}
}

// Qgroups returns the ids of the level-0 qgroups of the btrfs mounted on mnt, sorted. The id of a level-0
// qgroup is that of its subvolume; 5 is the top of the filesystem. Where quotas are off there are none.
func Qgroups(t testing.TB, mnt string) []uint64 {
	t.Helper()
	uuid, err := fsid(mnt)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join("/sys/fs/btrfs", uuid, "qgroups"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	var ids []uint64
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "0_")
		if !ok {
			continue
		}
		id, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			t.Fatalf("testfs: unexpected qgroup %q: %v", e.Name(), err)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// StaleQgroups returns the ids of level-0 qgroups whose subvolume is gone for good: neither linked nor
// waiting to be cleaned up.
func StaleQgroups(t testing.TB, mnt string) []uint64 {
	t.Helper()
	roots, err := readRoots(mnt)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	return slices.DeleteFunc(Qgroups(t, mnt), func(id uint64) bool {
		_, exists := roots[id]
		return exists || id < firstFreeID
	})
}

// root is the root tree's description of one subvolume.
type root struct {
	linked bool   // it has a name, that is: it is not deleted
	parent uint64 // the subvolume that holds the name
	dir    uint64 // the inode of the directory that holds the name
	name   string
}

type roots map[uint64]root

func readRoots(mnt string) (roots, error) {
	all := make(roots)
	err := searchRoots(mnt, func(item searchItem) error {
		switch item.kind {
		case rootItemKey:
			if _, ok := all[item.objectID]; !ok {
				all[item.objectID] = root{}
			}
		case rootBackrefKey:
			// struct btrfs_root_ref: le64 dirid, le64 sequence, le16 name_len, name
			const nameAt = 18
			if len(item.data) < nameAt || len(item.data) < nameAt+int(binary.LittleEndian.Uint16(item.data[16:])) {
				return fmt.Errorf("root reference of subvolume %d is truncated", item.objectID)
			}
			n := int(binary.LittleEndian.Uint16(item.data[16:]))
			all[item.objectID] = root{
				linked: true,
				parent: item.offset,
				dir:    binary.LittleEndian.Uint64(item.data),
				name:   string(item.data[nameAt : nameAt+n]),
			}
		}
		return nil
	})
	return all, err
}

// path returns the path of a linked subvolume from the top of the filesystem.
func (r roots) path(mnt string, id uint64) (string, error) {
	var path string
	for depth := 0; id >= firstFreeID; depth++ {
		sub, ok := r[id]
		if !ok || !sub.linked || depth > len(r) {
			return "", fmt.Errorf("subvolume %d has no way up to the top", id)
		}
		dir, err := dirPath(mnt, sub.parent, sub.dir)
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir+sub.name, path)
		id = sub.parent
	}
	return path, nil
}

// CheckLeaks fails the test if, when it ends, the process has goroutines or descriptors that it did not have when
// CheckLeaks was called. New mounts under the test's own directory or the given directories fail the test too.
//
// Call it first in a test, so that all other clean-up is done before it looks. Goroutines and descriptors belong to
// the whole process: do not use it in a test that runs parallel to others.
func CheckLeaks(t testing.TB, dirs ...string) {
	t.Helper()
	dirs = append(slices.Clone(dirs), filepath.Dir(t.TempDir()))
	if base := os.Getenv(DirEnv); base != "" {
		dirs = append(dirs, base)
	}
	goroutines := goroutineIDs()
	descriptors := openDescriptors(t)
	mounts := mountSet(t, dirs)

	t.Cleanup(func() {
		// Goroutines that were told to stop may take a moment to do so.
		var leaked []string
		ok := eventually(patience, func() bool {
			leaked = append(newGoroutines(goroutines), newKeys("descriptor", descriptors, openDescriptors(t))...)
			return len(leaked) == 0
		})
		if !ok {
			t.Errorf("testfs: leaked:\n%s", strings.Join(leaked, "\n"))
		}
		if leaked := newKeys("mount", mounts, mountSet(t, dirs)); len(leaked) > 0 {
			t.Errorf("testfs: leaked:\n%s", strings.Join(leaked, "\n"))
		}
	})
}

func mountSet(t testing.TB, dirs []string) map[string]string {
	t.Helper()
	set := make(map[string]string)
	for _, dir := range dirs {
		for _, m := range mountsUnder(t, dir) {
			set[m] = m
		}
	}
	return set
}

// openDescriptors maps the numbers of this process's descriptors to their files, without those that the Go runtime
// keeps for itself.
func openDescriptors(t testing.TB) map[string]string {
	t.Helper()
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	open := make(map[string]string)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil { // the descriptor that ReadDir itself used
			continue
		}
		if target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		open[e.Name()+" "+target] = e.Name() + " -> " + target
	}
	return open
}

func newKeys(what string, before, after map[string]string) []string {
	var added []string
	for key, text := range after {
		if _, ok := before[key]; !ok {
			added = append(added, what+" "+text)
		}
	}
	slices.Sort(added)
	return added
}

// Sync commits everything written to the filesystem that holds path, so that its counts are up to date.
func Sync(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatalf("testfs: sync: %v", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatalf("testfs: sync %s: %v", path, err)
	}
}
