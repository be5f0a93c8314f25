package equivalence

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cowshed/cowshed/internal/testfs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The packages of the corpus: a base, and packages installed on it later. perl-base has hard links, passwd and
// base-files setuid and setgid files, tzdata many small files.
var (
	basePackages = []string{
		"base-files", "base-passwd", "libc-bin", "dash", "bash", "coreutils", "perl-base", "mawk", "passwd",
		"tzdata", "iputils-ping", "busybox-static",
	}
	laterPackages = []string{"gawk", "perl", "git"}
)

// pingCapability is cap_net_raw=ep in revision 2 (struct vfs_cap_data of linux/capability.h), which the package
// iputils-ping has setcap give to ping.
const pingCapability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// cacheDir returns the directory of kept downloads.
func cacheDir(t testing.TB) string {
	t.Helper()
	cache := os.Getenv("COWSHED_CACHE")
	if cache == "" {
		cache = "/var/cache/cowshed"
	}
	cache = filepath.Join(cache, "corpus")
	require.NoError(t, os.MkdirAll(cache, 0o755))
	return cache
}

// packages returns the files of Debian packages by name, downloaded unless they are in the cache.
func packages(t testing.TB, names ...string) []string {
	t.Helper()
	for _, tool := range []string{"apt-get", "dpkg-deb", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			testfs.Skip(t, "the corpus is made of Debian packages: %v", err)
		}
	}
	cache := cacheDir(t)
	find := func(name string) string {
		found, err := filepath.Glob(filepath.Join(cache, name+"_*.deb"))
		require.NoError(t, err)
		if len(found) == 0 {
			return ""
		}
		return found[len(found)-1]
	}
	var missing []string
	for _, name := range names {
		if find(name) == "" {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		download(t, cache, missing)
	}
	files := make([]string, 0, len(names))
	for _, name := range names {
		require.NotEmpty(t, find(name), name)
		files = append(files, find(name))
	}
	return files
}

// download downloads packages into dir, with the system's lists of them, or else with new lists that are kept there.
func download(t testing.TB, dir string, names []string) {
	t.Helper()
	// Into a directory of its own first: files in the cache are complete.
	tmp, err := os.MkdirTemp(dir, "download-")
	require.NoError(t, err)
	defer os.RemoveAll(tmp)
	lists := filepath.Join(dir, "lists")
	apt := func(args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root"}, args...)...)
		cmd.Dir = tmp
		return cmd.CombinedOutput()
	}
	out, err := apt(append([]string{"download"}, names...)...)
	if err != nil {
		own := "Dir::State::Lists=" + lists
		require.NoError(t, os.MkdirAll(filepath.Join(lists, "partial"), 0o755))
		if out, err = apt("-o", own, "update"); err == nil {
			out, err = apt(append([]string{"-o", own, "download"}, names...)...)
		}
	}
	if err != nil {
		testfs.Skip(t, "cannot download packages: %v: %s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	require.NoError(t, err)
	for _, f := range files {
		require.NoError(t, os.Rename(f, filepath.Join(dir, filepath.Base(f))))
	}
}

// command runs a program and returns its output.
func command(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %v: %s", name, args, stderr.String())
	return out
}

// tarOfPackage returns the tar in a package, as dpkg-deb made it.
func tarOfPackage(t testing.TB, file string) []byte {
	t.Helper()
	return command(t, "dpkg-deb", "--fsys-tarfile", file)
}

// install unpacks packages with GNU tar, as dpkg-deb does, each file replacing an existing one.
func install(t testing.TB, dir string, files ...string) {
	t.Helper()
	for _, file := range files {
		cmd := exec.CommandContext(t.Context(), "tar", "-x", "-p", "--numeric-owner", "--keep-directory-symlink", "-C", dir, "-f", "-")
		cmd.Stdin = bytes.NewReader(tarOfPackage(t, file))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "unpack %s: %s", file, out)
	}
}

// uninstall removes the files of a package, and the directories that are empty then.
func uninstall(t testing.TB, dir, file string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "tar", "-t", "-f", "-")
	cmd.Stdin = bytes.NewReader(tarOfPackage(t, file))
	out, err := cmd.Output()
	require.NoError(t, err)
	names := strings.Fields(string(out))
	for i := len(names) - 1; i >= 0; i-- {
		p := filepath.Join(dir, names[i])
		if strings.HasSuffix(names[i], "/") {
			_ = unix.Rmdir(p) // others may still need it
			continue
		}
		require.NoError(t, os.Remove(p))
	}
}

// farm makes n hard links to a file, as `busybox --install` does, in place of those that are there.
func farm(t testing.TB, dir, target string, n int) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for i := range n {
		p := filepath.Join(dir, fmt.Sprintf("applet%03d", i))
		require.NoError(t, os.RemoveAll(p))
		require.NoError(t, os.Link(target, p))
	}
}

// debian makes three trees on a btrfs, each a clone of the one before it: a base system; the same with
// installations, replacements and a removal; and that slimmed down.
func debian(t testing.TB, v *volumes) []string {
	t.Helper()
	base, later := packages(t, basePackages...), packages(t, laterPackages...)
	past := time.Unix(1_600_000_000, 0)
	must := func(err error) {
		t.Helper()
		require.NoError(t, err)
	}
	touch := func(p string) { must(os.Chtimes(p, past, past)) }
	put := func(p, data string, mode uint32) {
		must(os.WriteFile(p, []byte(data), 0o600))
		must(unix.Chmod(p, mode))
		touch(p)
	}

	first := v.make("debian-1")
	for _, name := range []string{"bin", "sbin", "lib"} { // merged /usr, as in a Debian image
		must(os.MkdirAll(filepath.Join(first, "usr", name), 0o755))
		must(os.Symlink("usr/"+name, filepath.Join(first, name)))
	}
	install(t, first, base...)
	in := func(p string) string { return filepath.Join(first, p) }
	must(unix.Setxattr(in("bin/ping"), "security.capability", []byte(pingCapability), 0))
	farm(t, in("usr/lib/busybox"), in("bin/busybox"), 250)
	must(os.MkdirAll(in("dev"), 0o755))
	for i, name := range []string{"null", "zero", "full", "random"} {
		must(unix.Mknod(in("dev/"+name), unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(3+2*i)))))
		must(unix.Chmod(in("dev/"+name), 0o666))
	}
	must(unix.Mknod(in("dev/loop0"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 300))))
	must(unix.Mkfifo(in("run/initctl"), 0o600))
	must(os.MkdirAll(in("home/user/päth with spaces/"+strings.Repeat("long", 30)), 0o700))
	put(in("home/user/.profile"), "umask 022\n", 0o644)
	put(in("home/user/päth with spaces/"+strings.Repeat("long", 30)+"/"+strings.Repeat("name", 50)), "x", 0o444)
	must(os.Lchown(in("home/user"), 1000, 1000))
	must(os.Lchown(in("home/user/.profile"), 1000, 70_000_000)) // needs an extended header
	put(in("etc/shadow"), "root:*:19000:0:99999:7:::\n", 0o640)
	must(os.Lchown(in("etc/shadow"), 0, 42))
	must(unix.Setxattr(in("home/user/.profile"), "user.comment", []byte("from\x00skel"), 0))
	must(unix.Setxattr(in("etc"), "trusted.note", []byte("kept"), 0))
	put(in("var/log/lastlog"), "", 0o664)
	must(os.Truncate(in("var/log/lastlog"), 3<<20))

	second := v.clone("debian-2", first)
	in = func(p string) string { return filepath.Join(second, p) }
	uninstall(t, second, base[indexOf(basePackages, "mawk")])
	install(t, second, later...)
	must(os.Symlink("gawk", in("usr/bin/awk")))
	// Upgrades: new inodes under the same names, hard links and capabilities made anew.
	install(t, second, base[indexOf(basePackages, "busybox-static")], base[indexOf(basePackages, "iputils-ping")])
	must(unix.Setxattr(in("bin/ping"), "security.capability", []byte(pingCapability), 0))
	touch(in("bin/busybox"))
	farm(t, in("usr/lib/busybox"), in("bin/busybox"), 300)
	put(in("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n", 0o644)
	f, err := os.OpenFile(in("home/user/.profile"), os.O_APPEND|os.O_WRONLY, 0)
	must(err)
	_, err = f.WriteString("export EDITOR=vi\n")
	must(err)
	must(f.Close())

	third := v.clone("debian-3", second)
	in = func(p string) string { return filepath.Join(third, p) }
	for _, p := range []string{"usr/share/doc", "usr/share/man", "usr/share/zoneinfo/right", "usr/share/zoneinfo/America"} {
		must(os.RemoveAll(in(p)))
	}
	must(os.Symlink("Europe", in("usr/share/zoneinfo/America"))) // directory to symbolic link
	must(os.RemoveAll(in("usr/share/base-files")))
	put(in("usr/share/base-files"), "now a file", 0o644) // directory to file
	must(os.Remove(in("usr/bin/awk")))
	must(os.Mkdir(in("usr/bin/awk"), 0o755)) // symbolic link to directory
	put(in("usr/bin/awk/awk"), "#!/bin/sh\n", 0o755)
	must(unix.Chmod(in("usr/bin/passwd"), 0o755))                     // no setuid any more
	must(unix.Removexattr(in("usr/bin/ping"), "security.capability")) // nor this
	must(os.Lchown(in("home/user/.profile"), 1001, 1001))             // nothing but the owner
	must(os.Remove(in("dev/zero")))
	must(unix.Mknod(in("dev/zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 7))))
	return []string{first, second, third}
}

func indexOf(list []string, s string) int {
	for i, e := range list {
		if e == s {
			return i
		}
	}
	panic(s + " is not in the list")
}
