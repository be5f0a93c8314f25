package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// openedAnother has the options of each opening of the driver "another".
var openedAnother [][]string

// registerAnother registers the driver "another" for the rest of the process.
var registerAnother = sync.OnceFunc(func() {
	cowdriver.Register(cowdriver.Registration{
		Name: "another", Filesystem: "another",
		Open: func(_ context.Context, home string, options []string, idMap user.IdentityMapping, _ *slog.Logger) (graphdriver.Driver, error) {
			openedAnother = append(openedAnother, options)
			return btrfs.Init(home, nil, idMap)
		},
		ParseOptions: func([]string) (cowcommon.DriverOptions, error) { return cowcommon.DriverOptions{}, nil },
		Usable:       func(context.Context, string) error { return nil },
	})
})

// The driver "auto" is opened once, with its own options, whichever it is.
func TestAutoOpensOnce(t *testing.T) {
	registerAnother()
	openedAnother = nil
	dir := filepath.Join(testfs.Btrfs(t), "root")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "another", "earlier"), 0o755))
	driver, err := openDriver(t.Context(), dir, autoDriver, func(driver string) []string { return []string{driver + ".size=1G"} },
		user.IdentityMapping{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, driver.Cleanup())
	assert.Equal(t, [][]string{{"another.size=1G"}}, openedAnother)
}
