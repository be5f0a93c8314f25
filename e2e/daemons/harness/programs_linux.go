package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
)

// Programs are the directories of the daemons' programs.
type Programs struct {
	// Built has containerd, ctr, its runc shim, runc, dockerd and docker-proxy of the modules in go.mod.
	Built string
	// Debian is the root of the unpacked packages of the distribution.
	Debian string
}

// ProgramsEnv names a directory laid out as scripts/daemons.sh path says, which also has bin/cowshed. Where it is set,
// as in the ZFS test machine, the tests need neither the source tree nor a Go toolchain.
const ProgramsEnv = "COWSHED_TEST_DAEMONS"

var findPrograms = sync.OnceValues(func() (Programs, error) {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		return programsIn(dir), nil
	}
	top, err := sourceTop()
	if err != nil {
		return Programs{}, err
	}
	cmd := exec.Command(filepath.Join(top, "scripts", "daemons.sh"), "path")
	out, err := cmd.Output()
	if err != nil {
		return Programs{}, fmt.Errorf("scripts/daemons.sh path: %w: %s", err, stderrOf(err))
	}
	return programsIn(strings.TrimSpace(string(out))), nil
})

func programsIn(dir string) Programs {
	return Programs{Built: filepath.Join(dir, "bin"), Debian: filepath.Join(dir, "debian")}
}

// FindPrograms returns where the daemons' programs are. The test is skipped where they have not been built.
func FindPrograms(t testing.TB) Programs {
	t.Helper()
	p, err := findPrograms()
	if err != nil {
		testfs.Skip(t, "needs the daemons that scripts/daemons.sh build makes: %v", err)
	}
	return p
}

// Busybox returns the path of a busybox that needs no libraries.
func (p Programs) Busybox() (string, error) {
	for _, name := range []string{"usr/bin/busybox", "bin/busybox"} {
		path := filepath.Join(p.Debian, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no busybox in %s", p.Debian)
}

// path is a PATH that has the given directories and then those of the system.
func path(dirs ...string) string {
	return "PATH=" + strings.Join(append(dirs, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"), ":")
}

// sourceTop returns the top of Cowshed's source tree, above the directory that the test runs in.
func sourceTop() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "scripts", "daemons.sh")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("the test does not run in Cowshed's source tree")
		}
	}
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}
