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
	markProperty  = "cowshed:layer" // says with the value markValue that Cowshed made the dataset
	markValue     = "1"
	sealName      = "layer"          // the snapshot that seals a dataset
	viewPrefix    = "cowshed-view-"  // snapshots that are views
	clonePrefix   = "cowshed-clone-" // snapshots of datasets in use, taken for one clone
	stagingPrefix = "cowshed staging "
)

// dataset describes what the index knows about a dataset directly below the one that holds the layers.
type dataset struct {
	origin  string // the snapshot that it was cloned from, "" if none
	sealed  bool
	limit   quota.Limit
	created time.Time
	marked  bool     // Cowshed made it, and completely
	own     bool     // it is a layer: Cowshed's or moby's
	leaves  []string // snapshots that Cowshed takes for a while, by their full names
}

// index answers from memory which layers there are. It is loaded by one zfs list, and again after another
// process has changed something or a command has not done what was expected.
//
// Each process that changes something says so in a counter in a file. What someone changes by hand is
// noticed when a command fails because of it.
type index struct {
	ctx     context.Context // of what is told to others, which does not end with any request: it has happened
	zfs     *commands
	root    string // the dataset that holds those of the layers
	counter counter
	log     *slog.Logger

	mu       sync.Mutex
	datasets map[string]dataset         // by name without root
	seen     count                      // the counter for which datasets is right, or will be when it is loaded
	valid    bool                       // datasets can be relied on while the counter stays
	doubted  bool                       // something has happened since the load under way began that makes it useless
	left     int                        // how many zfs processes do not end and may change something at any time
	untold   bool                       // something was changed that the counter could not say
	begun    uint64                     // how many loads have begun
	loaded   uint64                     // which of them datasets is from
	loading  chan struct{}              // closed when the load under way has ended, nil if there is none
	since    []func(map[string]dataset) // own changes since that load has begun
}

// mobyID is the form of the names that moby's and Podman's drivers give to layers.
var mobyID = regexp.MustCompile(`^[0-9a-f]{64}(-init)?$`)

// get returns what is known about a dataset. ok is false if there is none.
func (x *index) get(ctx context.Context, name string) (d dataset, ok bool, err error) {
	err = x.with(ctx, func(datasets map[string]dataset) { d, ok = datasets[name] })
	return d, ok, err
}

// all returns what is known about all datasets. The caller may change the map.
func (x *index) all(ctx context.Context) (all map[string]dataset, err error) {
	err = x.with(ctx, func(datasets map[string]dataset) { all = maps.Clone(datasets) })
	return all, err
}

// with calls look with the datasets as they were at some time since it was called.
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

// tryLook calls look if the datasets are known as they are now, or from a load that began after asked others had: other
// processes may change something all the time. Else it returns the load to wait for, or nil if the caller is to load.
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

// load reads everything anew.
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

// invalidate makes the next look read everything anew.
func (x *index) invalidate() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.valid, x.doubted = false, true
}

// doubt makes the next look read everything anew, in all processes: something may have changed.
func (x *index) doubt() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.valid, x.doubted = false, true
	x.tell()
}

// doubtWhile doubts the datasets for as long as a process may change them at any time.
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

// changed records what this process has just changed, and tells others that something has. It cannot fail: the change
// has happened.
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

// tell tells other processes that something has changed, or keeps in mind that they are still to be told.
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

// update changes what is known about a dataset, if something is.
func (x *index) update(name string, change func(*dataset)) {
	x.changed(func(m map[string]dataset) {
		if d, ok := m[name]; ok {
			change(&d)
			m[name] = d
		}
	})
}

// read asks zfs for all datasets and snapshots.
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
		case !below || strings.Contains(name, "/"): // the root, its snapshots, and what others made below a layer
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

// listed reads the output of zfs list.
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
	const none = "-" // what a dataset cannot have
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
