package limitalert

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/limited"
	"github.com/cowshed/cowshed/quota"
)

func volume(name string, held uint64) limited.Volume {
	return limited.Volume{Name: name, Held: held, Limit: quota.Limit{Bytes: 1000}, Counted: true}
}

// TestLook: a volume is reported once for each level, and again after it has fallen well below the level, also by another
// State.
func TestLook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "alerts.json")
	s, err := ReadState(file, []int{80, 95})
	require.NoError(t, err)
	for _, step := range []struct {
		held uint64
		want int
	}{
		{799, 0}, {800, 80}, {940, 0}, {950, 95}, {900, 0}, {950, 0}, {899, 0}, {950, 95}, {760, 0}, {800, 0}, {749, 0}, {800, 80},
		{2000, 95}, {0, 0}, {990, 95},
	} {
		crossed, err := s.Look("snapshots", []limited.Volume{volume("a", step.held)})
		require.NoError(t, err)
		if step.want == 0 {
			assert.Empty(t, crossed, step.held)
		} else if assert.Len(t, crossed, 1, step.held) {
			assert.Equal(t, step.want, crossed[0].Level, step.held)
		}
		s, err = ReadState(file, []int{80, 95})
		require.NoError(t, err)
	}
}

// TestLookAtMany: volumes of other services, and volumes that were not measured, keep their level. Those that are gone lose
// it.
func TestLookAtMany(t *testing.T) {
	s, err := ReadState(filepath.Join(t.TempDir(), "alerts.json"), []int{80, 95})
	require.NoError(t, err)
	look := func(service string, volumes ...limited.Volume) (names []string) {
		crossed, err := s.Look(service, volumes)
		require.NoError(t, err)
		for _, c := range crossed {
			names = append(names, c.Name)
		}
		return names
	}
	assert.Equal(t, []string{"c", "a"}, look("snapshots", volume("a", 820), volume("b", 10), volume("c", 990)))
	assert.Equal(t, []string{"a"}, look("docker", volume("a", 960)))
	unknown := volume("a", 0)
	unknown.Counted = false
	assert.Empty(t, look("snapshots", unknown))
	assert.Equal(t, []string{"c"}, look("snapshots", volume("a", 820), volume("c", 990)))
	assert.Empty(t, look("docker"))
	assert.Equal(t, []string{"a"}, look("docker", volume("a", 960)))
}

// TestSmallLevel: a level below the slack can be crossed again.
func TestSmallLevel(t *testing.T) {
	s, err := ReadState(filepath.Join(t.TempDir(), "alerts.json"), []int{2})
	require.NoError(t, err)
	for _, step := range []struct {
		held uint64
		want int
	}{{20, 1}, {11, 0}, {20, 0}, {9, 0}, {20, 1}} {
		crossed, err := s.Look("snapshots", []limited.Volume{volume("a", step.held)})
		require.NoError(t, err)
		assert.Len(t, crossed, step.want, step.held)
	}
}

// TestDamagedState: a file that is none of ours is an error, and the State works.
func TestDamagedState(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "alerts.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"snapshots": 5}`), 0o600))
	link := filepath.Join(dir, "link.json")
	require.NoError(t, os.Symlink(file, link))
	for _, name := range []string{file, link} {
		s, err := ReadState(name, []int{80})
		require.Error(t, err)
		crossed, err := s.Look("snapshots", []limited.Volume{volume("a", 900)})
		require.NoError(t, err)
		assert.Len(t, crossed, 1)
	}
}

// TestStateCannotBeWritten: crossings are reported all the same.
func TestStateCannotBeWritten(t *testing.T) {
	s, err := ReadState(filepath.Join(t.TempDir(), "none", "alerts.json"), []int{80})
	require.NoError(t, err)
	crossed, err := s.Look("snapshots", []limited.Volume{volume("a", 900)})
	require.Error(t, err)
	assert.Len(t, crossed, 1)
	crossed, err = s.Look("snapshots", []limited.Volume{volume("a", 900)})
	require.NoError(t, err)
	assert.Empty(t, crossed)
}
