package graphtest_test

import (
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/graphtest"
)

// The test of a driver. It is compiled only: e2e runs the suite with both drivers.
func ExampleRun() {
	testDriver := func(t *testing.T) {
		graphtest.Run(t, graphtest.Config{
			New: func(t testing.TB) graphdriver.Driver {
				driver, err := btrfs.Init(filepath.Join(t.TempDir(), "btrfs"), nil, user.IdentityMapping{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := driver.Cleanup(); err != nil {
						t.Error(err)
					}
				})
				return driver
			},
			Quota:        true,
			SealsParents: true,
		})
	}
	_ = testDriver // in a test: func TestDriver(t *testing.T)
}
