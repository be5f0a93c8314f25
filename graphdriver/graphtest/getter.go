//go:build linux

package graphtest

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

var getterTests = []Test{
	{"DiffGetter", diffGetter},
	{"DiffGetterStaysInside", diffGetterStaysInside},
}

// getter returns the driver as a DiffGetterDriver, or nil if it does not declare to be one.
func (c Config) getter(t testing.TB, d graphdriver.Driver) graphdriver.DiffGetterDriver {
	t.Helper()
	getter, ok := d.(graphdriver.DiffGetterDriver)
	require.Equal(t, c.DiffGetter, ok, "the driver is a DiffGetterDriver exactly if it declares so")
	return getter
}

func openFiles(t testing.TB, d graphdriver.DiffGetterDriver, id string) graphdriver.FileGetCloser {
	t.Helper()
	files, err := d.DiffGetter(id)
	require.NoError(t, err)
	return files
}

// diffGetter: each file in a diff can be had by its name there.
func diffGetter(t testing.TB, c Config) {
	l := c.open(t)
	d := c.getter(t, l.Driver)
	if d == nil {
		return
	}
	base := l.filled("", someContent)
	id := l.filled(base, func(w tree) {
		w = w.at(editTime)
		w.file("a file", "changed")
		w.file("large", string(randomBytes(1, 3<<20)))
		w.mkdir("odd")
		for _, name := range oddNames {
			w.file("odd/"+name, "in "+name)
		}
		w.symlink("a file", "link")
	})
	want := l.scan(id)

	subtest(t, "content", func(t testing.TB) {
		testfs.CheckLeaks(t)
		files := openFiles(t, d, id)
		regularFiles := 0
		for _, h := range headers(t, l.diff(id, "")) {
			if want[h.Name].mode&unix.S_IFMT != unix.S_IFREG {
				continue
			}
			regularFiles++
			got, err := readFile(files, h.Name)
			require.NoError(t, err, "%q", h.Name)
			assert.Len(t, got, int(want[h.Name].size), "%q", h.Name)
			for _, form := range []string{"./" + h.Name, "/" + h.Name} {
				same, err := readFile(files, form)
				require.NoError(t, err, "%q", form)
				assert.True(t, bytes.Equal(got, same), "content of %q", form)
			}
		}
		assert.Greater(t, regularFiles, len(oddNames))
		content, err := readFile(files, "large")
		require.NoError(t, err)
		assert.True(t, bytes.Equal(randomBytes(1, 3<<20), content), "content of a large file")
		require.NoError(t, files.Close())
		require.NoError(t, files.Close(), "closing twice does nothing")
	})
	subtest(t, "names without a file", func(t testing.TB) {
		testfs.CheckLeaks(t)
		files := openFiles(t, d, id)
		for _, name := range []string{"absent", "etc/absent", "absent/absent", "a file/x"} {
			_, err := files.Get(name)
			assert.Error(t, err, name)
			if name != "a file/x" {
				assert.ErrorIs(t, err, os.ErrNotExist, name)
			}
		}
		for _, name := range []string{"etc", "", ".", "/", ".."} {
			_, err := readFile(files, name)
			assert.Error(t, err, "%q", name)
		}
		require.NoError(t, files.Close())
	})
	subtest(t, "several at once", func(t testing.TB) {
		testfs.CheckLeaks(t)
		one, two := openFiles(t, d, id), openFiles(t, d, id)
		early, err := one.Get("a file")
		require.NoError(t, err)
		late, err := two.Get("a file")
		require.NoError(t, err)
		require.NoError(t, one.Close())
		for _, r := range []io.ReadCloser{early, late} {
			content, err := io.ReadAll(r)
			require.NoError(t, err, "a reader got before Close stays usable")
			assert.Equal(t, "changed", string(content))
			require.NoError(t, r.Close())
		}
		require.NoError(t, two.Close())
	})
}

func readFile(files graphdriver.FileGetCloser, name string) ([]byte, error) {
	r, err := files.Get(name)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(r)
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	return content, r.Close()
}

// diffGetterStaysInside: no name and no symbolic link leads out of the layer, and nothing that is not a
// regular file is opened: a fifo would block for ever, a device may act.
func diffGetterStaysInside(t testing.TB, c Config) {
	l := c.open(t)
	d := c.getter(t, l.Driver)
	if d == nil {
		return
	}
	outside := t.TempDir()
	const secret = "the host's secret"
	require.NoError(t, os.WriteFile(filepath.Join(outside, "secret"), []byte(secret), 0o644))
	up := strings.Repeat("../", 30)
	id := l.filled("", func(w tree) {
		w.mkdir("d")
		w.symlink(outside, "absolute")
		w.symlink(up+outside, "upward")
		w.symlink(outside+"/secret", "file")
		w.symlink(up+outside+"/secret", "upward-file")
		w.symlink("/proc/self/root", "magic")
		w.mknod("fifo", unix.S_IFIFO|0o644, 0, 0)
		w.mknod("null", unix.S_IFCHR|0o666, 1, 3)
		w.mknod("socket", unix.S_IFSOCK|0o644, 0, 0)
	})
	files := openFiles(t, d, id)
	for _, name := range []string{
		outside + "/secret", up + outside + "/secret", "d/" + up + outside + "/secret", "absolute/secret", "upward/secret", "file", "upward-file",
		"magic" + outside + "/secret", "d/../absolute/secret", "fifo", "null", "socket", "d\x00",
	} {
		done := make(chan error, 1)
		go func() {
			content, err := readFile(files, name)
			assert.NotEqual(t, secret, string(content), "%q leads out of the layer", name)
			done <- err
		}()
		select {
		case err := <-done:
			assert.Error(t, err, "%q", name)
		case <-time.After(20 * time.Second):
			assert.Fail(t, "blocked", "%q", name)
		}
	}
	require.NoError(t, files.Close())
}
