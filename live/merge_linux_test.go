package live_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/forest"
	"github.com/cowshed/cowshed/internal/treeat"
	"github.com/cowshed/cowshed/internal/treecmp"
	"github.com/cowshed/cowshed/live"
)

// sh runs a script in the tree of a layer.
func (h home) sh(layer, script string) {
	h.t.Helper()
	h.edit(layer, func(dir string) {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(h.t, err, "%s: %s", script, out)
	})
}

// forked makes a layer with some files of its image and of its own, and a fork of it.
func (h home) forked() {
	h.t.Helper()
	h.image("distro")
	h.sh("distro", "mkdir -p d/e other; echo 1 >file; echo 1 >d/x; echo 1 >d/e/y; ln -s x link; echo 1 >other/z")
	h.clone("web", "distro")
	h.sh("web", "echo 1 >a; ln a b") // TestMergeImageLinks has links of the image
	_, err := h.Fork(h.t.Context(), "web", []string{"fork"}, live.ForkOptions{})
	require.NoError(h.t, err)
}

// assertBase asserts that the changes of a layer count from base.
func (h home) assertBase(layer, base string) {
	h.t.Helper()
	v, err := h.backend.Stat(h.t.Context(), layer)
	require.NoError(h.t, err)
	got, err := h.Base(h.t.Context(), v)
	require.NoError(h.t, err)
	assert.Equal(h.t, base, got)
}

// TestMerge merges changes of both sides that do not touch each other.
func TestMerge(t *testing.T) { eachHome(t, testMerge) }

func testMerge(t *testing.T, h home) {
	for _, inPlace := range []bool{false, true} {
		ctx := t.Context()
		h.forked()
		h.sh("fork", "echo 2 >d/x; rm -r d/e; ln -sf y link; mkdir -p new/dir; echo 2 >new/dir/file; chmod 700 other; echo same >both")
		h.sh("web", "echo 2 >file; echo 2 >d/ours; rm a; echo 2 >b; echo 2 >other/z; echo same >both; chmod 711 .")
		merged, err := h.Merge(ctx, "fork", live.MergeOptions{Live: inPlace})
		require.NoError(t, err)
		assert.Equal(t, "web", merged.Into)
		assert.Equal(t, "before-merge-1", merged.Before.Name)
		h.sh("web", `test "$(cat file d/x d/ours b other/z new/dir/file both)" = "$(printf '2\n2\n2\n2\n2\n2\nsame')"
			test ! -e a; test ! -e d/e; test "$(readlink link)" = y; test $(stat -c %a other) = 700; test $(stat -c %a .) = 711`)
		assert.Equal(t, []string{"before-merge-1"}, h.names("web"))
		require.NoError(t, h.Sweep(ctx))
		h.assertStyle("web", "fork")
		h.assertBase("web", "distro")
		_, err = h.Rollback(ctx, "web", "before-merge-1", live.RollbackOptions{})
		require.NoError(t, err)
		h.sh("web", "test -e d/e/y; test ! -e new; test $(stat -c %a .) = 711")

		for _, layer := range []string{"web", "fork"} {
			require.NoError(t, h.backend.Remove(ctx, layer))
		}
		h.assertClean(0, "distro")
		require.NoError(t, h.backend.Remove(ctx, "distro"))
	}
}

func TestMergeConflicts(t *testing.T) { eachStyle(t, testMergeConflicts) }

func testMergeConflicts(t *testing.T, newHome makeHome) {
	for name, c := range map[string]struct {
		fork, web string
		paths     string // of the conflicts
		theirs    string // true after a merge with Theirs
		ours      string // true after a merge with Ours
	}{
		"both write":          {fork: "echo 2 >file", web: "echo 3 >file", paths: "/file", theirs: `test "$(cat file)" = 2`, ours: `test "$(cat file)" = 3`},
		"both add":            {fork: "echo 2 >new", web: "mkdir -p new/dir", paths: "/new", theirs: "test -f new", ours: "test -d new/dir"},
		"removed and written": {fork: "rm file", web: "echo 3 >file", paths: "/file", theirs: "test ! -e file", ours: "test -e file"},
		"written and removed": {fork: "echo 2 >file", web: "rm file", paths: "/file", theirs: "test -e file", ours: "test ! -e file"},
		"directory removed":   {fork: "rm -r d", web: "echo 3 >d/e/y", paths: "/d", theirs: "test ! -e d", ours: `test "$(cat d/e/y)" = 3`},
		"written in a directory that is removed": {
			fork: "echo 2 >d/e/y", web: "rm -r d", paths: "/d", theirs: `test "$(cat d/e/y d/x)" = "$(printf '2\n1')"`, ours: "test ! -e d",
		},
		"a file instead of a directory": {fork: "rm -r d; echo 2 >d", web: "echo 3 >d/x", paths: "/d", theirs: "test -f d", ours: `test "$(cat d/x)" = 3`},
		"a name is added":               {fork: "echo 2 >file", web: "ln file more", paths: "/file", theirs: `test "$(cat file more)" = "$(printf '2\n1')"`, ours: `test "$(cat file)" = 1`},
		"the other name": {
			fork: "ln a c", web: "echo 3 >b", paths: "/a /b", theirs: `test "$(cat a b c)" = "$(printf '1\n1\n1')"; test $(stat -c %h a) = 3`, ours: `test "$(cat a b c)" = "$(printf '3\n3\n1')"`,
		},
		"modes of a directory": {fork: "chmod 700 d", web: "chmod 750 d; echo 3 >d/x", paths: "/d", theirs: `test $(stat -c %a d) = 700; test "$(cat d/x)" = 3`, ours: "test $(stat -c %a d) = 750"},
		"modes of the root":    {fork: "chmod 700 .", web: "chmod 750 .", paths: "/", theirs: "test $(stat -c %a .) = 700", ours: "test $(stat -c %a .) = 750"},
		"links":                {fork: "ln -sf 2 link", web: "ln -sf 3 link", paths: "/link", theirs: "test $(readlink link) = 2", ours: "test $(readlink link) = 3"},
	} {
		t.Run(name, func(t *testing.T) {
			h, ctx := newHome(t), t.Context()
			h.forked()
			h.sh("fork", c.fork+"; echo 2 >more-of-fork")
			h.sh("web", c.web)
			_, err := h.Merge(ctx, "fork", live.MergeOptions{})
			var conflict *live.ConflictError
			require.ErrorAs(t, err, &conflict)
			require.ErrorIs(t, err, errdefs.ErrConflict)
			var paths []string
			for _, p := range conflict.Conflicts {
				paths = append(paths, p.Path)
			}
			assert.Equal(t, c.paths, strings.Join(paths, " "))
			assert.Empty(t, h.get("web", "more-of-fork"), "nothing is applied")
			assert.Empty(t, h.names("web"))
			h.assertClean(1, "distro", "fork", "web")

			for resolution, check := range map[live.Resolution]string{live.Theirs: c.theirs, live.Ours: c.ours} {
				merged, err := h.Merge(ctx, "fork", live.MergeOptions{Resolve: func(live.Conflict) live.Resolution { return resolution }})
				require.NoError(t, err)
				assert.Len(t, merged.Conflicts, len(conflict.Conflicts))
				h.sh("web", check+"; test -e more-of-fork")
				_, err = h.Rollback(ctx, "web", merged.Before.Name, live.RollbackOptions{})
				require.NoError(t, err)
			}
		})
	}
}

// TestMergeImageLinks merges changes of a file that has two names in the image. A layer with a shared root leaves the other name
// behind when the file is opened for writing.
func TestMergeImageLinks(t *testing.T) {
	for name, c := range map[string]struct {
		web, fork string
		conflicts map[cowcommon.RootStyle]string
	}{
		"a name is added":   {"ln f more", "echo 2 >f", map[cowcommon.RootStyle]string{cowcommon.DefaultRoot: "/f /g", cowcommon.SharedRoot: "/f"}},
		"a name is moved":   {"mv f more", "echo 2 >g", map[cowcommon.RootStyle]string{cowcommon.DefaultRoot: "/f /g"}},
		"opened":            {": >>f", "echo 2 >f", nil},
		"a name is removed": {"rm g", "echo 2 >f", map[cowcommon.RootStyle]string{cowcommon.DefaultRoot: "/g"}},
		"other file":        {"echo 3 >a; ln a more", "echo 2 >f", nil},
	} {
		t.Run(name, func(t *testing.T) {
			eachStyle(t, func(t *testing.T, newHome makeHome) {
				h, ctx := newHome(t), t.Context()
				h.image("distro")
				h.sh("distro", "echo 1 >f; ln f g; echo 1 >a")
				h.clone("web", "distro")
				_, err := h.Fork(ctx, "web", []string{"fork"}, live.ForkOptions{})
				require.NoError(t, err)
				h.sh("web", c.web)
				h.sh("fork", c.fork)
				var paths []string
				_, err = h.Merge(ctx, "fork", live.MergeOptions{})
				var conflict *live.ConflictError
				if errors.As(err, &conflict) {
					for _, p := range conflict.Conflicts {
						paths = append(paths, p.Path)
					}
				} else {
					require.NoError(t, err)
					h.sh("web", `test "$(cat f g | grep -c 2)" -gt 0`)
				}
				assert.Equal(t, c.conflicts[h.style], strings.Join(paths, " "))
			})
		})
	}
}

// TestMergeNot: errors change nothing.
func TestMergeNot(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		h, ctx := newHome(t), t.Context()
		h.forked()
		h.put("fork", "new", "2")
		_, err := h.Merge(ctx, "web", live.MergeOptions{})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		_, err = h.Merge(ctx, "fork", live.MergeOptions{Into: "fork"})
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		_, err = h.Merge(ctx, "fork", live.MergeOptions{Into: "none"})
		require.ErrorIs(t, err, errdefs.ErrNotFound)
		h.edit("web", func(string) {
			_, err = h.Merge(ctx, "fork", live.MergeOptions{})
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
		})
		h.assertClean(1, "distro", "fork", "web")
		assert.Empty(t, h.get("web", "new"))
	})
}

// TestMergeRandom: a fork with any changes, merged into a layer with a change elsewhere, gives the fork's tree with that
// change.
func TestMergeRandom(t *testing.T) {
	eachStyle(t, func(t *testing.T, newHome makeHome) {
		for range 3 {
			seed := rand.Uint64()
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				h, ctx := newHome(t), t.Context()
				h.image("distro")
				h.edit("distro", func(dir string) {
					require.NoError(t, os.Mkdir(filepath.Join(dir, "tree"), 0o755))
					require.NoError(t, os.Mkdir(filepath.Join(dir, "ours"), 0o755))
					forest.New(t, seed, filepath.Join(dir, "tree")).Change(150)
				})
				h.clone("web", "distro")
				_, err := h.Fork(ctx, "web", []string{"fork"}, live.ForkOptions{})
				require.NoError(t, err)
				h.edit("fork", func(dir string) { forest.New(t, seed+1, filepath.Join(dir, "tree")).Change(60) })
				h.put("web", "ours/file", "ours")
				_, err = h.Merge(ctx, "fork", live.MergeOptions{})
				require.NoError(t, err)
				assert.Equal(t, "ours", h.get("web", "ours/file"))
				h.edit("fork", func(fork string) {
					h.edit("web", func(web string) {
						// An entry that came and went is no change of a directory.
						isDir := func(path string) bool {
							info, err := os.Lstat(filepath.Join(fork, "tree", path))
							return err == nil && info.IsDir()
						}
						// Nor are other default ACLs of a directory that was made anew.
						isDefault := func(_, xattr string) bool { return xattr == treeat.ACLDefault }
						treecmp.Equal(t, filepath.Join(fork, "tree"), filepath.Join(web, "tree"), treecmp.Options{SkipTime: isDir, SkipXattr: isDefault})
					})
				})
			})
		}
	})
}

// TestMergeCrash: the layer has all changes or none, and its content of before is kept.
func TestMergeCrash(t *testing.T) { testMergeCrash(t, onBtrfs()) }

func testMergeCrash(t *testing.T, kinds map[string]crashing) {
	eachCrash(t, kinds,
		func(h home) { h.forked(); h.put("fork", "one", "1"); h.put("fork", "two", "2") },
		func(h home) error {
			_, err := h.Merge(t.Context(), "fork", live.MergeOptions{})
			return err
		},
		func(h home, done bool) {
			require.NoError(h.t, h.Sweep(t.Context()))
			assert.Equal(h.t, h.get("web", "one") != "", h.get("web", "two") != "")
			if h.get("web", "one") == "" {
				assert.False(h.t, done)
				h.assertClean(1, "distro", "fork", "web")
				return
			}
			assert.Equal(h.t, []string{"before-merge-1"}, h.names("web"))
			assert.Equal(h.t, "1\n", h.get("web", "file"))
			h.assertBase("web", "distro")
			h.assertClean(3, "distro", "fork", "web")
		})
}
