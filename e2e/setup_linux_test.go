package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/internal/setup"
	"github.com/cowshed/cowshed/internal/testfs"
)

// setUpDirEnv names the directory of the configurations that TestSetUpVictim sets up.
const setUpDirEnv = "COWSHED_TEST_SETUP_DIR"

// setUpOperation is something that a set-up does to configurations.
type setUpOperation struct {
	name    string
	prepare func(t *testing.T, h setup.Host) // the steps before
	run     func(h setup.Host) error
}

func setUpOperations() []setUpOperation {
	return []setUpOperation{
		{"apply", func(*testing.T, setup.Host) {}, applySetUp},
		{"undo", func(t *testing.T, h setup.Host) { require.NoError(t, applySetUp(h)) }, undoSetUp},
		{"apply again", func(t *testing.T, h setup.Host) {
			other := h
			other.Root = "/another"
			require.NoError(t, applySetUp(other))
		}, applySetUp},
	}
}

// applySetUp changes two files and makes a directory.
func applySetUp(h setup.Host) error {
	p, err := setup.New(setup.Containerd, h)
	if err != nil {
		return err
	}
	return p.Apply(context.Background())
}

func undoSetUp(h setup.Host) error {
	p, err := setup.Undo(setup.Containerd, h)
	if err != nil {
		return err
	}
	return p.Apply(context.Background())
}

func setUpHost(dir string) setup.Host {
	return setup.Host{Socket: "/run/c.sock", Root: "/volumes", ContainerdAddress: "/run/containerd.sock", ContainerdConfig: filepath.Join(dir, "etc", "config.toml")}
}

const setUpBefore = "# mine\nversion = 2\nroot = '/x' # here\n\n[plugins]\n"

// prepareSetUp writes the configuration that operations start from.
func prepareSetUp(t *testing.T, op setUpOperation) (dir string, h setup.Host) {
	t.Helper()
	dir = t.TempDir()
	h = setUpHost(dir)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "etc"), 0o750))
	require.NoError(t, os.WriteFile(h.ContainerdConfig, []byte(setUpBefore), 0o640))
	op.prepare(t, h)
	return dir, h
}

// filesIn lists files with modes and contents, and directories.
func filesIn(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		if !entry.IsDir() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(content)
		}
		found[strings.TrimPrefix(path, dir)] = text
		return nil
	}))
	return found
}

func setUpVictim(t *testing.T, dir string, op setUpOperation) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSetUpVictim$", "-test.count=1")
	cmd.Env = append(os.Environ(), setUpDirEnv+"="+dir, victimOperationEnv+"="+op.name)
	return cmd
}

// TestSetUpVictim is not a test: it is the process that TestSetUpKilled kills.
func TestSetUpVictim(t *testing.T) {
	dir := os.Getenv(setUpDirEnv)
	if dir == "" {
		return
	}
	for _, op := range setUpOperations() {
		if op.name == os.Getenv(victimOperationEnv) {
			markStep()
			err := op.run(setUpHost(dir))
			markStep()
			if err != nil {
				fmt.Println("failed:", err)
			}
		}
	}
}

// TestSetUpKilled kills a set-up before one system call after another. The rest can then be undone, and applied, and
// each file always has its former or its new content.
func TestSetUpKilled(t *testing.T) {
	t.Parallel()
	none := setUpOperation{prepare: func(*testing.T, setup.Host) {}}
	emptyDir, _ := prepareSetUp(t, none)
	untouched := filesIn(t, emptyDir)
	appliedDir, appliedHost := prepareSetUp(t, none)
	require.NoError(t, applySetUp(appliedHost))
	applied := filesIn(t, appliedDir)
	for _, op := range setUpOperations() {
		t.Run(op.name, func(t *testing.T) {
			stride := 3
			if testfs.Long() {
				stride = 1
			}
			for step := 1; ; step += stride {
				dir, h := prepareSetUp(t, op)
				before := filesIn(t, dir)
				_, killed, err := killAt(setUpVictim(t, dir, op), step)
				require.NoError(t, err)
				after := filesIn(t, dir)
				require.Contains(t, after, "/etc/config.toml")
				for file, content := range after {
					if !strings.HasSuffix(file, ".toml") {
						continue
					}
					content = strings.ReplaceAll(content, dir, appliedDir)
					assert.Contains(t, []string{strings.ReplaceAll(before[file], dir, appliedDir), untouched[file], applied[file]}, content, "%s, killed at %d", file, step)
				}
				if step%2 == 0 {
					require.NoError(t, applySetUp(h), "killed at %d", step)
					again, err := setup.New(setup.Containerd, h)
					require.NoError(t, err)
					require.Empty(t, again.Changes)
				}
				require.NoError(t, undoSetUp(h), "killed at %d", step)
				left := filesIn(t, dir)
				if _, made := left["/etc/conf.d"]; made {
					// There was no record yet, or no more.
					require.NoError(t, os.Remove(filepath.Join(dir, "etc", "conf.d")))
					delete(left, "/etc/conf.d")
				}
				require.Equal(t, untouched, left, "killed at %d", step)
				if !killed {
					require.Greater(t, step, 20)
					return
				}
			}
		})
	}
}
