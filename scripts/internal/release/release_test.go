package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sassoftware/go-rpmutils"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tree is the top of the tree.
const tree = "../../.."

const maintainer = "Jo Doe <jo@example.org>"

// packaged are files that packages hold, by their places on Debian.
var packaged = []string{
	"/etc/cowshed/config.toml",
	"/usr/bin/cowshed",
	"/usr/lib/systemd/system/cowshed.service",
	"/usr/lib/systemd/system/cowshed.socket",
	"/usr/share/bash-completion/completions/cowshed",
	"/usr/share/doc/cowshed/CHANGELOG.md",
	"/usr/share/doc/cowshed/config.toml",
	"/usr/share/doc/cowshed/copyright",
	"/usr/share/fish/vendor_completions.d/cowshed.fish",
	"/usr/share/man/man8/cowshed.8.gz",
	"/usr/share/man/man8/cowshed-serve.8.gz",
	"/usr/share/zsh/vendor-completions/_cowshed",
}

// TestRelease builds the commit that is checked out twice, and looks at the files: for this architecture, with
// one cache; in the long variant for all of them, the second time with a cache of its own.
func TestRelease(t *testing.T) {
	arches, sharedCache := []string{runtime.GOARCH}, true
	if os.Getenv("COWSHED_TEST_LONG") != "" {
		arches, sharedCache = []string{"amd64", "arm64"}, false
	}
	work := t.TempDir()
	commit, err := checkedOut(t.Context(), tree)
	require.NoError(t, err)
	first := build{tree: tree, commit: commit, maintainer: maintainer, dir: filepath.Join(work, "one"), arches: arches}
	dist, err := buildTwice(t.Context(), first, filepath.Join(work, "the-other", "deeper"), sharedCache)
	require.NoError(t, err)

	date, err := commitDate(t.Context(), filepath.Join(work, "one", "source"))
	require.NoError(t, err)
	names, err := namesIn(dist)
	require.NoError(t, err)
	assert.Len(t, names, 4*len(arches)+1, "%v", names)
	text(t, dist, "sha256sum", "--check", "--strict", sumsFile)
	for _, arch := range arches {
		t.Run(arch, func(t *testing.T) {
			debFiles := filesOfDeb(t, only(t, dist, "cowshed_*_"+arch+".deb"), arch, date)
			for _, file := range packaged {
				assert.Contains(t, debFiles, file)
			}
			var inPlace []string
			for _, file := range filesOfRPM(t, only(t, dist, "cowshed-*."+map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]+".rpm")) {
				inPlace = append(inPlace, debPlace(file))
			}
			assert.ElementsMatch(t, debFiles, inPlace, "the packages hold the same files")
			inTarball := filesOfTarball(t, only(t, dist, "cowshed-*-linux-"+arch+".tar.gz"), date)
			assert.Len(t, inTarball, len(debFiles)-1, "the archive has no /etc")
			checkBill(t, only(t, dist, "cowshed-*-linux-"+arch+".spdx.json"))
		})
	}
	t.Run("program", func(t *testing.T) { checkProgram(t, only(t, dist, "cowshed_*_"+runtime.GOARCH+".deb"), commit, date) })
	t.Run("install", func(t *testing.T) { checkInstall(t, filepath.Join(work, "one", "source")) })
}

// only is the one file of a directory that the pattern names.
func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	require.Len(t, found, 1, pattern)
	return found[0]
}

// text runs a command in a directory, and returns its output.
func text(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	out, err := output(t.Context(), dir, nil, name, args...)
	require.NoError(t, err)
	return out
}

// filesOfDeb lists the files of a package for Debian, and checks its metadata.
func filesOfDeb(t *testing.T, file, arch string, date time.Time) []string {
	for field, want := range map[string]string{"Package": "cowshed", "Architecture": arch, "Section": "admin", "Recommends": "btrfs-progs", "Maintainer": maintainer} {
		assert.Equal(t, want, text(t, "", "dpkg-deb", "--field", file, field))
	}
	version := text(t, "", "dpkg-deb", "--field", file, "Version")
	text(t, "", "dpkg", "--validate-version", version)
	assert.Equal(t, fmt.Sprintf("cowshed_%s_%s.deb", version, arch), filepath.Base(file))

	control := t.TempDir()
	text(t, "", "dpkg-deb", "--control", file, control)
	conffiles, err := os.ReadFile(filepath.Join(control, "conffiles"))
	require.NoError(t, err)
	assert.Equal(t, "/etc/cowshed/config.toml", strings.TrimSpace(string(conffiles)))
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		text(t, "", "sh", "-n", filepath.Join(control, script))
		info, err := os.Stat(filepath.Join(control, script))
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o755), info.Mode().Perm(), script)
	}

	data := exec.Command("dpkg-deb", "--fsys-tarfile", file)
	content, err := data.Output()
	require.NoError(t, err)
	var paths []string
	for _, header := range headers(t, date, bytes.NewReader(content)) {
		assert.Equal(t, "root", header.Uname, header.Name)
		if header.Typeflag == tar.TypeReg {
			path := strings.TrimPrefix(header.Name, ".")
			mode := int64(0o644)
			if path == "/usr/bin/cowshed" {
				mode = 0o755
			}
			assert.Equal(t, mode, header.Mode, path)
			paths = append(paths, path)
		}
	}
	return paths
}

// headers lists the entries of a tar, all of which have the date of the commit.
func headers(t *testing.T, date time.Time, r io.Reader) []*tar.Header {
	var all []*tar.Header
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		assert.True(t, date.Equal(header.ModTime), "%s: %s", header.Name, header.ModTime)
		all = append(all, header)
	}
}

func filesOfRPM(t *testing.T, file string) []string {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	rpm, err := rpmutils.ReadRpm(f)
	require.NoError(t, err)
	infos, err := rpm.Header.GetFiles()
	require.NoError(t, err)
	var paths []string
	for _, info := range infos {
		if info.Mode()&0o170000 == 0o100000 {
			paths = append(paths, info.Name())
		}
	}
	packager, err := rpm.Header.GetString(rpmutils.PACKAGER)
	require.NoError(t, err)
	assert.Equal(t, maintainer, packager)
	for _, tag := range []int{rpmutils.POSTIN, rpmutils.PREUN, rpmutils.POSTUN} {
		script, err := rpm.Header.GetString(tag)
		require.NoError(t, err)
		assert.NotEmpty(t, script)
	}
	return paths
}

func filesOfTarball(t *testing.T, file string, date time.Time) []string {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	content, err := gzip.NewReader(f)
	require.NoError(t, err)
	var paths []string
	top := strings.TrimSuffix(filepath.Base(file), ".tar.gz") + "/"
	for _, header := range headers(t, date, content) {
		assert.True(t, strings.HasPrefix(header.Name, top), header.Name)
		if header.Typeflag == tar.TypeReg {
			paths = append(paths, strings.TrimPrefix(header.Name, top))
		}
	}
	assert.Contains(t, paths, "bin/cowshed")
	return paths
}

// checkBill reads a bill as others do.
func checkBill(t *testing.T, file string) {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	bill, err := spdxjson.Read(f)
	require.NoError(t, err)
	assert.Equal(t, spdx.Version, bill.SPDXVersion)
	ids := make(map[spdx.ElementID]bool)
	var names []string
	for _, p := range bill.Packages {
		assert.False(t, ids[p.PackageSPDXIdentifier], "two packages have the id %s", p.PackageSPDXIdentifier)
		ids[p.PackageSPDXIdentifier] = true
		assert.NotEmpty(t, p.PackageVersion, p.PackageName)
		names = append(names, p.PackageName)
	}
	for _, name := range []string{"github.com/cowshed/cowshed", "stdlib", "github.com/spf13/cobra", "github.com/containerd/containerd/v2"} {
		assert.Contains(t, names, name)
	}
	assert.NotContains(t, names, "github.com/goreleaser/nfpm/v2", "what makes packages is not in the program")
	assert.Len(t, bill.Relationships, len(bill.Packages))
}

// checkProgram unpacks a package, and runs the program in it.
func checkProgram(t *testing.T, file, commit string, date time.Time) {
	dir := t.TempDir()
	text(t, "", "dpkg-deb", "--extract", file, dir)
	program := filepath.Join(dir, "usr/bin/cowshed")

	binary, err := elf.Open(program)
	require.NoError(t, err)
	defer binary.Close()
	for _, segment := range binary.Progs {
		assert.NotEqual(t, elf.PT_INTERP, segment.Type, "it is static")
	}

	var version struct{ Version, Commit, Date string }
	require.NoError(t, json.Unmarshal([]byte(text(t, dir, "usr/bin/cowshed", "version", "--json")), &version))
	assert.Equal(t, commit, version.Commit)
	assert.Equal(t, date.Format(time.RFC3339), version.Date)
	assert.Equal(t, packageVersion(version.Version)+"-1", text(t, "", "dpkg-deb", "--field", file, "Version"))

	unit, err := os.ReadFile(filepath.Join(dir, "usr/lib/systemd/system/cowshed.service"))
	require.NoError(t, err)
	assert.Contains(t, string(unit), "\nExecStart=/usr/bin/cowshed serve\n")
}

// checkInstall installs and uninstalls the program that was built in a tree.
func checkInstall(t *testing.T, source string) {
	dir := t.TempDir()
	text(t, source, "make", "install", "DESTDIR="+dir)
	config := filepath.Join(dir, "etc/cowshed/config.toml")
	require.NoError(t, os.WriteFile(config, []byte("# mine\n"), 0o644))
	text(t, source, "make", "install", "DESTDIR="+dir)
	kept, err := os.ReadFile(config)
	require.NoError(t, err)
	assert.Equal(t, "# mine\n", string(kept), "a configuration that is there stays")
	unit, err := os.ReadFile(filepath.Join(dir, "usr/local/lib/systemd/system/cowshed.service"))
	require.NoError(t, err)
	assert.Contains(t, string(unit), "\nExecStart=/usr/local/bin/cowshed serve\n")

	text(t, source, "make", "uninstall", "DESTDIR="+dir)
	assert.Equal(t, []string{"etc/cowshed/config.toml"}, regularFiles(t, dir), "one that was changed stays")
	require.NoError(t, os.Remove(config))
	text(t, source, "make", "install", "DESTDIR="+dir)
	text(t, source, "make", "uninstall", "DESTDIR="+dir)
	assert.Empty(t, regularFiles(t, dir))
}

func regularFiles(t *testing.T, dir string) []string {
	var found []string
	require.NoError(t, fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			found = append(found, path)
		}
		return err
	}))
	return found
}

func TestPackageVersion(t *testing.T) {
	// In the order in which packages replace each other.
	versions := []struct{ module, want string }{
		{"v0.0.0-20261129152238-5b24963d33f0", "0.0.0~20261129152238.5b24963d33f0"},
		{"v0.0.0-20261130000000-0000000000ff", "0.0.0~20261130000000.0000000000ff"},
		{"v0.1.0-rc.1", "0.1.0~rc.1"},
		{"v0.1.0-rc.1.0.20261201000000-0000000000ff", "0.1.0~rc.1.0.20261201000000.0000000000ff"},
		{"v0.1.0-rc.2", "0.1.0~rc.2"},
		{"v0.1.0", "0.1.0"},
		{"v0.1.1-0.20261202000000-0000000000ff", "0.1.1~0.20261202000000.0000000000ff"},
		{"v0.1.1", "0.1.1"},
		{"v0.10.0", "0.10.0"},
		{"v1.0.0", "1.0.0"},
	}
	for i, version := range versions {
		assert.Equal(t, version.want, packageVersion(version.module))
		if i > 0 {
			before := packageVersion(versions[i-1].module)
			text(t, "", "dpkg", "--compare-versions", before+"-1", "lt", version.want+"-1")
			assert.Negative(t, rpmutils.Vercmp(before, version.want), "%s before %s", before, version.want)
		}
	}
}

func TestMaintainer(t *testing.T) {
	for _, text := range []string{maintainer, "Zoë O'Łódź <zoe@lists.example.org>"} {
		require.NoError(t, checkMaintainer(text))
	}
	for _, text := range []string{"", "jo@example.org", "<jo@example.org>", "Jo Doe", "Jo Doe <jo.doe@localhost>", "Jo <jo@example.org>\nX: y", "Doe, Jo <jo@example.org>"} {
		require.ErrorContains(t, checkMaintainer(text), "MAINTAINER=", text)
	}
	require.ErrorContains(t, run(t.Context(), []string{"-tree", tree, "-out", t.TempDir()}), "MAINTAINER=")
}

func TestCompare(t *testing.T) {
	write := func(files map[string]string) string {
		dir := t.TempDir()
		for name, content := range files {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
		}
		return dir
	}
	one := write(map[string]string{"a": "1", "b": "2"})
	require.NoError(t, compare(one, write(map[string]string{"a": "1", "b": "2"})))
	require.ErrorContains(t, compare(one, write(map[string]string{"a": "1", "b": "3"})), "different bytes in b")
	require.ErrorContains(t, compare(one, write(map[string]string{"a": "1"})), "different files")
}

func TestEnvironment(t *testing.T) {
	for name, value := range map[string]string{"GOFLAGS": "-race", "VERSION": "9", "COWSHED_ROOT": "/mine", "GOCACHE": "/cache"} {
		t.Setenv(name, value)
	}
	env := build{}.environment("arm64", time.Unix(1, 0))
	for _, want := range []string{"GOFLAGS=-buildvcs=true", "GOARCH=arm64", "CGO_ENABLED=0", "SOURCE_DATE_EPOCH=1", "GOCACHE=/cache"} {
		assert.Contains(t, env, want)
	}
	assert.False(t, slices.ContainsFunc(env, func(variable string) bool {
		return strings.HasPrefix(variable, "VERSION=") || strings.HasPrefix(variable, "COWSHED_ROOT=")
	}))
	assert.Contains(t, build{cache: "/mine"}.environment("arm64", time.Unix(1, 0)), "GOCACHE=/mine")
}
