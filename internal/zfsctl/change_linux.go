package zfsctl

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
)

// Values are properties to be set: uint64 for numbers and choices, string for all else.
type Values map[string]any

// options are the values as options of the zfs command.
func (v Values) options() string { return v.words("-o ") }

// words are the values as the zfs command takes them, each after before and with a space at its end.
func (v Values) words(before string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(v)) {
		fmt.Fprintf(&b, "%s%s=%s ", before, name, word(name, v[name]))
	}
	return b.String()
}

// word is a value in the words of the zfs command.
func word(name string, value any) string {
	if n, ok := value.(uint64); ok && name == "canmount" && n < uint64(len(canMount)) {
		return canMount[n]
	}
	return fmt.Sprint(value)
}

// Values of the property canmount: the dataset cannot be mounted, or is mounted only when somebody asks for it.
const (
	CanMountOff    uint64 = 0
	CanMountNoAuto uint64 = 2
)

// canMount has the words for the values of canmount.
var canMount = []string{CanMountOff: "off", 1: "on", CanMountNoAuto: "noauto"}

// Create makes a filesystem (ZFS_IOC_CREATE). Returns unix.EEXIST if the name is taken.
func (c *Control) Create(name string, values Values) error {
	return c.do(request{
		op: "create", number: iocCreate, name: name,
		input:   nvlist.List{"type": int32(Filesystem), "props": nvlist.List(values)},
		history: "zfs create " + values.options() + name,
	})
}

// Clone makes a filesystem from a snapshot (ZFS_IOC_CLONE).
func (c *Control) Clone(name, origin string, values Values) error {
	return c.do(request{
		op: "clone", number: iocClone, name: name,
		input:   nvlist.List{"origin": origin, "props": nvlist.List(values)},
		history: "zfs clone " + values.options() + origin + " " + name,
	})
}

// Snapshot takes a snapshot (ZFS_IOC_SNAPSHOT).
func (c *Control) Snapshot(name string) error {
	return c.single(request{op: "snapshot", number: iocSnapshot, history: "zfs snapshot " + name}, name)
}

// DestroySnapshot destroys a snapshot (ZFS_IOC_DESTROY_SNAPS). A snapshot that does not exist is no error. Returns
// unix.EEXIST if it has clones, and unix.EBUSY if it is mounted or held.
func (c *Control) DestroySnapshot(name string) error {
	return c.single(request{op: "destroy", number: iocDestroySnaps, history: "zfs destroy " + name}, name)
}

// DestroySnapshotLater destroys a snapshot when its last clone, mount or hold is gone, and at once if there is none
// (ZFS_IOC_DESTROY_SNAPS). A snapshot that does not exist is no error.
func (c *Control) DestroySnapshotLater(name string) error {
	return c.single(request{op: "destroy", number: iocDestroySnaps, history: "zfs destroy -d " + name, input: nvlist.List{"defer": nvlist.Flag{}}}, name)
}

// single makes a request about one snapshot. The errno of the snapshot is in the answer.
func (c *Control) single(r request, name string) error {
	if len(name) > MaxName {
		return &Error{r.op, name, unix.ENAMETOOLONG}
	}
	answer := nvlist.List{}
	r.name, r.answer = PoolOf(name), &answer
	input := nvlist.List{"snaps": nvlist.List{name: nvlist.Flag{}}}
	maps.Copy(input, r.input)
	r.input = input
	err := c.do(r)
	var refused *Error
	if errors.As(err, &refused) {
		refused.Name = name
		if errno, ok := answer[name].(int32); ok && errno != 0 {
			refused.Err = unix.Errno(errno)
		}
	}
	return err
}

// Destroy destroys a filesystem (ZFS_IOC_DESTROY). Returns unix.EBUSY if it is mounted or has snapshots, and unix.EEXIST
// if there are datasets below it.
func (c *Control) Destroy(name string) error {
	return c.do(request{op: "destroy", number: iocDestroy, name: name, history: "zfs destroy " + name})
}

// Rename renames a filesystem (ZFS_IOC_RENAME), mounted or not. Returns unix.EEXIST if the name is taken.
func (c *Control) Rename(name, to string) error {
	return c.do(request{op: "rename", number: iocRename, name: name, value: to, history: "zfs rename " + name + " " + to})
}

// Rollback rolls a filesystem back to a snapshot of it (ZFS_IOC_ROLLBACK), its latest one, mounted or not. Returns
// unix.EXDEV or unix.EEXIST if there is a later one.
func (c *Control) Rollback(name, snapshot string) error {
	return c.do(request{
		op: "rollback", number: iocRollback, name: name, input: nvlist.List{"target": snapshot},
		history: "zfs rollback " + snapshot,
	})
}

// Promote makes a clone the owner of its origin (ZFS_IOC_PROMOTE), which becomes a clone of it.
func (c *Control) Promote(name string) error {
	return c.do(request{op: "promote", number: iocPromote, name: name, history: "zfs promote " + name})
}

// Set sets properties (ZFS_IOC_SET_PROP). After an error some of them may be set.
func (c *Control) Set(name string, values Values) error {
	return c.do(request{
		op: "set", number: iocSetProp, name: name, input: nvlist.List(values),
		history: "zfs set " + values.words("") + name,
	})
}

// Limits of a channel program, the defaults of the zfs command.
const (
	instructions = 10_000_000
	memory       = 10 << 20
)

// Program runs a channel program (ZFS_IOC_CHANNEL_PROGRAM; zfs-program(8)) within one transaction group. Its arguments
// are in argv. It returns the value that the program returns. Returns *ProgramError if the program itself has failed.
func (c *Control) Program(pool, program string, argv []string) (any, error) {
	answer := nvlist.List{}
	err := c.do(request{
		op: "program", number: iocChannelProgram, name: pool, answer: &answer,
		input: nvlist.List{
			"program": program, "arg": nvlist.List{"argv": argv}, "sync": true,
			"instrlimit": uint64(instructions), "memlimit": uint64(memory),
		},
		history: "zfs program " + pool + " - " + strings.Join(argv, " "),
	})
	if said, ok := answer["error"].(string); ok && err != nil {
		return nil, &ProgramError{Said: said, Err: err}
	}
	return answer["return"], err
}

// ProgramError is a channel program that has failed, and has changed nothing or a part.
type ProgramError struct {
	Said string
	Err  error
}

// Error implements error.
func (e *ProgramError) Error() string { return e.Err.Error() + ": " + e.Said }

// Unwrap returns the error of the request.
func (e *ProgramError) Unwrap() error { return e.Err }

// Sync waits until everything in a pool is durable (ZFS_IOC_POOL_SYNC).
func (c *Control) Sync(pool string) error {
	return c.do(request{op: "sync", number: iocPoolSync, name: pool, input: nvlist.List{"force": false}})
}

// Send writes the stream of a snapshot to a pipe or file (ZFS_IOC_SEND_NEW), incremental from another snapshot unless
// that is "". If nobody reads from the pipe, Send returns unix.EPIPE or unix.EINTR.
func (c *Control) Send(snapshot, from string, to *os.File) error {
	input := nvlist.List{"fd": int32(to.Fd())} // Fd puts it into blocking mode
	if from != "" {
		input["fromsnap"] = from
	}
	return c.do(request{op: "send", number: iocSendNew, name: snapshot, input: input})
}

// Diff writes the records of the objects that may differ between two snapshots (ZFS_IOC_DIFF). The later snapshot must
// have come from the earlier one: returns unix.EXDEV otherwise.
func (c *Control) Diff(from, snapshot string, to *os.File) error {
	return c.do(request{op: "diff", number: iocDiff, name: snapshot, value: from, cookie: uint64(to.Fd())})
}

// PoolOf is the name of the pool of a dataset or snapshot.
func PoolOf(name string) string {
	end := strings.IndexAny(name, "/@")
	if end < 0 {
		return name
	}
	return name[:end]
}
