package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/flock"
)

// Listen makes a socket at path, with its directory if need be, that only its owner (root) can connect to. Closing
// the listener removes it.
//
// A socket that a process left behind is replaced. Returns errdefs.ErrAlreadyExists if a process listens at it, and
// errdefs.ErrFailedPrecondition if path is not a socket. It gives up when ctx ends.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	return ListenFor(ctx, path, ownerAlone)
}

// ownerAlone is no group.
const ownerAlone = -1

// ListenFor is Listen at a socket that the members of a group can connect to too.
func ListenFor(ctx context.Context, path string, gid int) (net.Listener, error) {
	l, err := listen(ctx, path, gid)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string, gid int) (_ net.Listener, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	unlock, err := flock.Dir(ctx, filepath.Dir(path)) // others may make and remove sockets there
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := checkUnused(ctx, path); err != nil {
		return nil, err
	}
	return listenPrivately(ctx, path, gid)
}

// listenPrivately makes the socket in a directory that only the owner can enter, so that nobody else can connect at
// any moment. Then it moves the socket to its place, where it replaces an existing file.
func listenPrivately(ctx context.Context, path string, gid int) (_ net.Listener, err error) {
	private, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	made := filepath.Join(private, "s")
	unixListener, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	unixListener.SetUnlinkOnClose(false)
	mode := fs.FileMode(0o600)
	if gid != ownerAlone {
		mode = 0o660
		err = os.Lchown(made, -1, gid)
	}
	if err == nil {
		err = os.Chmod(made, mode)
	}
	var own os.FileInfo
	if err == nil {
		own, err = os.Lstat(made)
	}
	if err == nil {
		err = os.Rename(made, path)
	}
	if err != nil {
		return nil, errors.Join(err, unixListener.Close())
	}
	l := &listener{UnixListener: unixListener, path: path}
	ctx = context.WithoutCancel(ctx) // the socket goes with the listener, long after it was made
	l.close = sync.OnceValue(func() error { return errors.Join(unixListener.Close(), removeSocket(ctx, path, own)) })
	return l, nil
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	path  string
	close func() error
}

func (l *listener) Close() error { return l.close() }

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// checkUnused reports whether a socket may be made at path.
func checkUnused(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fault.New(errdefs.ErrFailedPrecondition, "it exists and is not a socket")
	}
	dial, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(dial, "unix", path)
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		return errors.Join(fault.New(errdefs.ErrAlreadyExists, "a process listens there"), conn.Close())
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return nil // no process has it open
	default:
		return fault.New(errdefs.ErrAlreadyExists, "a process seems to listen there: %w", err)
	}
}

// removeSocket removes the socket at path if it is the given one and not another's since.
func removeSocket(ctx context.Context, path string, own os.FileInfo) error {
	unlock, err := flock.Dir(ctx, filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	info, err := os.Lstat(path)
	if err == nil && os.SameFile(info, own) {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
