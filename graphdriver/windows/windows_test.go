package windows_test

import (
	"testing"

	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/windows"
)

func TestNotSupported(t *testing.T) {
	for name, init := range map[string]func(home string, options []string, uidMaps, gidMaps []user.IDMap) (graphdriver.Driver, error){
		"windowsdiff": windows.InitDiff, "windowsfilter": windows.InitFilter,
	} {
		home := t.TempDir()
		driver, err := init(home, nil, nil, nil)
		require.ErrorIs(t, err, graphdriver.ErrNotSupported)
		assert.True(t, graphdriver.IsDriverNotSupported(err))
		assert.ErrorContains(t, err, name)
		assert.Nil(t, driver)
	}
}
