package equivalence

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestPackagesAsLayers applies the tars inside Debian packages as layers, one on the other.
func TestPackagesAsLayers(t *testing.T) {
	v := newVolumes(t, testfs.Btrfs(t, testfs.WithSize(4<<30)))
	dirs := make(map[string]string)
	for _, p := range tools {
		dirs[p.name] = v.make(p.name)
	}
	for i, file := range append(packages(t, basePackages...), packages(t, laterPackages...)...) {
		layer := tarOfPackage(t, file)
		for _, p := range tools {
			p.applied(t, dirs[p.name], layer, i == 0)
		}
	}
	count := 0
	require.NoError(t, filepath.WalkDir(dirs[cowshed.name], func(string, fs.DirEntry, error) error { count++; return nil }))
	assert.Greater(t, count, 4000, "the corpus is worth its name")
	for _, p := range tools[1:] {
		requireEqual(t, dirs[cowshed.name], dirs[p.name], treecmp.Options{}, p.name)
	}
}

// TestDebian takes three trees of a Debian system through every tool.
func TestDebian(t *testing.T) {
	v := newVolumes(t, testfs.Btrfs(t, testfs.WithSize(4<<30)))
	steps := debian(t, v)
	t.Run("GNU tar", func(t *testing.T) { testGNUTar(t, v, steps[0]) })
	t.Run("layers", func(t *testing.T) { testLayers(t, v, steps) })
}

// testGNUTar applies a whole tree written by GNU tar: times with nanoseconds, sparse files, names that begin
// with "./".
func testGNUTar(t *testing.T, v *volumes, source string) {
	for _, format := range []string{"pax", "gnu"} {
		args := []string{"-c", "--numeric-owner", "--format=" + format, "-C", source}
		if format == "pax" {
			args = append(args, "--xattrs", "--xattrs-include=*", "--sparse")
		}
		layer := command(t, "tar", append(args, ".")...)
		for _, p := range tools {
			dir := v.make(p.name)
			p.applied(t, dir, layer, true)
			requireEqual(t, source, dir, treecmp.Options{
				WholeSeconds: format == "gnu",
				SkipXattr: func(_, name string) bool {
					return format == "gnu" || !keptXattr(cowshed, p, name)
				},
			}, format+" by "+p.name)
			v.remove(dir)
		}
	}
}

// testLayers writes each tree as a layer on the one before it with each tool and applies the tars with Cowshed. It
// applies Cowshed's tars with each tool.
func testLayers(t *testing.T, v *volumes, steps []string) {
	below := make(map[string]string) // the results of the layers before, by pair
	lower := ""
	for i, upper := range steps {
		listed := changedDirs(t, upper, lower)
		for _, writer := range tools {
			layer := writer.written(t, upper, lower)
			for _, applier := range tools {
				if writer.name != cowshed.name && applier.name != cowshed.name {
					continue // says nothing about Cowshed
				}
				pair := writer.name + "-" + applier.name
				var dir string
				if i == 0 {
					dir = v.make(pair + "-0")
				} else {
					dir = v.clone(fmt.Sprintf("%s-%d", pair, i), below[pair])
				}
				applier.applied(t, dir, layer, i == 0)
				requireEqual(t, upper, dir, treecmp.Options{
					WholeSeconds: true,
					// A directory of which only the time has changed is in no change list.
					SkipTime:  func(p string) bool { return isDir(filepath.Join(upper, p)) && !listed[p] },
					SkipXattr: func(_, name string) bool { return !keptXattr(writer, applier, name) },
				}, fmt.Sprintf("step %d written by %s and applied by %s", i, writer.name, applier.name))
				below[pair] = dir
			}
		}
		lower = upper
	}
}

// changedDirs returns the directories that a layer has entries for.
func changedDirs(t testing.TB, upper, lower string) map[string]bool {
	t.Helper()
	changes, err := treediff.Compare(t.Context(), upper, lower, nil)
	require.NoError(t, err)
	dirs := make(map[string]bool)
	for _, c := range changes {
		dirs[strings.TrimPrefix(c.Path, "/")] = true
	}
	return dirs
}

func isDir(p string) bool {
	info, err := os.Lstat(p)
	return err == nil && info.IsDir()
}
