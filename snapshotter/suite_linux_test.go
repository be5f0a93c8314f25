package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/testfs"
)

// modes are the quota modes that everything has to work in.
var modes = []struct {
	name string
	opts []testfs.BtrfsOption
}{
	{"simple", []testfs.BtrfsOption{testfs.WithSimpleQuota()}},
	{"classic", []testfs.BtrfsOption{testfs.WithClassicQuota()}},
	{"off", nil},
}

// TestSnapshotterSuite runs containerd's own tests of snapshotters the way that containerd reaches a snapshotter.
func TestSnapshotterSuite(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) { runSuite(t, onBtrfs(mode.opts...), byProxy, Options{}) })
	}
	t.Run("direct", func(t *testing.T) { runSuite(t, onBtrfs(), direct, Options{}) })
	t.Run("shared", func(t *testing.T) { runSuite(t, onBtrfs(), byProxy, Options{RootStyle: cowcommon.SharedRoot}) })
}

// connectFunc makes the tested snapshotter of a snapshotter. root is a directory of its own.
type connectFunc func(root string, s *Snapshotter) (tested snapshots.Snapshotter, end func() error, err error)

func direct(_ string, s *Snapshotter) (snapshots.Snapshotter, func() error, error) {
	return s, s.Close, nil
}

func byProxy(root string, s *Snapshotter) (snapshots.Snapshotter, func() error, error) {
	conn, stop, err := serve(root, s, nil)
	if err != nil {
		return nil, nil, err
	}
	client := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "cowshed")
	return served{client, s.Close}, func() error { stop(); return s.Close() }, nil
}

// served is a snapshotter behind a socket. Closing it closes all of it.
type served struct {
	snapshots.Snapshotter
	close func() error
}

func (s served) Close() error { return s.close() }

func runSuite(t *testing.T, fs filesystem, connect connectFunc, opts Options) {
	_, open := fs(t)
	var homes atomic.Int64
	name := "cowshed"
	if opts.RootStyle == cowcommon.SharedRoot {
		name = "overlayfs" // so that no directory of a lower layer is renamed, which an overlay refuses with EXDEV
	}
	testsuite.SnapshotterSuite(t, name, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		backend, err := open(fmt.Sprint("home-", homes.Add(1)))
		if err != nil {
			return nil, nil, err
		}
		s, err := New(ctx, filepath.Join(root, "snapshotter"), backend, opts)
		if err != nil {
			return nil, nil, errors.Join(err, backend.Close())
		}
		return connect(root, s)
	})
}
