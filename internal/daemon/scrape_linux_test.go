package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/plugin"
)

// TestScrapeThatDoesNotEnd: while metrics are counted on a filesystem that does not answer, drivers are opened and
// closed, and other scrapes answer.
func TestScrapeThatDoesNotEnd(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	c.DockerPlugin = "cowshed-test"
	c.StopTimeout.Duration = 100 * time.Millisecond
	p := newDockerPlugin(t.Context(), c, newMetrics("test"), slog.New(slog.DiscardHandler))
	open := func(home string) graphdriver.Driver {
		driver, err := p.open(plugin.InitRequest{Home: filepath.Join(filepath.Dir(c.Root), home)})
		require.NoError(t, err)
		return driver
	}
	first := open("first")
	counting, release, counted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	letEnd := sync.OnceFunc(func() { close(release) })
	defer letEnd()
	go func() {
		defer close(counted)
		p.source().use(func(ctx context.Context, b cowcommon.Backend) {
			close(counting)
			<-release
			assert.Error(t, ctx.Err(), "it is told to stop")
			for _, err := range b.Volumes(context.Background()) {
				assert.NoError(t, err, "the backend is open as long as it is used")
			}
		})
	}()
	testfs.Receive(t, counting)

	testfs.Within(t, func() {
		second := open("second")
		p.source().compared()
		require.NoError(t, second.Cleanup())
		require.ErrorIs(t, first.Cleanup(), errdefs.ErrUnavailable)
		p.source().use(func(context.Context, cowcommon.Backend) { t.Error("no driver is open") })
	})
	letEnd()
	testfs.Receive(t, counted)
}

// TestScheduleOutlastsEnd: nobody waits a second time for a post command that outlasts the end of the daemon. The volumes are closed
// when it has ended.
func TestScheduleOutlastsEnd(t *testing.T) {
	testfs.CheckLeaks(t)
	c := testConfig(t)
	require.NoError(t, os.MkdirAll(c.Root, 0o711))
	dir, driver, err := openContainerdDriver(t.Context(), c, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	scrapes := newScrapes(t.Context(), driver.Backend(), time.Hour)
	home := containersHome(c, dir, driver, scrapes, slog.New(slog.DiscardHandler))
	counting, counted := make(chan struct{}), make(chan struct{})
	began, release, used, closed := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan struct{})
	letEnd := sync.OnceFunc(func() { close(release) })
	defer letEnd()
	go func() {
		used <- home.Use(t.Context(), func(context.Context, *live.Layers) error {
			close(began)
			<-release
			return nil
		})
	}()
	testfs.Begun(t, began, used)
	go scrapes.do(func(ctx context.Context, _ cowcommon.Backend) {
		close(counting)
		<-ctx.Done()
		close(counted)
	})
	testfs.Receive(t, counting)
	testfs.Within(t, func() {
		assert.NoError(t, scrapes.close(func() error { defer close(closed); return driver.Cleanup() }))
	})
	testfs.Receive(t, counted)
	select {
	case <-closed:
		t.Error("the volumes are closed while they are used")
	default:
	}
	letEnd()
	require.NoError(t, testfs.Receive(t, used))
	testfs.Receive(t, closed)
}
