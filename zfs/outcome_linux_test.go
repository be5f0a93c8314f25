package zfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// faultyKernel is the real kernel, with a fault in one call of one function.
type faultyKernel struct {
	kernel
	mu    sync.Mutex
	op    string        // the function of the fault, "" for no fault
	fault string        // the fault
	hit   chan struct{} // closed when the fault is there
	end   chan struct{} // closed when a call that is stuck may go on
	stuck atomic.Bool   // a call is stuck
	race  func()        // called before a call with the fault "race"
}

// arm makes the next call of a function have a fault. The channel is closed when the fault is there.
func (k *faultyKernel) arm(op, fault string) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.op, k.fault, k.hit, k.end = op, fault, make(chan struct{}), make(chan struct{})
	return k.hit
}

// release lets the call go on that is stuck.
func (k *faultyKernel) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end != nil {
		close(k.end)
		k.end = nil
	}
}

// armed returns the fault of a call, if it has one, and the end of being stuck.
func (k *faultyKernel) armed(op string) (fault string, hit, end chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.op != op {
		return "", nil, nil
	}
	k.op = ""
	if k.end == nil { // released before
		end = make(chan struct{})
		close(end)
		return k.fault, k.hit, end
	}
	return k.fault, k.hit, k.end
}

// call makes a call, maybe with its fault. half does a part of it, as before a power cut.
func (k *faultyKernel) call(op string, do, half func() error) error {
	fault, hit, end := k.armed(op)
	interrupted := &zfsctl.Error{Op: op, Name: "faulty", Err: unix.EINTR}
	switch fault {
	case "interrupted-before":
		close(hit)
		return interrupted
	case "interrupted-after":
		_ = do()
		close(hit)
		return interrupted
	case "interrupted-half":
		_ = half()
		close(hit)
		return interrupted
	case "race":
		close(hit)
		k.race()
		return do()
	case "cancelled-before":
		close(hit)
		time.Sleep(cancelledFor)
		return do()
	case "cancelled-after":
		err := do()
		close(hit)
		time.Sleep(cancelledFor)
		return err
	case "stuck-before":
		close(hit)
		k.stay(end)
		return do()
	case "stuck-after":
		err := do()
		close(hit)
		k.stay(end)
		return err
	}
	return do()
}

// stay waits as a call that is stuck until it is released, or for stuckFor.
func (k *faultyKernel) stay(end <-chan struct{}) {
	k.stuck.Store(true)
	defer k.stuck.Store(false)
	select {
	case <-end:
	case <-time.After(stuckFor):
	}
}

// stuckFor is how long a call is stuck at most: some operations wait for its end.
const stuckFor = testfs.Patience / 2

// cancelledFor is how long a call goes on after its context has ended.
const cancelledFor = 200 * time.Millisecond

// unmarked are properties as far as they are set when a dataset is half-made.
var unmarked = zfsctl.Values{"mountpoint": "legacy"}

func (k *faultyKernel) Create(name string, values zfsctl.Values) error {
	return k.call("create", func() error { return k.kernel.Create(name, values) }, func() error { return k.kernel.Create(name, unmarked) })
}

func (k *faultyKernel) Clone(name, origin string, values zfsctl.Values) error {
	return k.call("clone", func() error { return k.kernel.Clone(name, origin, values) }, func() error { return k.kernel.Clone(name, origin, unmarked) })
}

func (k *faultyKernel) Snapshot(name string) error {
	return k.call("snapshot", func() error { return k.kernel.Snapshot(name) }, nil)
}

func (k *faultyKernel) Stats(name string) (d zfsctl.Dataset, err error) {
	err = k.call("stats", func() error {
		d, err = k.kernel.Stats(name)
		return err
	}, nil)
	return d, err
}

func (k *faultyKernel) Exists(name string) (there bool, err error) {
	err = k.call("exists", func() error {
		there, err = k.kernel.Exists(name)
		return err
	}, nil)
	return there, err
}

func (k *faultyKernel) Children(name string) iter.Seq2[zfsctl.Dataset, error] {
	return k.list("children", k.kernel.Children(name))
}

func (k *faultyKernel) Snapshots(name string) iter.Seq2[zfsctl.Dataset, error] {
	return k.list("snapshots", k.kernel.Snapshots(name))
}

// list is a list with the fault at its end.
func (k *faultyKernel) list(op string, all iter.Seq2[zfsctl.Dataset, error]) iter.Seq2[zfsctl.Dataset, error] {
	return func(yield func(zfsctl.Dataset, error) bool) {
		var listed []zfsctl.Dataset
		err := k.call(op, func() error {
			for d, err := range all {
				if err != nil {
					return err
				}
				listed = append(listed, d)
			}
			return nil
		}, nil)
		for _, d := range listed {
			if !yield(d, nil) {
				return
			}
		}
		if err != nil {
			yield(zfsctl.Dataset{}, err)
		}
	}
}

func (k *faultyKernel) Destroy(name string) error {
	return k.call("destroy", func() error { return k.kernel.Destroy(name) }, nil)
}

func (k *faultyKernel) DestroySnapshot(name string) error {
	return k.call("destroy snapshot", func() error { return k.kernel.DestroySnapshot(name) }, nil)
}

func (k *faultyKernel) Diff(from, snapshot string, to *os.File) error {
	return k.call("diff", func() error { return k.kernel.Diff(from, snapshot, to) }, nil)
}

func (k *faultyKernel) Rollback(name, snapshot string) error {
	return k.call("rollback", func() error { return k.kernel.Rollback(name, snapshot) }, nil)
}

func (k *faultyKernel) Send(snapshot, from string, to *os.File) error {
	return k.call("send", func() error { return k.kernel.Send(snapshot, from, to) }, nil)
}

func (k *faultyKernel) Rename(name, to string) error {
	return k.call("rename", func() error { return k.kernel.Rename(name, to) }, nil)
}

func (k *faultyKernel) Promote(name string) error {
	return k.call("promote", func() error { return k.kernel.Promote(name) }, nil)
}

func (k *faultyKernel) DestroySnapshotLater(name string) error {
	return k.call("destroy later", func() error { return k.kernel.DestroySnapshotLater(name) }, nil)
}

func (k *faultyKernel) Set(name string, values zfsctl.Values) error {
	return k.call("set", func() error { return k.kernel.Set(name, values) }, nil)
}

func (k *faultyKernel) Mount(source, dir string, flags uintptr, data string) error {
	return k.call("mount", func() error { return k.kernel.Mount(source, dir, flags, data) }, nil)
}

func (k *faultyKernel) Unmount(dir string, detach bool) error {
	return k.call("unmount", func() error { return k.kernel.Unmount(dir, detach) }, nil)
}

func (k *faultyKernel) Program(pool, program string, argv []string) (answer any, err error) {
	err = k.call("program", func() error {
		answer, err = k.kernel.Program(pool, program, argv)
		return err
	}, nil)
	return answer, err
}

func (k *faultyKernel) Receive(snapshot, origin string, values zfsctl.Values, from *os.File) error {
	return k.call("receive", func() error { return k.kernel.Receive(snapshot, origin, values, from) }, nil)
}

// faults have outcomes that do not depend on the context. stuckFaults are those of a call that does not end before release.
var (
	faults      = []string{"interrupted-before", "interrupted-after", "cancelled-before", "cancelled-after"}
	stuckFaults = []string{"stuck-before", "stuck-after"}
)

// faulty is a Backend whose kernel has faults, and a second Backend that only hears of changes.
type faulty struct {
	*Backend
	beside *Backend
	faults *faultyKernel
}

func openFaulty(t *testing.T) faulty {
	root, mountpoint := testfs.ZFS(t)
	return faultyOn(t, root, mountpoint)
}

func faultyOn(t *testing.T, root, mountpoint string) faulty {
	f := faulty{Backend: openOn(t, root, mountpoint), beside: openOn(t, root, mountpoint)}
	f.faults = &faultyKernel{kernel: f.zfs.kernel}
	f.zfs.kernel = f.faults
	f.zfs.patience = testfs.Patience
	t.Cleanup(f.faults.release)
	return f
}

// with does an operation with a fault in one call, and cancels the context when the fault is there.
func (f faulty) with(t *testing.T, op, fault string, operation func(context.Context) error) error {
	t.Helper()
	hit := f.faults.arm(op, fault)
	err := operation(cancelledAt(t, hit))
	select {
	case <-hit:
	default:
		require.Fail(t, "no call", op)
	}
	return err
}

// state lists everything in the pool below the root dataset of the Backend.
func (f faulty) state(t *testing.T) []string {
	return strings.Split(zfs(t, "list", "-Hpr", "-t", "all", "-o", "name,origin,quota,refquota,"+markProperty, f.root), "\n")
}

// assertTold asserts that the indexes of both Backends agree with the pool.
func (f faulty) assertTold(t *testing.T, what string) {
	t.Helper()
	want, err := f.volumes.read(t.Context())
	require.NoError(t, err)
	for _, b := range []*Backend{f.Backend, f.beside} {
		got, err := b.volumes.all(t.Context())
		require.NoError(t, err)
		for _, datasets := range []map[string]dataset{want, got} {
			for name, d := range datasets {
				d.created, d.snapshotted, d.guid = time.Time{}, false, 0
				datasets[name] = d
				if isAside(name) { // no volume; it may be gone
					delete(datasets, name)
				}
			}
		}
		assert.Equal(t, want, got, what)
	}
}

// interruption is an operation, the call in which it is interrupted, and the state of the pool after the
// operation.
type interruption struct {
	name, command string
	prepare       func(t *testing.T, f faulty)
	operation     func(ctx context.Context, f faulty) error
	there, absent string // ends of lines of the state, once it has happened
}

// interruptions returns one interruption for each call of each operation. Volumes: "base" writable, "image"
// sealed.
func interruptions(stream []byte) []interruption {
	limit := quota.Limit{Bytes: 64 << 20}
	return []interruption{
		{name: "create", command: "create", there: "/new", operation: func(ctx context.Context, f faulty) error {
			return f.Create(ctx, "new", cowcommon.VolumeOptions{Limit: limit})
		}},
		{name: "create owned", command: "create", there: "/new", operation: createOwned},
		{name: "create owned", command: "rename", there: "/new", operation: createOwned},
		{name: "clone", command: "clone", there: "/new", operation: cloneOf("image")},
		{name: "clone and seal", command: "snapshot", there: "/base@layer", operation: cloneOf("base")},
		{name: "clone and seal", command: "clone", there: "/base@layer", operation: cloneOf("base")},
		{name: "clone in use", command: "snapshot", there: "/new", prepare: mountBase, operation: cloneOf("base")},
		{name: "clone in use", command: "clone", there: "/new", prepare: mountBase, operation: cloneOf("base")},
		{name: "adopt", command: "snapshot", there: "/new", prepare: makeForeign, operation: adoptForeign},
		{name: "adopt", command: "clone", there: "/new", prepare: makeForeign, operation: adoptForeign},
		{name: "settle", command: "set", there: fmt.Sprint(32 << 20), prepare: adopted, operation: settleNew},
		{name: "settle", command: "destroy later", there: fmt.Sprint(32 << 20), prepare: adopted, operation: settleNew},
		{name: "settle", command: "promote", there: fmt.Sprint(32 << 20), prepare: adopted, operation: settleNew},
		{name: "seal", command: "snapshot", there: "/base@layer", operation: func(ctx context.Context, f faulty) error {
			return f.Seal(ctx, "base")
		}},
		{name: "rename", command: "rename", there: "/new", absent: "/base", operation: func(ctx context.Context, f faulty) error {
			return f.Rename(ctx, "base", "new")
		}},
		{name: "set limit", command: "set", there: fmt.Sprint(limit.Bytes), operation: func(ctx context.Context, f faulty) error {
			return f.SetLimit(ctx, "base", limit)
		}},
		{name: "remove", command: "program", absent: "/base", operation: func(ctx context.Context, f faulty) error {
			return f.Remove(ctx, "base")
		}},
		{name: "remove sealed", command: "program", absent: "/image", operation: func(ctx context.Context, f faulty) error {
			return f.Remove(ctx, "image")
		}},
		{name: "remove parent", command: "program", absent: "/image", prepare: cloneImage, operation: removeImage},
		{name: "remove parent", command: "create", absent: "/image", prepare: cloneImage, operation: removeImage},
		{name: "remove parent", command: "rename", absent: "/image", prepare: cloneImage, operation: removeImage},
		{name: "scratch", command: "destroy", there: "/base", operation: makeScratch},
		{name: "view", command: "destroy snapshot", there: "/base", operation: viewBase},
		{name: "receive", command: "receive", there: "/new@layer", operation: receive(stream)},
		{name: "receive", command: "rename", there: "/new@layer", operation: receive(stream)},
	}
}

func createOwned(ctx context.Context, f faulty) error {
	return f.Create(ctx, "new", cowcommon.VolumeOptions{UID: 1000, GID: 1000})
}

func cloneOf(source string) func(context.Context, faulty) error {
	return func(ctx context.Context, f faulty) error {
		return f.Clone(ctx, "new", source, cowcommon.VolumeOptions{})
	}
}

// makeForeign makes a dataset of another program.
func makeForeign(t *testing.T, f faulty) {
	zfs(t, "create", "-p", "-o", "mountpoint=legacy", f.root+"/others/foreign")
	t.Cleanup(func() { zfs(t, "destroy", "-r", f.root+"/others") })
}

func adoptForeign(ctx context.Context, f faulty) error {
	return f.Adopt(ctx, "new", "", f.root+"/others/foreign", cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: 32 << 20}})
}

func adopted(t *testing.T, f faulty) {
	makeForeign(t, f)
	require.NoError(t, adoptForeign(t.Context(), f))
}

// settleNew settles again after an error, as finish does when it is repeated, and destroys the foreign dataset.
func settleNew(ctx context.Context, f faulty) error {
	if err := f.Settle(ctx, "new"); err != nil {
		if err := f.Settle(context.WithoutCancel(ctx), "new"); err != nil {
			return err
		}
	}
	return exec.Command("zfs", "destroy", "-r", f.root+"/others/foreign").Run()
}

func receive(stream []byte) func(context.Context, faulty) error {
	return func(ctx context.Context, f faulty) error { return f.Receive(ctx, "new", "", bytes.NewReader(stream)) }
}

func cloneImage(t *testing.T, f faulty) {
	require.NoError(t, cloneOf("image")(t.Context(), f))
	t.Cleanup(func() { assert.NoError(t, f.Remove(context.Background(), "new")) })
}

// makeScratch makes a scratch tree, and destroys it.
func makeScratch(ctx context.Context, f faulty) error {
	err := closeView(f.Scratch(ctx, func(string) error { return nil }))
	if err == nil && strings.Contains(zfsList(f.root), stagingPrefix) {
		return errors.New("the dataset of the scratch tree is left")
	}
	return err
}

// viewBase makes a view of a volume that is not sealed, by a snapshot, and closes it.
func viewBase(ctx context.Context, f faulty) error {
	err := closeView(f.View(ctx, "base"))
	if err == nil && strings.Contains(zfsList(f.root), viewPrefix) {
		return errors.New("the snapshot of the view is left")
	}
	return err
}

// zfsList lists everything in the pool below a dataset.
func zfsList(root string) string {
	out, err := exec.Command("zfs", "list", "-Hr", "-t", "all", "-o", "name", root).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

func removeImage(ctx context.Context, f faulty) error { return f.Remove(ctx, "image") }

func mountBase(t *testing.T, f faulty) {
	_, err := f.Mount(t.Context(), "base", "")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, f.Unmount(context.Background(), "base")) })
}

// TestInterrupted does each operation with each fault of each of its calls. The answer agrees with the pool: the
// operation has happened completely or not at all. And all processes are told.
func TestInterrupted(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, f.Create(ctx, "image", cowcommon.VolumeOptions{}))
	require.NoError(t, f.Seal(ctx, "image"))
	view, err := f.View(ctx, "image")
	require.NoError(t, err)
	var stream bytes.Buffer
	require.NoError(t, f.Send(ctx, &stream, nil, view))
	require.NoError(t, view.Close())

	for n, i := range interruptions(stream.Bytes()) {
		tried := faults
		if !testfs.Long() {
			tried = faults[n%len(faults):][:1]
		}
		if i.command == "create" || i.command == "clone" {
			tried = append(slices.Clone(tried), "interrupted-half")
		}
		for _, fault := range tried {
			t.Run(i.name+"/"+i.command+" "+fault, func(t *testing.T) {
				if i.prepare != nil {
					i.prepare(t, f)
				}
				before := f.state(t)
				err := f.with(t, i.command, fault, func(ctx context.Context) error { return i.operation(ctx, f) })
				i.check(t, f, before, err)
				if err != nil {
					return
				}
				// Restore the volumes for the next test.
				if f.mounts.Held("base") > 0 {
					require.NoError(t, f.Unmount(ctx, "base"))
				}
				require.NoError(t, f.Remove(ctx, "new"))
				for _, name := range []string{"base", "image"} {
					require.NoError(t, f.Remove(ctx, name))
					require.NoError(t, f.Create(ctx, name, cowcommon.VolumeOptions{}))
				}
				require.NoError(t, f.Seal(ctx, "image"))
			})
		}
	}
	intents, err := os.ReadDir(f.intents)
	require.NoError(t, err)
	assert.Empty(t, intents)
}

// check asserts that the pool agrees with the answer of an operation.
func (i interruption) check(t *testing.T, f faulty, before []string, err error) {
	t.Helper()
	after := f.state(t)
	if err != nil {
		t.Log(err)
		assert.Equal(t, before, after, "it has failed with: %v", err)
	} else {
		assert.True(t, i.there == "" || hasEnd(after, i.there), "%v has %s", after, i.there)
		assert.False(t, i.absent != "" && hasEnd(after, i.absent), "%v has not %s", after, i.absent)
		assert.NotContains(t, strings.Join(after, "\n"), stagingPrefix)
	}
	f.assertTold(t, fmt.Sprintf("it has ended with: %v", err))
}

// hasEnd reports whether a name or property in state has that end.
func hasEnd(state []string, end string) bool {
	return slices.ContainsFunc(state, func(line string) bool {
		return slices.ContainsFunc(strings.Split(line, "\t"), func(s string) bool { return strings.HasSuffix(s, end) })
	})
}

// TestInterruptedLooks interrupts calls that change nothing. Their errors are those of the operation, and the next operation
// works. A diff falls back to the walk.
func TestInterruptedLooks(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	d := cowdriver.New(Name, f.Backend, cowdriver.Options{})
	require.NoError(t, d.Create("base", "", nil))
	require.NoError(t, d.CreateReadWrite("child", "base", nil))
	fill(t, f.Backend, "child", "file", []byte("x"))
	require.NoError(t, d.Create("other", "", nil))
	zfs(t, "snapshot", f.datasetOf("other")+"@later") // so that the snapshots of the volume have to be listed
	changes := func() error {
		changes, err := d.Changes("child", "base")
		assert.Len(t, changes, 1)
		return err
	}
	for _, look := range []struct {
		command string
		do      func() error
		fails   bool
	}{
		{"children", func() error { return listAll(ctx, f.Backend) }, true},
		{"snapshots", func() error { return listAll(ctx, f.Backend) }, true},
		{"children", func() error { return second(f.Retained(ctx)) }, true},
		{"stats", func() error { return second(f.Usage(ctx, "child")) }, true},
		{"exists", func() error { return f.Seal(ctx, "base") }, true},
		{"diff", changes, false},
	} {
		for _, fault := range []string{"interrupted-before", "interrupted-after"} {
			t.Run(look.command+" "+fault, func(t *testing.T) {
				before := f.state(t)
				err := f.with(t, look.command, fault, func(context.Context) error { return look.do() })
				if look.fails {
					require.ErrorIs(t, err, unix.EINTR)
				} else {
					require.NoError(t, err)
				}
				require.NoError(t, look.do())
				assert.Equal(t, before, f.state(t))
				f.assertTold(t, look.command)
			})
		}
	}
}

func listAll(ctx context.Context, b *Backend) error {
	for _, err := range b.Volumes(ctx) {
		if err != nil {
			return err
		}
	}
	return nil
}

// TestStuck does operations with a call that does not end in time. They fail. Later changes by that call are
// undone, or told to all if they cannot be undone.
func TestStuck(t *testing.T) {
	f := openFaulty(t)
	f.zfs.patience = 50 * time.Millisecond
	ctx := t.Context()
	for _, i := range interruptions(nil) {
		switch i.name {
		case "receive", "remove sealed", "scratch", "view": // they end although a call is stuck
			continue
		}
		tried := stuckFaults
		if !testfs.Long() {
			tried = map[string][]string{
				"create": stuckFaults[:1], "clone and seal": stuckFaults[1:], "rename": stuckFaults[1:], "remove": stuckFaults[:1], "remove parent": stuckFaults[:1],
			}[i.name]
		}
		for _, fault := range tried {
			t.Run(i.name+"/"+i.command+" "+fault, func(t *testing.T) {
				require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
				require.NoError(t, f.Create(ctx, "image", cowcommon.VolumeOptions{}))
				require.NoError(t, f.Seal(ctx, "image"))
				if i.prepare != nil {
					i.prepare(t, f)
				}
				before := f.state(t)
				err := f.with(t, i.command, fault, func(ctx context.Context) error { return i.operation(ctx, f) })
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				require.ErrorIs(t, err, context.Canceled)
				if fault == "stuck-after" {
					f.assertTold(t, "while it is stuck")
				}
				f.faults.release()
				// The next user of the volume waits for it, and finds the state before or after.
				require.Eventually(t, func() bool { return !f.isDoubted() }, testfs.Patience, 10*time.Millisecond)
				switch i.name {
				case "rename", "set limit", "seal", "remove", "remove parent":
				default:
					require.Eventually(t, func() bool { return slices.Equal(before, f.state(t)) }, testfs.Patience, 100*time.Millisecond,
						"before: %v", before)
				}
				f.assertTold(t, "afterwards")
				for _, name := range []string{"new", "base", "image"} {
					if name == "base" && f.mounts.Held("base") > 0 {
						require.NoError(t, f.Unmount(ctx, "base"))
					}
					require.NoError(t, f.Remove(ctx, name))
				}
				assert.Len(t, f.state(t), 2, "only the root")
			})
		}
	}
}

// TestRemovedMeanwhile: a volume is removed between the look-up and the call of each operation. The answer is ErrNotFound.
func TestRemovedMeanwhile(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	for _, test := range []struct {
		name, volume, command string
		operation             func() error
	}{
		{"mount", "base", "exists", func() error { return second(f.Mount(ctx, "base", "")) }},
		{"mount", "base", "mount", func() error { return second(f.Mount(ctx, "base", "")) }},
		{"view", "base", "exists", func() error { return closeView(f.View(ctx, "base")) }},
		{"view", "base", "snapshot", func() error { return closeView(f.View(ctx, "base")) }},
		{"view", "base", "mount", func() error { return closeView(f.View(ctx, "base")) }},
		{"view of sealed", "image", "mount", func() error { return closeView(f.View(ctx, "image")) }},
		{"usage", "base", "stats", func() error { return second(f.Usage(ctx, "base")) }},
		{"set limit", "base", "set", func() error { return f.SetLimit(ctx, "base", quota.Limit{Bytes: 1 << 30}) }},
		{"seal", "base", "exists", func() error { return f.Seal(ctx, "base") }},
		{"seal", "base", "snapshot", func() error { return f.Seal(ctx, "base") }},
		{"keep", "base", "snapshot", func() error { return second(f.Keep(ctx, "base")) }},
		{"restore", "base", "rollback", func() error {
			k, err := f.Keep(ctx, "base")
			require.NoError(t, err)
			return errors.Join(k.Restore(ctx), k.Close())
		}},
		{"clone", "image", "clone", func() error { return f.Clone(ctx, "new", "image", cowcommon.VolumeOptions{}) }},
		{"clone and seal", "base", "exists", func() error { return f.Clone(ctx, "new", "base", cowcommon.VolumeOptions{}) }},
		{"clone and seal", "base", "snapshot", func() error { return f.Clone(ctx, "new", "base", cowcommon.VolumeOptions{}) }},
		{"rename", "base", "rename", func() error { return f.Rename(ctx, "base", "new") }},
		{"send", "image", "send", func() error {
			v, err := f.View(ctx, "image")
			require.NoError(t, err)
			require.NoError(t, unix.Unmount(v.Dir(), 0)) // or it could not be removed
			return errors.Join(f.Send(ctx, io.Discard, nil, v), v.Close())
		}},
		{"receive", "image", "exists", func() error { return f.Receive(ctx, "new", "image", bytes.NewReader(nil)) }},
	} {
		t.Run(test.name+"/"+test.command, func(t *testing.T) {
			require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
			require.NoError(t, f.Create(ctx, "image", cowcommon.VolumeOptions{}))
			require.NoError(t, f.Seal(ctx, "image"))
			f.faults.race = func() { zfs(t, "destroy", "-r", f.datasetOf(test.volume)) }
			hit := f.faults.arm(test.command, "race")
			err := test.operation()
			testfs.Receive(t, hit)
			require.ErrorIs(t, err, errdefs.ErrNotFound)
			f.assertTold(t, test.name)
			assert.NotContains(t, zfs(t, "list", "-Hr", "-t", "all", "-o", "name", f.root), f.datasetOf(test.volume))
			for _, name := range []string{"new", "base", "image"} {
				require.NoError(t, f.Remove(ctx, name))
			}
			assert.Len(t, f.state(t), 2, "only the root")
		})
	}
}

// TestStuckMount: a mount that does not end in time fails. When it is made after all, it is unmounted, and its snapshot
// destroyed. The volume is free then.
func TestStuckMount(t *testing.T) {
	f := openFaulty(t)
	f.zfs.patience = 50 * time.Millisecond
	ctx := t.Context()
	for what, operation := range map[string]func(context.Context) error{
		"mount":        func(ctx context.Context) error { return second(f.Mount(ctx, "base", "")) },
		"view":         func(ctx context.Context) error { return closeView(f.View(ctx, "base")) },
		"create owned": func(ctx context.Context) error { return createOwned(ctx, f) },
		"scratch": func(ctx context.Context) error {
			return closeView(f.Scratch(ctx, func(string) error { return nil }))
		},
	} {
		for _, fault := range stuckFaults {
			t.Run(what+" "+fault, func(t *testing.T) {
				require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
				before := f.state(t)
				err := f.with(t, "mount", fault, operation)
				require.ErrorIs(t, err, errdefs.ErrUnavailable)
				require.ErrorIs(t, err, context.Canceled)
				f.faults.release()
				require.Eventually(t, func() bool { return !f.isDoubted() && slices.Equal(before, f.state(t)) }, testfs.Patience, 100*time.Millisecond,
					"before: %v", before)
				require.Eventually(t, func() bool { return f.Remove(ctx, "base") == nil }, testfs.Patience, 100*time.Millisecond)
				for _, dir := range []string{f.views, f.graph, f.locks} {
					entries, err := os.ReadDir(dir)
					require.NoError(t, err)
					assert.Empty(t, entries, dir)
				}
			})
		}
	}
}

func (f faulty) isDoubted() bool {
	f.volumes.mu.Lock()
	defer f.volumes.mu.Unlock()
	return f.volumes.left > 0
}

// TestWrittenAfterSealing: after an interrupted sealing, data that is written to the volume is in its clones.
func TestWrittenAfterSealing(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	require.NoError(t, f.Create(ctx, "base", cowcommon.VolumeOptions{}))
	tried := faults
	if !testfs.Long() {
		tried = []string{"interrupted-after", "cancelled-after"}
	}
	for _, fault := range tried {
		_ = f.with(t, "snapshot", fault, func(ctx context.Context) error {
			return f.Clone(ctx, "lost", "base", cowcommon.VolumeOptions{})
		})
		for _, b := range []*Backend{f.Backend, f.beside} {
			dir, err := b.Mount(ctx, "base", "")
			require.NoError(t, err)
			content := fault + b.home
			if err := os.WriteFile(dir+"/file", []byte(content), 0o644); err == nil {
				require.NoError(t, b.Unmount(ctx, "base"))
				require.NoError(t, b.Clone(ctx, "child", "base", cowcommon.VolumeOptions{}))
				dir, err := b.Mount(ctx, "child", "")
				require.NoError(t, err)
				got, err := os.ReadFile(dir + "/file")
				require.NoError(t, err)
				assert.Equal(t, content, string(got), fault)
				require.NoError(t, b.Unmount(ctx, "child"))
				require.NoError(t, b.Remove(ctx, "child"))
			} else {
				require.NoError(t, b.Unmount(ctx, "base"))
			}
			require.NoError(t, b.Remove(ctx, "lost"))
			require.NoError(t, b.Remove(ctx, "base"))
			require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
		}
	}
}

// TestKilledBesides: a process was killed after it made, sealed or removed a volume, and before it told others. The
// others see the real state.
func TestKilledBesides(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	_, err := b.volumes.all(ctx)
	require.NoError(t, err)
	require.NoError(t, b.zfs.kernel.Create(b.datasetOf("made"), properties(quota.Limit{})))
	v, err := b.Stat(ctx, "made")
	require.NoError(t, err)
	assert.False(t, v.Sealed)

	zfs(t, "snapshot", b.sealOf("made"))
	dir, err := b.Mount(ctx, "made", "")
	require.NoError(t, err)
	require.ErrorContains(t, os.WriteFile(dir+"/f", nil, 0o644), "read-only")
	require.NoError(t, b.Unmount(ctx, "made"))
	require.NoError(t, b.Clone(ctx, "clone", "made", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Remove(ctx, "clone"))

	zfs(t, "destroy", "-r", b.datasetOf("made"))
	require.NoError(t, b.Create(ctx, "made", cowcommon.VolumeOptions{}))
	zfs(t, "destroy", "-r", b.datasetOf("made"))
	require.NoError(t, b.Remove(ctx, "made"))
	require.NoError(t, b.zfs.kernel.Create(b.datasetOf("made"), properties(quota.Limit{})))
	require.NoError(t, b.Remove(ctx, "made"), "the index knows of none")
	assert.NotContains(t, zfs(t, "list", "-Hr", "-o", "name", b.root), "made")
}

// TestFailedRemoveChangesNothing: a sealed volume that others have mounted stays sealed, and stays where it is, with a
// clone and without.
func TestFailedRemoveChangesNothing(t *testing.T) {
	b := open(t)
	ctx := t.Context()
	require.NoError(t, b.Create(ctx, "base", cowcommon.VolumeOptions{}))
	require.NoError(t, b.Seal(ctx, "base"))
	guid := zfs(t, "get", "-Hpo", "value", "guid", b.sealOf("base"))
	for range 2 {
		for _, source := range []string{b.datasetOf("base"), b.sealOf("base")} {
			dir := t.TempDir()
			run(t, "mount", "-t", "zfs", "-o", "ro", source, dir)
			err := b.Remove(ctx, "base")
			run(t, "umount", dir)
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, source)
			assert.Equal(t, guid, zfs(t, "get", "-Hpo", "value", "guid", b.sealOf("base")), source)
		}
		require.NoError(t, b.Clone(ctx, rand.Text(), "base", cowcommon.VolumeOptions{}))
	}
	require.NoError(t, b.Remove(ctx, "base"))
}

// TestFailedCloneUnsealsUnderNobody makes many clones of one source at once, of which some fail. As soon as a clone or
// a Seal has succeeded, the source is sealed and stays sealed.
func TestFailedCloneUnsealsUnderNobody(t *testing.T) {
	f := openFaulty(t)
	ctx := t.Context()
	rounds := 2
	if testfs.Long() {
		rounds = 20
	}
	for round := range rounds {
		base := fmt.Sprintf("base-%d", round)
		require.NoError(t, f.Create(ctx, base, cowcommon.VolumeOptions{}))
		f.faults.arm("clone", "interrupted-before")
		results := make(chan error)
		for i := range 3 {
			go func() { results <- f.Clone(ctx, fmt.Sprintf("%s-clone-%d", base, i), base, cowcommon.VolumeOptions{}) }()
		}
		go func() { results <- f.beside.Seal(ctx, base) }()
		succeeded, failed := 0, 0
		for range 4 {
			err := testfs.Receive(t, results)
			if err == nil {
				succeeded++
				continue
			}
			failed++
			if !errors.Is(err, errdefs.ErrFailedPrecondition) {
				assert.True(t, isLost(err), err)
			}
		}
		assert.Positive(t, failed)
		assert.Positive(t, succeeded)
		there, err := f.isSealed(ctx, base)
		require.NoError(t, err)
		assert.True(t, there)
		for _, b := range []*Backend{f.Backend, f.beside} {
			v, err := b.Stat(ctx, base)
			require.NoError(t, err)
			assert.True(t, v.Sealed)
		}
	}
}
