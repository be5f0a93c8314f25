package plugin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/testfs"
)

var errDriver = errors.New("the disk went away")

// zeros is a stream of so many zero bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// blockingDiff is a driver's diff that gives a beginning and then blocks until it is closed.
type blockingDiff struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func newBlockingDiff(beginning int64) *blockingDiff {
	d := &blockingDiff{closed: make(chan struct{})}
	d.Reader = io.MultiReader(zeros(beginning), readerFunc(func([]byte) (int, error) {
		<-d.closed
		return 0, io.EOF // an end like any other, to a reader that does not know better
	}))
	return d
}

func (d *blockingDiff) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestDiffIsStreamed: the driver's data arrives before the driver has given more, and no more memory is used than for
// a buffer.
func TestDiffIsStreamed(t *testing.T) {
	testfs.CheckLeaks(t)
	blocking := newBlockingDiff(firstPart)
	f := &fake{diff: func(string, string) (io.ReadCloser, error) { return blocking, nil }}
	e := serveFake(t, f)
	diff, err := e.Diff("x", "")
	require.NoError(t, err)
	_, err = io.ReadFull(diff, make([]byte, firstPart))
	require.NoError(t, err, "before the driver has given the rest")
	require.NoError(t, diff.Close())
	testfs.Receive(t, blocking.closed)

	const size = 512 << 20
	f.diff = func(string, string) (io.ReadCloser, error) { return io.NopCloser(zeros(size)), nil }
	f.applyDiff = func(diff io.Reader) (int64, error) { return io.Copy(io.Discard, diff) }
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	diff, err = e.Diff("x", "")
	require.NoError(t, err)
	n, err := e.ApplyDiff("x", "", diff)
	require.NoError(t, err)
	assert.Equal(t, int64(size), n)
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(32<<20), "bytes allocated to stream %d both ways", size)
}

// TestApplyDiffIsStreamed: the driver gets the engine's data before the engine has sent more.
func TestApplyDiffIsStreamed(t *testing.T) {
	testfs.CheckLeaks(t)
	first := make(chan struct{})
	e := serveFake(t, &fake{applyDiff: func(diff io.Reader) (int64, error) {
		if _, err := io.ReadFull(diff, make([]byte, 1000)); err != nil {
			return 0, err
		}
		close(first)
		n, err := io.Copy(io.Discard, diff)
		return 1000 + n, err
	}})
	size, err := e.ApplyDiff("x", "", io.MultiReader(zeros(1000), readerFunc(func([]byte) (int, error) {
		testfs.Receive(t, first)
		return 0, io.EOF
	})))
	require.NoError(t, err)
	assert.Equal(t, int64(1000), size)
}

// TestDiffThatFails: an error before the first bytes are sent is told; a later one breaks the body, wherever
// it comes.
func TestDiffThatFails(t *testing.T) {
	testfs.CheckLeaks(t)
	for _, early := range []int64{0, 1, 512, firstPart - 1} {
		e := serveFake(t, &fake{diff: func(string, string) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(zeros(early), iotest.ErrReader(errDriver))), nil
		}})
		_, err := e.Diff("x", "")
		require.EqualError(t, err, errDriver.Error(), "after %d bytes", early)
	}
	for _, late := range []int64{firstPart, firstPart + 1, 2 * firstPart, 1 << 20} {
		for _, reason := range []error{errDriver, io.ErrUnexpectedEOF} {
			e := serveFake(t, &fake{diff: func(string, string) (io.ReadCloser, error) {
				return io.NopCloser(io.MultiReader(zeros(late), iotest.ErrReader(reason))), nil
			}})
			diff, err := e.Diff("x", "")
			require.NoError(t, err)
			n, err := io.Copy(io.Discard, diff)
			assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "after %d of %d bytes", n, late)
			require.NoError(t, diff.Close())
		}
	}
}

// TestDiffOfAnySize: a diff is whole, however it is cut into reads.
func TestDiffOfAnySize(t *testing.T) {
	testfs.CheckLeaks(t)
	for _, size := range []int64{0, 1, firstPart - 1, firstPart, firstPart + 1, 3*firstPart + 7} {
		for name, cut := range map[string]func(io.Reader) io.Reader{
			"as it is":                      func(r io.Reader) io.Reader { return r },
			"in half":                       iotest.HalfReader,
			"with the end in the last read": iotest.DataErrReader,
		} {
			want := bytes.Repeat([]byte("0123456789"), int(size/10+1))[:size]
			e := serveFake(t, &fake{diff: func(string, string) (io.ReadCloser, error) {
				return io.NopCloser(cut(bytes.NewReader(want))), nil
			}})
			diff, err := e.Diff("x", "")
			require.NoError(t, err)
			got, err := io.ReadAll(diff)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(want, got), "%d bytes %s", size, name)
			require.NoError(t, diff.Close())
		}
	}
}

// TestApplyDiffThatFails: the driver's error arrives however much the engine was still to send, and is not
// taken for a broken connection.
func TestApplyDiffThatFails(t *testing.T) {
	testfs.CheckLeaks(t)
	for _, read := range []int64{0, 1, 1 << 20} {
		e := serveFake(t, &fake{applyDiff: func(diff io.Reader) (int64, error) {
			_, err := io.CopyN(io.Discard, diff, read)
			return 0, errors.Join(err, errDriver)
		}})
		for range 20 {
			_, err := e.ApplyDiff("x", "", zeros(8<<20))
			require.EqualError(t, err, errDriver.Error(), "after %d bytes", read)
		}
	}
}

// TestApplyDiffThatBreaks: a stream that the engine does not send to its end is an error to the driver, never a
// shorter tar. The engine can remove the layer at once.
func TestApplyDiffThatBreaks(t *testing.T) {
	testfs.CheckLeaks(t)
	got := make(chan error, 1)
	applied := make(chan struct{})
	e := serveFake(t, &fake{
		applyDiff: func(diff io.Reader) (int64, error) {
			_, err := io.Copy(io.Discard, diff)
			close(applied)
			got <- err
			return 0, err
		},
		remove: func(string) error {
			select {
			case <-applied:
				return nil
			default:
				return errors.New("removed while a diff was applied")
			}
		},
	})
	_, err := e.ApplyDiff("x", "", io.MultiReader(zeros(1<<20), iotest.ErrReader(errDriver)))
	require.ErrorIs(t, err, errDriver)
	require.NoError(t, e.Remove("x"))
	require.Error(t, testfs.Receive(t, got))
}

// TestRemoveAfterBrokenDiff: so it is with a diff that the engine has had enough of, for both its layers.
func TestRemoveAfterBrokenDiff(t *testing.T) {
	testfs.CheckLeaks(t)
	for _, removed := range []string{"x", "parent"} {
		blocking := newBlockingDiff(firstPart)
		e := serveFake(t, &fake{
			diff: func(string, string) (io.ReadCloser, error) { return blocking, nil },
			remove: func(string) error {
				select {
				case <-blocking.closed:
					return nil
				default:
					return errors.New("removed while it was read")
				}
			},
		})
		diff, err := e.Diff("x", "parent")
		require.NoError(t, err)
		require.NoError(t, diff.Close())
		require.NoError(t, e.Remove(removed))
	}
}

// TestInitEndsStreams: an engine that starts again does not wait for its earlier requests, and no stream looks
// complete because it was ended.
func TestInitEndsStreams(t *testing.T) {
	testfs.CheckLeaks(t)
	for name, end := range map[string]func(e *engine) error{
		"Init":    func(e *engine) error { return e.init("/home", nil, unmapped) },
		"Cleanup": func(e *engine) error { return e.Cleanup() },
	} {
		t.Run(name, func(t *testing.T) {
			blocking := newBlockingDiff(firstPart)
			applying := make(chan struct{})
			f := &fake{
				diff: func(string, string) (io.ReadCloser, error) { return blocking, nil },
				applyDiff: func(diff io.Reader) (int64, error) {
					close(applying)
					return io.Copy(io.Discard, diff)
				},
			}
			e := serveFake(t, f)
			diff, err := e.Diff("x", "")
			require.NoError(t, err)
			_, err = io.ReadFull(diff, make([]byte, firstPart))
			require.NoError(t, err)

			toApply, sending := io.Pipe()
			applied := make(chan error, 1)
			go func() {
				_, err := e.ApplyDiff("y", "", toApply)
				applied <- err
			}()
			testfs.Begun(t, applying, applied)

			require.NoError(t, end(e))
			_, err = io.Copy(io.Discard, diff)
			assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
			assert.Error(t, testfs.Receive(t, applied))
			require.NoError(t, errors.Join(sending.Close(), diff.Close()))
		})
	}
}

// TestServerStops: requests that do not end are cut off, and those that are idle do not keep the server.
func TestServerStops(t *testing.T) {
	testfs.CheckLeaks(t)
	f := &fake{diff: func(string, string) (io.ReadCloser, error) { return newBlockingDiff(firstPart), nil }}
	adapter := NewAdapter(f.opener, AdapterOptions{})
	e, stop := serveDriver(t, adapter)
	require.NoError(t, e.init("/home", nil, unmapped))

	idle := e.dial(t)
	defer idle.Close()
	_, err := io.WriteString(idle, "POST /GraphDriver.Status HTTP/1.1\r\nHost: p\r\n") // and no more
	require.NoError(t, err)
	diff, err := e.Diff("x", "")
	require.NoError(t, err)
	defer diff.Close()

	// Streams end at once; without Close they have their time of grace.
	require.NoError(t, adapter.Close())
	stop()
	_, err = io.Copy(io.Discard, diff)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = e.activate()
	assert.Error(t, err)
	assert.ErrorIs(t, adapter.Remove("x"), errdefs.ErrAborted)
}

// TestServerCutsConnections: a request that does not end in time is cut off, and its resources are released.
func TestServerCutsConnections(t *testing.T) {
	testfs.CheckLeaks(t)
	blocking := newBlockingDiff(firstPart)
	f := &fake{diff: func(string, string) (io.ReadCloser, error) { return blocking, nil }}
	adapter := NewAdapter(f.opener, AdapterOptions{})
	require.NoError(t, adapter.Init("/home", nil, nil, nil))
	handler := NewHandler(adapter)
	handler.Grace = 50 * time.Millisecond
	socket := t.TempDir() + "/p.sock"
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- handler.ServeContext(ctx, l) }()

	diff, err := newEngine(t, socket).Diff("x", "")
	require.NoError(t, err)
	cancel()
	_, err = io.Copy(io.Discard, diff)
	assert.Error(t, err)
	require.NoError(t, diff.Close())
	require.NoError(t, testfs.Receive(t, ended))
	testfs.Receive(t, blocking.closed)
	require.NoError(t, adapter.Close())
}

// TestListenerFails: the server ends with the error of its listener.
func TestListenerFails(t *testing.T) {
	testfs.CheckLeaks(t)
	err := NewHandler(NewAdapter(nil, AdapterOptions{})).ServeContext(context.Background(), failingListener{})
	assert.ErrorIs(t, err, errDriver)
}

type failingListener struct{}

func (failingListener) Accept() (net.Conn, error) { return nil, errDriver }
func (failingListener) Close() error              { return nil }
func (failingListener) Addr() net.Addr            { return &net.UnixAddr{} }

// TestBrokenHTTP: bytes that are not even HTTP do not disturb the server.
func TestBrokenHTTP(t *testing.T) {
	testfs.CheckLeaks(t)
	e := serveFake(t, &fake{})
	for _, text := range []string{
		"", "\x00\x01\x02", "POST", "POST /GraphDriver.Remove HTTP/1.1\r\n\r\n", "POST /GraphDriver.Remove HTTP/1.1\r\nHost: p\r\nContent-Length: -1\r\n\r\n",
		"POST /GraphDriver.ApplyDiff?id=x HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
		"POST /GraphDriver.Remove HTTP/1.1\r\nHost: p\r\nContent-Length: 100\r\n\r\n{",
		"GET " + strings.Repeat("x", 2<<20),
	} {
		conn := e.dial(t)
		_, _ = io.WriteString(conn, text) // the server may close before it has all
		require.NoError(t, conn.(*net.UnixConn).CloseWrite())
		_, _ = io.Copy(io.Discard, conn)
		require.NoError(t, conn.Close())
	}
	assert.NotEmpty(t, e.Status())
}

// dial makes a connection to the plugin.
func (e *engine) dial(t testing.TB) net.Conn {
	t.Helper()
	conn, err := e.http.Transport.(*http.Transport).DialContext(t.Context(), "", "")
	require.NoError(t, err)
	return conn
}
