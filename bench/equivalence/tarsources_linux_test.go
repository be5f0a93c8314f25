package equivalence

import (
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTars compares the results of the tools for the tars that others test their programs by. `make test` takes those
// that come with Go and with modules that bench requires, the long variant also the rest of testdata/corpus.
func TestTars(t *testing.T) {
	compareTars(t, func(f *finder) {
		root := strings.TrimSpace(string(command(t, "go", "env", "GOROOT")))
		require.NoError(t, f.tree("go", filepath.Join(root, "src/archive/tar/testdata")))
		for _, m := range modules(t) {
			require.NoError(t, f.tree(m.Path, m.Dir))
		}
		if !testfs.Long() {
			return
		}
		for _, file := range append(debianSources(t), npmPackages(t)...) {
			r, err := os.Open(file)
			require.NoError(t, err)
			require.NoError(t, f.stream(filepath.Base(file), r, 0))
			require.NoError(t, r.Close())
		}
	})
}

// lines returns the words of each line of a list.
func lines(t testing.TB, list string) [][]string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/corpus", list))
	require.NoError(t, err)
	var all [][]string
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(line, "#") {
			all = append(all, words)
		}
	}
	return all
}

// module is the go command's description of a module that it has downloaded and verified.
type module struct{ Path, Dir, Sum string }

// modules returns the Go modules in modules.txt.
func modules(t testing.TB) []module {
	t.Helper()
	var all []module
	for _, words := range lines(t, "modules.txt") {
		cmd := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", words[0])
		if len(words) > 1 {
			if !testfs.Long() {
				continue
			}
			cmd = exec.CommandContext(t.Context(), "go", "mod", "download", "-json", words[0]+"@"+words[1])
			cmd.Dir = t.TempDir() // no part of bench
		}
		out, err := cmd.Output()
		require.NoError(t, err, "%s: %s", words[0], out)
		var m module
		require.NoError(t, json.Unmarshal(out, &m))
		if len(words) > 1 {
			require.Equal(t, words[2], m.Sum, words[0])
		}
		all = append(all, m)
	}
	return all
}

// debianSources returns the tars of the Debian source packages in debian.txt, downloaded unless they are in the cache.
func debianSources(t testing.TB) []string {
	t.Helper()
	dir := filepath.Join(cacheDir(t), "sources")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	glob := func(pattern string) []string {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		require.NoError(t, err)
		return found
	}
	var names, missing []string
	for _, words := range lines(t, "debian.txt") {
		names = append(names, words[0])
		if len(glob(words[0]+"_*.dsc")) == 0 {
			missing = append(missing, words[0])
		}
	}
	if len(missing) > 0 {
		downloadSources(t, dir, missing)
	}
	var files []string
	for _, name := range names {
		require.NotEmpty(t, glob(name+"_*.dsc"), name)
		files = append(files, glob(name+"_*.tar.*[^c]")...) // not the signatures, .asc
	}
	return files
}

// downloadSources downloads source packages of Debian 12 into dir, from the mirror that this host has its packages from.
// They are those of the release, without later updates.
func downloadSources(t testing.TB, dir string, names []string) {
	t.Helper()
	tmp, err := os.MkdirTemp(dir, "download-")
	require.NoError(t, err)
	defer os.RemoveAll(tmp)
	mirror := ""
	for line := range strings.Lines(string(command(t, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"))) {
		if uri := strings.TrimSpace(line); strings.HasSuffix(uri, "/debian/") {
			mirror = uri
		}
	}
	require.NotEmpty(t, mirror, "apt has no mirror of Debian")
	list, lists := filepath.Join(tmp, "sources.list"), filepath.Join(tmp, "lists")
	require.NoError(t, os.WriteFile(list, []byte("deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "+mirror+" bookworm main\n"), 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(lists, "partial"), 0o755))
	apt := func(args ...string) {
		cmd := exec.CommandContext(t.Context(), "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::SourceList=" + list,
			"-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Dir::State::Lists=" + lists}, args...)...)
		cmd.Dir = tmp
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	apt("update")
	apt(append([]string{"source", "--download-only"}, names...)...)
	for _, pattern := range []string{"*_*.tar.*", "*_*.dsc"} { // a package whose .dsc is there is complete
		files, err := filepath.Glob(filepath.Join(tmp, pattern))
		require.NoError(t, err)
		for _, f := range files {
			require.NoError(t, os.Rename(f, filepath.Join(dir, filepath.Base(f))))
		}
	}
}

// npmPackages returns the files of the npm packages in npm.txt, downloaded unless they are in the cache.
func npmPackages(t testing.TB) []string {
	t.Helper()
	dir := filepath.Join(cacheDir(t), "npm")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	var files []string
	for _, words := range lines(t, "npm.txt") {
		file := filepath.Join(dir, strings.ReplaceAll(words[0], "@", "-")+".tgz")
		if _, err := os.Stat(file); err != nil {
			command(t, "npm", "pack", "--silent", "--pack-destination", dir, words[0])
		}
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		sum := sha512.Sum512(data)
		if assert.Equal(t, words[1], "sha512-"+base64.StdEncoding.EncodeToString(sum[:]), file) {
			files = append(files, file)
		}
	}
	return files
}
