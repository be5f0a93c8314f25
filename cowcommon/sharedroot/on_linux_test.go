package sharedroot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/homedir"
	"github.com/cowshed/cowshed/internal/testfs"
)

// victimEnv names the directory in which a victim makes homes.
const victimEnv = "COWSHED_TURN_ON_VICTIM"

// TestTurnOnVictim is run in a process of its own. It turns shared roots on in one home after the other.
func TestTurnOnVictim(t *testing.T) {
	dir := os.Getenv(victimEnv)
	if dir == "" {
		return
	}
	for i := 0; ; i++ {
		home := filepath.Join(dir, fmt.Sprintf("%06d", i))
		require.NoError(t, os.Mkdir(home, 0o700))
		require.NoError(t, turnOnIn(home))
	}
}

func turnOnIn(home string) error {
	b := &Backend{home: home, locks: homedir.LockFile(home), index: index{filepath.Join(home, indexName)}}
	return b.turnOn()
}

// TestTurnOnKilled kills processes that turn shared roots on. They are on or off then, and nobody is kept from the home.
func TestTurnOnKilled(t *testing.T) {
	mnt := testfs.Btrfs(t)
	states := make(map[bool]int)
	for round := range 20 {
		dir := filepath.Join(mnt, fmt.Sprint(round))
		require.NoError(t, os.Mkdir(dir, 0o700))
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTurnOnVictim$")
		cmd.Env = append(os.Environ(), victimEnv+"="+dir)
		require.NoError(t, cmd.Start())
		require.Eventually(t, func() bool {
			homes, err := os.ReadDir(dir)
			return err == nil && len(homes) > round
		}, testfs.Patience, 50*time.Microsecond)
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
		homes, err := filepath.Glob(dir + "/*")
		require.NoError(t, err)
		for i, home := range homes {
			end, isOn, err := StayOff(t.Context(), home)
			require.NoError(t, err)
			require.True(t, isOn || i == len(homes)-1, "the last alone was not acknowledged")
			states[isOn]++
			if !isOn {
				require.ErrorIs(t, turnOnIn(home), errdefs.ErrFailedPrecondition, "this process works without them")
				require.False(t, IsOn(home))
				require.NoError(t, end())
			}
			require.NoError(t, turnOnIn(home))
			require.True(t, IsOn(home))
			names, err := index{filepath.Join(home, indexName)}.all()
			require.NoError(t, err)
			require.Empty(t, names)
		}
	}
	t.Log(states)
	assert.NotZero(t, states[true])
}
