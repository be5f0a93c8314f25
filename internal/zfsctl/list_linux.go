package zfsctl

import (
	"bytes"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
)

// Dataset is a dataset or snapshot.
type Dataset struct {
	Name       string // in full
	Type       Type
	IsSnapshot bool
	Origin     string // the snapshot that it was cloned from, "" for none
	Properties Properties
}

// Type is dmu_objset_type_t.
type Type uint32

// Types of datasets.
const (
	Filesystem Type = 2
	Volume     Type = 3
)

// Properties has the properties of a dataset that are set, inherited, or counted by the kernel. Each is a list with a
// value, and the name of the dataset at which it was set.
type Properties nvlist.List

// Number returns the value of a property that is a number. Sizes are in bytes, times in seconds.
func (p Properties) Number(name string) (uint64, bool) {
	property, _ := p[name].(nvlist.List)
	value, ok := property["value"].(uint64)
	return value, ok
}

// Text returns the value of a property that is a text, as all are that users define.
func (p Properties) Text(name string) (string, bool) {
	property, _ := p[name].(nvlist.List)
	value, ok := property["value"].(string)
	return value, ok
}

// SetAt returns the name of the dataset at which a property was set, "" if it was not.
func (p Properties) SetAt(name string) string {
	property, _ := p[name].(nvlist.List)
	at, _ := property["source"].(string)
	return at
}

// Stats describes a dataset or snapshot (ZFS_IOC_OBJSET_STATS). Returns unix.ENOENT if it does not exist.
func (c *Control) Stats(name string) (Dataset, error) {
	var cmd command
	properties := nvlist.List{}
	err := c.do(request{op: "get", number: iocObjsetStats, name: name, answer: &properties, reads: true, command: &cmd})
	if err != nil {
		return Dataset{}, err
	}
	return cmd.dataset(properties), nil
}

// PoolProperties returns the properties of a pool (ZFS_IOC_POOL_GET_PROPS). Returns unix.ENOENT if it is not imported.
func (c *Control) PoolProperties(pool string) (Properties, error) {
	properties := nvlist.List{}
	err := c.do(request{op: "get", number: iocPoolGetProps, name: pool, answer: &properties, reads: true})
	return Properties(properties), err
}

// Kstats is the directory in which the kernel module shows its statistics, with a directory for each imported pool.
const Kstats = "/proc/spl/kstat/zfs"

// Suspended is the health of a pool whose calls wait until "zpool clear".
const Suspended = "SUSPENDED"

// Health returns the health of a pool as zpool names it, with no call that may wait for the pool. Returns fs.ErrNotExist if
// the pool is not imported.
func Health(kstats, pool string) (string, error) {
	state, err := os.ReadFile(filepath.Join(kstats, pool, "state"))
	return string(bytes.TrimSpace(state)), err
}

// Exists reports whether a dataset or snapshot exists.
func (c *Control) Exists(name string) (bool, error) {
	// Without an answer the kernel does not list properties, such as the clones of a snapshot.
	err := c.do(request{op: "get", number: iocObjsetStats, name: name, reads: true})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return false, nil
	}
	return err == nil, err
}

// Children yields the datasets directly below a dataset (ZFS_IOC_DATASET_LIST_NEXT), in the order of their creation or
// any other. A dataset that is made or removed meanwhile may be yielded or not. Of a dataset that does not exist it
// yields nothing.
func (c *Control) Children(name string) iter.Seq2[Dataset, error] {
	return c.each(request{op: "list", number: iocDatasetListNext, name: name, reads: true})
}

// Snapshots yields the names of the snapshots of a dataset (ZFS_IOC_SNAPSHOT_LIST_NEXT), without properties. Of a
// dataset that does not exist it yields nothing.
func (c *Control) Snapshots(name string) iter.Seq2[Dataset, error] {
	return c.each(request{op: "list", number: iocSnapshotListNext, name: name, simple: true, reads: true})
}

// each repeats a request with the cookie of its last answer, and yields the datasets that it finds.
func (c *Control) each(r request) iter.Seq2[Dataset, error] {
	return func(yield func(Dataset, error) bool) {
		var cmd command
		r.command = &cmd
		if !r.simple {
			r.room = make([]byte, answerRoom)
		}
		for {
			properties := nvlist.List{}
			if !r.simple {
				r.answer = &properties
			}
			err := c.do(r)
			switch {
			case errors.Is(err, unix.ESRCH): // the end
				return
			case err != nil:
				yield(Dataset{}, err)
				return
			case !yield(cmd.dataset(properties), nil):
				return
			}
			r.cookie = cmd.cookie()
		}
	}
}

func (c *command) dataset(properties nvlist.List) Dataset {
	stats := c[atStats:]
	return Dataset{
		Name:       c.name(),
		Type:       Type(native.Uint32(stats[statType:])),
		IsSnapshot: strings.Contains(c.name(), "@"),
		Origin:     text(stats[statOrigin:][:MaxName+1]),
		Properties: Properties(properties),
	}
}
