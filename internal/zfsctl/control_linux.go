package zfsctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/eintr"
	"github.com/cowshed/cowshed/internal/nvlist"
	"github.com/cowshed/cowshed/internal/sigmask"
)

// Device is the file through which the kernel module takes requests.
const Device = "/dev/zfs"

// versionFile has the version of the kernel module.
const versionFile = "/sys/module/zfs/version"

// Known names the versions of OpenZFS whose interface this package knows.
const Known = "2.1 to 2.4"

// Control is an open /dev/zfs. Its methods are safe for concurrent use.
type Control struct {
	file *os.File

	mu     sync.Mutex
	calls  int  // that are under way
	closed bool // the device is closed at the end of the last call
}

// Open opens /dev/zfs, without a call. Returns errdefs.ErrFailedPrecondition if the kernel module has another version than
// the known ones, and fs.ErrNotExist if there is none.
func Open() (*Control, error) {
	file, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := &Control{file: file}
	if err := CheckVersion(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close closes the device. Calls that are under way come to their end, for which Close does not wait. Later calls return
// fs.ErrClosed.
func (c *Control) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if c.calls > 0 {
		return nil
	}
	return c.file.Close()
}

func (c *Control) begin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return &fs.PathError{Op: "ioctl", Path: Device, Err: fs.ErrClosed}
	}
	c.calls++
	return nil
}

func (c *Control) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.closed && c.calls == 0 {
		_ = c.file.Close() // nothing was written to it
	}
}

// CheckVersion checks whether the kernel module has the known interface. Returns errdefs.ErrFailedPrecondition if it has
// another one.
func CheckVersion() error {
	version, err := os.ReadFile(versionFile)
	if err != nil {
		return err
	}
	if !isKnown(string(version)) {
		return fault.New(errdefs.ErrFailedPrecondition, "the interface of OpenZFS %s is not known to Cowshed, which knows %s",
			strings.TrimSpace(string(version)), Known)
	}
	return nil
}

// Check checks two answers that the known interface gives. Like every call, it may wait for the import of a pool. Returns
// errdefs.ErrFailedPrecondition if there are others.
func (c *Control) Check() error { return check(c.Stats) }

func check(stats func(name string) (Dataset, error)) error {
	// A name that no dataset can have, and a pool that cannot be there.
	_, invalid := stats("@")
	_, absent := stats(strings.Repeat("p", MaxName))
	if !errors.Is(invalid, unix.EINVAL) || !errors.Is(absent, fs.ErrNotExist) {
		return fault.New(errdefs.ErrFailedPrecondition, "%s does not answer as OpenZFS %s: %v, %v", Device, Known, invalid, absent)
	}
	return nil
}

func isKnown(version string) bool {
	for _, known := range []string{"2.1.", "2.2.", "2.3.", "2.4."} {
		if strings.HasPrefix(version, known) {
			return true
		}
	}
	return false
}

// Error is a request that the kernel has refused.
type Error struct {
	Op   string // as the zfs command calls it
	Name string // of the dataset or pool
	Err  error  // an errno
}

// Error implements error.
func (e *Error) Error() string { return fmt.Sprintf("zfs %s %s: %v", e.Op, e.Name, e.Err) }

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Err }

// request is one ioctl.
type request struct {
	op      string
	number  uintptr
	name    string       // zc_name
	input   nvlist.List  // zc_nvlist_src; nil: none
	value   string       // zc_value
	cookie  uint64       // zc_cookie
	simple  bool         // zc_simple
	history string       // its entry in the pool's history; "": none
	answer  *nvlist.List // where the kernel's list goes; nil: nobody is interested
	room    []byte       // for the answer; nil: the kernel need not make one
	reads   bool         // the request changes nothing, so it may be repeated
	command *command     // as the kernel left it; nil: nobody is interested
}

// Room for an answer, in bytes: at first, and at most.
const (
	answerRoom = 64 << 10
	maxAnswer  = 256 << 20
)

// do makes a request. Returns *Error if the kernel refuses it.
func (c *Control) do(r request) error {
	if len(r.name) > MaxName || len(r.value) > MaxName {
		return &Error{r.op, r.name, unix.ENAMETOOLONG}
	}
	if strings.IndexByte(r.name+r.value, 0) >= 0 { // the kernel would see the part before
		return &Error{r.op, r.name, unix.EINVAL}
	}
	var input []byte
	if r.input != nil {
		var err error
		if input, err = nvlist.Encode(r.input); err != nil {
			return err
		}
	}
	// The kernel fails with ENOMEM if it has a list and no room for it, even after a change.
	if r.room == nil && (r.answer != nil || r.input != nil) {
		r.room = make([]byte, answerRoom)
	}
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	cmd, err := c.once(r, input)
	for r.reads && errors.Is(err, unix.ENOMEM) && len(r.room) < maxAnswer {
		r.room = make([]byte, 4*len(r.room))
		cmd, err = c.once(r, input)
	}
	return errors.Join(r.finish(cmd, err), r.wrap(err))
}

func (r request) wrap(err error) error {
	if err == nil {
		return nil
	}
	return &Error{r.op, r.name, err}
}

// finish hands on the kernel's answer. There may also be one with an error. With ENOMEM there was no room.
func (r request) finish(cmd *command, err error) error {
	if r.command != nil {
		*r.command = *cmd
	}
	if r.answer == nil || !cmd.filled() || errors.Is(err, unix.ENOMEM) {
		return nil
	}
	answer, err := nvlist.Decode(r.room)
	if err != nil {
		return fmt.Errorf("zfs %s %s: %w", r.op, r.name, err)
	}
	*r.answer = answer
	return nil
}

// once makes a request once. A request that changes something runs on a thread that takes no signals. The entry of the
// history has to come from the same thread, by which the kernel knows the pool.
func (c *Control) once(r request, input []byte) (*command, error) {
	cmd := newCommand(r)
	var pinner runtime.Pinner
	defer pinner.Unpin()
	cmd.setInput(&pinner, input)
	cmd.setOutput(&pinner, r.room)
	if r.reads {
		before := *cmd
		return cmd, eintr.Ignore(func() error {
			*cmd = before
			return c.ioctl(r.number, cmd)
		})
	}
	return cmd, sigmask.Do(func() error {
		err := c.ioctl(r.number, cmd)
		if err == nil && r.history != "" {
			c.log(r.history)
		}
		return err
	})
}

// log adds an entry to the history of the pool of the last request on this thread. The change stands, so an error
// has no consequence: the kernel has made an entry of its own.
func (c *Control) log(message string) {
	input, err := nvlist.Encode(nvlist.List{"message": message})
	if err != nil {
		return
	}
	cmd := newCommand(request{})
	var pinner runtime.Pinner
	defer pinner.Unpin()
	cmd.setInput(&pinner, input)
	_ = c.ioctl(iocLogHistory, cmd)
}

func (c *Control) ioctl(number uintptr, cmd *command) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, c.file.Fd(), number, uintptr(unsafe.Pointer(cmd)))
	runtime.KeepAlive(cmd)
	if errno != 0 {
		return errno
	}
	return nil
}
