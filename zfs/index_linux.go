package zfs

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cowshed/cowshed/cowcommon"
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
	marked  bool     // Cowshed made it, and completely
	own     bool     // it is a volume: Cowshed or moby's driver made it
	leaves  []string // full names of snapshots that Cowshed takes for a while
}

// index answers from memory which volumes exist. One zfs list loads it. It is loaded again after another process has
// changed something, or after a command has had an unexpected result.
//
// Each process that changes something says so in a counter in a file. A change by hand is noticed when a command fails
// because of it.
type index struct {
	ctx     context.Context // for telling others of changes, which have happened although their request was cancelled
	zfs     *commands
	root    string // the dataset above those of the volumes
	counter counter
	log     *slog.Logger

	mu       sync.Mutex
	datasets map[string]dataset         // by name without root
	seen     count                      // the count for which datasets is right, or will be when it is loaded
	valid    bool                       // datasets is right while the counter stays
	doubted  bool                       // something has made the load under way useless since it began
	left     int                        // number of zfs processes that do not end, and may change something at any time
	untold   bool                       // the counter does not show a change by this process
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

// with calls look with the datasets as they were at some moment since with was called.
func (x *index) with(ctx context.Context, look func(map[string]dataset)) error {
	x.mu.Lock()
	asked := x.begun
	x.mu.Unlock()
	for {
		done, loading, err := x.tryLook(asked, look)
		if err != nil || done {
			return err
		}
		if loading == nil {
			if err := x.load(ctx); err != nil {
				return err
			}
			continue
		}
		select {
		case <-loading:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tryLook calls look if the datasets are up to date, or come from a load that began after asked loads had begun. Such a
// load is accepted, because other processes may change something all the time. Else tryLook returns the load to wait
// for, or nil if the caller is to load.
func (x *index) tryLook(asked uint64, look func(map[string]dataset)) (done bool, loading <-chan struct{}, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.untold {
		x.tell()
	}
	now, err := x.counter.read()
	if err != nil {
		return false, nil, err
	}
	if x.valid && x.left == 0 && x.seen == now || x.loaded > asked {
		look(x.datasets)
		return true, nil, nil
	}
	if x.loading != nil {
		return false, x.loading, nil
	}
	x.loading = make(chan struct{})
	x.begun++
	x.since, x.doubted, x.seen = nil, false, now
	return false, nil, nil
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
	x.mu.Lock()
	defer x.mu.Unlock()
	x.valid, x.doubted = false, true
	x.tell()
}

// doubtWhile doubts the datasets. With left they stay in doubt, because a zfs process that was left to itself may
// change them at any time. A call without left says that this process has ended.
func (x *index) doubtWhile(left bool) {
	x.doubt()
	x.mu.Lock()
	defer x.mu.Unlock()
	if left {
		x.left++
	} else {
		x.left--
	}
}

// changed records a change that this process has just made, and tells other processes that something has changed. It
// cannot fail: the change has happened.
func (x *index) changed(change func(map[string]dataset)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.tell()
	if x.loading != nil {
		x.since = append(x.since, change)
	}
	if x.datasets != nil {
		change(x.datasets)
	}
}

// tell tells other processes that something has changed. If it cannot, it notes that they are still to be told.
func (x *index) tell() {
	before, now, err := x.counter.add(x.ctx)
	x.untold = err != nil
	if err != nil {
		x.valid, x.doubted = false, true
		x.log.Warn("zfs: other processes that have the home open cannot be told of a change", "error", err)
		return
	}
	if before == x.seen { // else another process has changed something too
		x.seen = now
	}
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

// read lists all datasets and snapshots by zfs list.
func (x *index) read(ctx context.Context) (map[string]dataset, error) {
	out, err := x.zfs.read(ctx, "list", "-Hp", "-r", "-d", "2", "-t", "filesystem,volume,snapshot",
		"-o", "name,origin,creation,quota,refquota,"+markProperty+",mountpoint", x.root)
	if err != nil {
		return nil, err
	}
	datasets := make(map[string]dataset)
	rootListed := false
	for line, err := range listed(out) {
		if err != nil {
			return nil, err
		}
		rootListed = rootListed || line.name == x.root
		rest, below := strings.CutPrefix(line.name, x.root+"/")
		name, snapshot, isSnapshot := strings.Cut(rest, "@")
		switch {
		case !below || strings.Contains(name, "/"): // the root, its snapshots, and datasets below volumes
		case !isSnapshot:
			d := datasets[name]
			d.origin, d.created, d.limit, d.marked = line.origin, line.created, line.limit, line.marked
			d.own = cowcommon.CheckID(name) == nil && (line.marked || line.legacy && mobyID.MatchString(name))
			datasets[name] = d
		default:
			d := datasets[name]
			d.sealed = d.sealed || snapshot == sealName
			if strings.HasPrefix(snapshot, viewPrefix) || strings.HasPrefix(snapshot, clonePrefix) {
				d.leaves = append(d.leaves, line.name)
			}
			datasets[name] = d
		}
	}
	if !rootListed {
		return nil, fmt.Errorf("zfs list: the list lacks %s itself", x.root)
	}
	return datasets, nil
}

// listLine is one line of zfs list.
type listLine struct {
	name, origin   string
	created        time.Time
	limit          quota.Limit
	marked, legacy bool
}

// listed parses the output of zfs list.
func listed(out []byte) iter.Seq2[listLine, error] {
	return func(yield func(listLine, error) bool) {
		for line := range bytes.Lines(out) {
			l, err := parseListLine(strings.TrimSuffix(string(line), "\n"))
			if err != nil {
				err = fmt.Errorf("zfs list: line %q: %w", line, err)
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

func parseListLine(line string) (listLine, error) {
	const none = "-" // in place of a property that a dataset cannot have
	fields := strings.Split(line, "\t")
	if len(fields) != 7 {
		return listLine{}, fmt.Errorf("%d fields instead of 7", len(fields))
	}
	l := listLine{name: fields[0], marked: fields[5] == markValue, legacy: fields[6] == "legacy"}
	if fields[1] != none {
		l.origin = fields[1]
	}
	seconds, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return listLine{}, fmt.Errorf("creation: %w", err)
	}
	l.created = time.Unix(seconds, 0)
	if fields[3] != none && fields[4] != none {
		if l.limit, err = quota.DatasetLimit(fields[3], fields[4]); err != nil {
			return listLine{}, err
		}
	}
	return l, nil
}
