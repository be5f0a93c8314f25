package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/quota"
)

// The driver "auto" is opened once, with its own options, whichever it is.
func TestAutoOpensOnce(t *testing.T) {
	var opened [][]string
	cowdriver.Register(cowdriver.Registration{
		Name: "another", Filesystem: "another",
		Open: func(_ context.Context, home string, options []string, idMap user.IdentityMapping, _ *slog.Logger) (graphdriver.Driver, error) {
			opened = append(opened, options)
			return btrfs.Init(home, nil, idMap)
		},
		ParseOptions: func([]string) (quota.Options, error) { return quota.Options{}, nil },
		Usable:       func(context.Context, string) error { return nil },
	})
	dir := filepath.Join(testfs.Btrfs(t), "root")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "another", "earlier"), 0o755))
	driver, err := openDriver(t.Context(), dir, autoDriver, func(driver string) []string { return []string{driver + ".size=1G"} },
		user.IdentityMapping{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, driver.Cleanup())
	assert.Equal(t, [][]string{{"another.size=1G"}}, opened)
}
