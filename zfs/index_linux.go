package zfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/poll"
	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// Properties and names of the layout. docs/reference/on-disk-format.md specifies them.
const (
	markProperty  = "cowshed:layer" // with the value markValue it says that Cowshed made the dataset
	markValue     = "1"
	sealName      = "layer"          // the snapshot that seals a dataset
	viewPrefix    = "cowshed-view-"  // snapshots for views
	clonePrefix   = "cowshed-clone-" // snapshots of datasets in use, each for one clone
	stagingPrefix = "cowshed staging "
)

// dataset describes a dataset directly below the dataset of the Backend, as the index has it.
type dataset struct {
	origin  string // the snapshot that it was cloned from; "" if it is no clone
	sealed  bool
	limit   quota.Limit
	created time.Time
	marked  bool // Cowshed made it, and completely
	own     bool // it is a volume: Cowshed or moby's driver made it
	// snapshotted says that it had snapshots of its own when it was read.
	snapshotted bool
	// guid is its number, as the kernel gives it. It is 0 if this process has made the volume and nobody has asked since.
	guid uint64
	// adopted says that parent is the recorded parent: its guid, 0 for none.
	adopted bool
	parent  uint64
}

// index answers from memory which volumes exist. It is loaded from the kernel, and again after another process has changed
// something, or after a call has had an unexpected result.
//
// Each process that changes something says so in a counter in a file. A change by hand is noticed when a call fails
// because of it.
type index struct {
	ctx     context.Context // for telling others of changes, which have happened although their request was cancelled
	zfs     *control
	root    string // the dataset above those of the volumes
	counter counter
	pending *pending // keeps the file of the counter open while others are being told
	log     *slog.Logger

	// mu is held over nothing that may wait: the file of the counter may be in the pool.
	mu       sync.Mutex
	datasets map[string]dataset         // by name without root
	seen     count                      // the count for which datasets is right, or will be when it is loaded
	valid    bool                       // datasets is right while the counter stays
	doubted  bool                       // something has made the load under way useless since it began
	left     int                        // number of calls that do not end, and may change something at any time
	changes  uint64                     // changes by this process, so far
	told     uint64                     // changes that the counter shows
	telling  *telling                   // the change of the counter under way; nil if there is none
	late     bool                       // the last change of the counter takes too long, or has taken too long
	begun    uint64                     // number of loads that have begun
	loaded   uint64                     // the number of the load that datasets is from
	loading  chan struct{}              // closed when the load under way has ended, nil if there is none
	since    []func(map[string]dataset) // changes by this process since that load began
}

// mobyID is the form of the names that moby's and Podman's drivers give to layers.
var mobyID = regexp.MustCompile(`^[0-9a-f]{64}(-init)?$`)

// get returns a dataset. ok is false if it does not exist.
func (x *index) get(ctx context.Context, name string) (d dataset, ok bool, err error) {
	err = x.with(ctx, func(datasets map[string]dataset) { d, ok = datasets[name] })
	return d, ok, err
}

// all returns all datasets. The caller may change the map.
func (x *index) all(ctx context.Context) (all map[string]dataset, err error) {
	err = x.with(ctx, func(datasets map[string]dataset) { all = maps.Clone(datasets) })
	return all, err
}

// fresh returns all datasets as the kernel lists them now, with changes that were made by hand. Others look at the datasets
// that are known meanwhile. The caller may change the map.
func (x *index) fresh(ctx context.Context) (all map[string]dataset, err error) {
	err = x.withKnown(ctx, false, func(datasets map[string]dataset) { all = maps.Clone(datasets) })
	return all, err
}

// with calls look with the datasets as they were at some moment since with was called.
func (x *index) with(ctx context.Context, look func(map[string]dataset)) error {
	return x.withKnown(ctx, true, look)
}

// withKnown is with. Without known, it accepts no datasets that are from an earlier load.
func (x *index) withKnown(ctx context.Context, known bool, look func(map[string]dataset)) error {
	asked := x.ask()
	for {
		done, wait, err := x.tryLook(ctx, asked, known, look)
		if err != nil || done {
			return err
		}
		if wait == nil {
			err = x.load(ctx)
		} else {
			err = x.zfs.await(ctx, 0, wait)
		}
		if err != nil {
			return err
		}
	}
}

// ask returns the number of loads that have begun. It has a change told that could not be told when it was made.
func (x *index) ask() (begun uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.told < x.changes && x.telling == nil {
		x.beginTelling()
	}
	return x.begun
}

// tryLook calls look if the datasets come from a load that began after asked loads had begun. Such a load is accepted, because
// other processes may change something all the time. With known, datasets from an earlier load are accepted too if they are up
// to date. Else tryLook returns what to wait for, or nil if the caller is to load.
func (x *index) tryLook(ctx context.Context, asked uint64, known bool, look func(map[string]dataset)) (done bool, wait <-chan struct{}, err error) {
	now, telling, err := x.readCounter(ctx)
	if err != nil {
		return false, nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	current := x.valid && x.left == 0
	upToDate := current && x.seen == now
	switch {
	case upToDate && known, x.loaded > asked:
		look(x.datasets)
		return true, nil, nil
	case current && !upToDate && telling != nil && !x.late: // the counter shows a change by this process, perhaps
		return false, telling.ended, nil
	case x.loading != nil:
		return false, x.loading, nil
	}
	x.loading = make(chan struct{})
	x.begun++
	// If the load fails, datasets that are outdated stay so.
	x.valid, x.since, x.doubted, x.seen = upToDate, nil, false, now
	return false, nil, nil
}

// readCounter reads the counter, and returns the change of it by this process that was under way meanwhile, if there was one.
func (x *index) readCounter(ctx context.Context) (now count, before *telling, err error) {
	x.mu.Lock()
	before = x.telling
	x.mu.Unlock()
	var read count
	err = x.zfs.wait(ctx, "read change counter", 0, func() (err error) {
		read, err = x.counter.read()
		return err
	})
	var lost *lostError
	if errors.As(err, &lost) {
		return count{}, nil, lost.err // the call may still write to read
	}
	if before == nil {
		x.mu.Lock()
		before = x.telling
		x.mu.Unlock()
	}
	return read, before, err
}

// load reads all datasets again.
func (x *index) load(ctx context.Context) error {
	datasets, err := x.read(ctx)
	x.mu.Lock()
	defer x.mu.Unlock()
	close(x.loading)
	x.loading = nil
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	for _, change := range x.since {
		change(datasets)
	}
	x.datasets, x.valid, x.loaded = datasets, !x.doubted, x.begun
	x.since = nil
	return nil
}

// invalidate makes the next look read all datasets again.
func (x *index) invalidate() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.valid, x.doubted = false, true
}

// doubt makes the next look read all datasets again, in all processes: something may have changed.
func (x *index) doubt() {
	x.invalidate()
	x.tell()
}

// doubtWhile doubts the datasets. With left they stay in doubt, because a call of the kernel that was left to itself may
// change them at any time. doubtWhile without left says that this call has ended.
func (x *index) doubtWhile(left bool) {
	x.mu.Lock()
	if left {
		x.left++
	} else {
		x.left--
	}
	x.mu.Unlock()
	x.doubt()
}

// changed records a change that this process has just made, and tells other processes that something has changed. It
// cannot fail: the change has happened.
func (x *index) changed(change func(map[string]dataset)) {
	x.mu.Lock()
	if x.loading != nil {
		x.since = append(x.since, change)
	}
	if x.datasets != nil {
		change(x.datasets)
	}
	x.mu.Unlock()
	x.tell()
}

// tellFor is how long a change waits until other processes are told of it.
const tellFor = 10 * time.Second

// telling is one change of the counter.
type telling struct {
	upTo  uint64        // the changes by this process that it tells of
	ended chan struct{} // closed at its end
}

// tell tells other processes that something has changed. If it cannot in time, that is tried again: the file of the counter
// may be in a pool that is suspended, or another process that was stopped may have it locked. Later changes do not wait
// then, until others have been told.
func (x *index) tell() {
	ctx, cancel := context.WithTimeoutCause(x.ctx, tellFor, fault.New(errdefs.ErrUnavailable, "it takes longer than %s", tellFor))
	defer cancel()
	x.mu.Lock()
	x.changes++
	want := x.changes
	for x.told < want {
		t := x.telling
		if t == nil {
			t = x.beginTelling()
		}
		if x.late {
			break
		}
		x.mu.Unlock()
		err := x.zfs.await(ctx, 0, t.ended)
		x.mu.Lock()
		if err != nil {
			x.late = x.late || x.telling == t
			x.warnUntold(err)
			break
		}
		if t.upTo >= want {
			break
		}
	}
	x.mu.Unlock()
}

// beginTelling changes the counter in the background. The caller has mu. At most one such change is under way, and it tells
// of all changes by this process that were made before.
func (x *index) beginTelling() *telling {
	t := &telling{upTo: x.changes, ended: make(chan struct{})}
	x.telling = t
	done := x.pending.begin()
	go func() {
		defer close(t.ended)
		defer done() // before others see the end, and perhaps close the Backend
		ctx, cancel := context.WithTimeout(x.ctx, tellFor)
		defer cancel()
		before, now, err := x.counter.add(ctx)
		x.mu.Lock()
		defer x.mu.Unlock()
		x.telling, x.late = nil, errors.Is(err, context.DeadlineExceeded)
		if err != nil {
			x.valid, x.doubted = false, true
			x.warnUntold(err)
			return
		}
		x.told = t.upTo
		if before == x.seen { // else another process has changed something too
			x.seen = now
		}
	}()
	return t
}

// untold reports whether the counter lacks a change by this process.
func (x *index) untold() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.told < x.changes
}

// tellAll tries again and again to tell others of all changes, until that is done or alone reports that there are no others.
func (x *index) tellAll(ctx context.Context, alone func() (bool, error)) error {
	return poll.WhileBusy(ctx, poll.Pauses{First: 100 * time.Millisecond, Longest: tellFor}, func() (busy bool, err error) {
		if nobody, err := alone(); nobody || err != nil {
			return false, err
		}
		x.mu.Lock()
		t := x.telling
		if t == nil && x.told < x.changes {
			t = x.beginTelling()
		}
		x.mu.Unlock()
		if t != nil {
			<-t.ended
		}
		return x.untold(), nil
	})
}

func (x *index) warnUntold(err error) {
	x.log.Warn("zfs: a change cannot be announced yet to the other processes that have the home open", "error", err)
}

func (x *index) set(name string, d dataset) {
	x.changed(func(m map[string]dataset) { m[name] = d })
}

func (x *index) drop(name string) {
	x.changed(func(m map[string]dataset) { delete(m, name) })
}

// update changes a dataset in the index, unless the index lacks it.
func (x *index) update(name string, change func(*dataset)) {
	x.changed(func(m map[string]dataset) {
		if d, ok := m[name]; ok {
			change(&d)
			m[name] = d
		}
	})
}

// read asks the kernel for all datasets, and which of them are sealed.
func (x *index) read(ctx context.Context) (map[string]dataset, error) {
	return read(ctx, x.zfs, "list", func(k kernel) (map[string]dataset, error) {
		if _, err := k.Stats(x.root); err != nil { // else it would have no datasets
			return nil, err
		}
		datasets := make(map[string]dataset)
		for child, err := range k.Children(x.root) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return nil, err
			}
			name := strings.TrimPrefix(child.Name, x.root+"/")
			if name == asideName {
				continue
			}
			d := describe(name, child)
			if d.sealed, d.snapshotted, err = snapshotsOf(k, child); err != nil {
				return nil, err
			}
			datasets[name] = d
		}
		// If the root was renamed meanwhile, the kernel has ended the list early.
		there, err := k.Exists(x.root)
		if err == nil && !there {
			err = fault.New(errdefs.ErrUnavailable, "dataset %s was renamed or destroyed", x.root)
		}
		return datasets, err
	})
}

// describe describes a dataset below the root, but not whether it is sealed.
func describe(name string, from zfsctl.Dataset) dataset {
	d := dataset{origin: from.Origin}
	created, _ := from.Properties.Number("creation")
	d.created = time.Unix(int64(created), 0)
	layer, _ := from.Properties.Number("quota")
	total, _ := from.Properties.Number("refquota")
	d.limit = quota.DatasetLimit(layer, total)
	mark, _ := from.Properties.Text(markProperty)
	mountpoint, _ := from.Properties.Text("mountpoint")
	d.marked = mark == markValue
	d.guid, _ = from.Properties.Number("guid")
	if parent, ok := from.Properties.Text(parentProperty); ok {
		var err error
		d.parent, err = strconv.ParseUint(parent, 10, 64)
		d.adopted = err == nil
	}
	d.own = cowcommon.CheckID(name) == nil && (d.marked || mountpoint == "legacy" && mobyID.MatchString(name))
	return d
}

// snapshotsOf reports whether a dataset is sealed, and whether it has snapshots at all. The property prevsnap is its latest
// snapshot. Without a snapshot prevsnap is the origin of the dataset, or is missing. So the snapshots have to be listed
// only if there is a later snapshot than the seal.
func snapshotsOf(k kernel, of zfsctl.Dataset) (sealed, snapshotted bool, err error) {
	latest, _ := of.Properties.Text("prevsnap")
	snapshot, has := strings.CutPrefix(latest, of.Name+"@")
	if !has || snapshot == sealName {
		return has, has, nil
	}
	for d, err := range k.Snapshots(of.Name) {
		if err != nil || d.Name == of.Name+"@"+sealName {
			return err == nil, true, err
		}
	}
	return false, true, nil
}
