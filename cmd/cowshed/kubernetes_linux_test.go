package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/testfs"
)

// kubernetesNode is the root of a node, with the programs of this machine, a filesystem for layers, and a systemctl that writes down its
// arguments.
type kubernetesNode struct {
	t               *testing.T
	root, files     string
	config, kubelet string
	command         []string // of the container that installs
	caps            string   // of that container, as setpriv wants them
	env             []string // of that container
}

// newKubernetesNode prepares a node and the container of packaging/kubernetes. The node's filesystem for layers is mounted at data,
// or is a tmpfs if that is empty.
func newKubernetesNode(t *testing.T, data string) *kubernetesNode {
	t.Helper()
	testfs.Root(t)
	n := &kubernetesNode{t: t, root: t.TempDir(), files: t.TempDir(), config: t.TempDir(), kubelet: t.TempDir()}
	for _, dir := range []string{"usr", "etc/containerd", "run", "tmp", "dev", "proc", "sys", "var/lib/cowshed"} {
		require.NoError(t, os.MkdirAll(filepath.Join(n.root, dir), 0o755))
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		require.NoError(t, os.Symlink("usr/"+link, filepath.Join(n.root, link)))
	}
	self, err := os.Executable()
	require.NoError(t, err)
	write(t, filepath.Join(n.root, "self"), "")
	for _, m := range [][2]string{{"/usr", "usr"}, {"/dev", "dev"}, {"/proc", "proc"}, {"/sys", "sys"}, {self, "self"}} {
		n.mount(m[0], m[1], "", unix.MS_BIND)
	}
	require.NoError(t, os.MkdirAll(n.path("/usr/local"), 0o755)) // which a small machine lacks
	n.mount("tmpfs", "usr/local", "tmpfs", 0)
	n.mount("tmpfs", "run", "tmpfs", 0)
	n.mount("tmpfs", "etc", "tmpfs", 0)
	if data != "" {
		n.mount(data, "var/lib/cowshed", "", unix.MS_BIND)
	} else {
		n.mount("tmpfs", "var/lib/cowshed", "tmpfs", 0)
	}
	require.NoError(t, os.MkdirAll(n.path("/etc/containerd"), 0o755))
	require.NoError(t, os.Mkdir(n.path("/usr/local/bin"), 0o755))
	write(t, filepath.Join(n.root, "etc/containerd/config.toml"), "version = 3\n")
	n.systemctl("")

	n.script(filepath.Join(n.files, "cowshed"), `export `+asProgramEnv+`=1; exec /self "$@"`)
	for from, name := range map[string]string{"kubernetes/node.sh": "node.sh", "cowshed.service": "cowshed.service", "cowshed.socket": "cowshed.socket"} {
		text, err := os.ReadFile("../../packaging/" + from)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(n.files, name), text, 0o755))
	}
	n.readManifest()
	return n
}

// readManifest takes the configuration, the command and the capabilities from the manifest.
func (n *kubernetesNode) readManifest() {
	n.t.Helper()
	manifest, err := os.ReadFile("../../packaging/kubernetes/cowshed.yaml")
	require.NoError(n.t, err)
	_, text, ok := strings.Cut(string(manifest), "\n  config.toml: |\n")
	require.True(n.t, ok)
	text, _, _ = strings.Cut(text, "---")
	write(n.t, filepath.Join(n.config, "config.toml"), regexp.MustCompile(`(?m)^    `).ReplaceAllString(text, ""))
	list := func(key string) []string {
		found := regexp.MustCompile(key + `: \[(.*)\]`).FindSubmatch(manifest)
		require.NotNil(n.t, found, key)
		return strings.Split(string(found[1]), ", ")
	}
	n.command = list("command")
	require.Equal(n.t, []string{"/opt/cowshed/node.sh", "install", "/host"}, n.command)
	n.caps = "-all"
	for _, name := range list("add") {
		n.caps += ",+" + strings.ToLower(name)
	}
}

func (n *kubernetesNode) path(path string) string { return filepath.Join(n.root, path) }

func (n *kubernetesNode) mount(from, to, fstype string, flags uintptr) {
	n.t.Helper()
	require.NoError(n.t, unix.Mount(from, n.path(to), fstype, flags, ""), "mount %s on %s", from, to)
	n.t.Cleanup(func() { require.NoError(n.t, unix.Unmount(n.path(to), 0)) })
}

func (n *kubernetesNode) script(file, text string) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(file, []byte("#!/bin/sh\n"+text+"\n"), 0o755))
}

// systemctl makes a systemctl that writes down its arguments, after a condition that may end it.
func (n *kubernetesNode) systemctl(condition string) {
	n.t.Helper()
	n.script(n.path("/usr/local/bin/systemctl"), condition+"\n"+`echo "$*" >>/etc/systemctl.log`)
}

// install runs the container's command with the container's rights.
func (n *kubernetesNode) install() (output string, err error) {
	n.t.Helper()
	cmd := exec.Command("setpriv", "--inh-caps=-all", "--bounding-set="+n.caps, filepath.Join(n.files, "node.sh"), n.command[1], n.root)
	cmd.Env = append(append(os.Environ(), "COWSHED_FILES="+n.files, "COWSHED_CONFIG="+n.config, "COWSHED_KUBELET="+n.kubelet), n.env...)
	return outputOf(n.t, cmd)
}

// outputOf runs a command, and returns all that it says.
func outputOf(t testing.TB, cmd *exec.Cmd) (output string, err error) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = testfs.Run(t, cmd)
	return out.String(), err
}

// tree is the content of the files of the node that installing may change.
func (n *kubernetesNode) tree() map[string]string {
	n.t.Helper()
	found := make(map[string]string)
	for _, top := range []string{"/etc", "/usr/local"} {
		require.NoError(n.t, filepath.WalkDir(n.path(top), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || entry.Name() == "systemctl.log" {
				return err
			}
			text, err := os.ReadFile(path)
			found[strings.TrimPrefix(path, n.root)] = string(text)
			return err
		}))
	}
	return found
}

// calls are the calls of systemctl since the last ones.
func (n *kubernetesNode) calls() string {
	n.t.Helper()
	text, err := os.ReadFile(n.path("/etc/systemctl.log"))
	require.NoError(n.t, err)
	require.NoError(n.t, os.Remove(n.path("/etc/systemctl.log")))
	return string(text)
}

// TestKubernetesNode: the container's command installs a daemon that starts, changes nothing the second time, and restarts the
// daemon for another configuration. The script that it leaves takes everything off again.
func TestKubernetesNode(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	before := n.tree()
	out, err := n.install()
	require.NoError(t, err, out)
	const (
		enabled   = "daemon-reload\nenable cowshed.socket cowshed.service\n"
		newSocket = enabled + "stop cowshed.socket cowshed.service\nstart cowshed.socket\nrestart cowshed.service\n"
	)
	assert.Equal(t, newSocket, n.calls())
	installed := n.tree()
	for _, name := range []string{
		"/etc/cowshed/config.toml", "/etc/systemd/system/cowshed.service", "/etc/systemd/system/cowshed.socket", "/usr/local/bin/cowshed",
		"/etc/containerd/conf.d/cowshed.toml", "/etc/containerd/conf.d/cowshed-kubernetes.toml", "/usr/local/lib/cowshed/node.sh",
	} {
		assert.Contains(t, installed, name)
	}
	assert.Contains(t, installed["/etc/systemd/system/cowshed.service"], "ExecStart=/usr/local/bin/cowshed serve")
	n.serves()

	out, err = n.install()
	require.NoError(t, err, out)
	assert.Equal(t, enabled+"start cowshed.socket cowshed.service\n", n.calls())
	assert.Equal(t, installed, n.tree())

	write(t, filepath.Join(n.config, "config.toml"), "default_limit = \"30G\"\n")
	out, err = n.install()
	require.NoError(t, err, out)
	assert.Equal(t, enabled+"is-active --quiet cowshed.socket\nrestart cowshed.service\n", n.calls(), "the socket stays")
	assert.Equal(t, "default_limit = \"30G\"\n", n.tree()["/etc/cowshed/config.toml"])

	// Another socket is made in the second attempt.
	write(t, filepath.Join(n.files, "cowshed.socket"), installed["/etc/systemd/system/cowshed.socket"]+"# another\n")
	n.systemctl("exit 1")
	out, err = n.install()
	require.Error(t, err, out)
	n.systemctl("")
	out, err = n.install()
	require.NoError(t, err, out)
	assert.Equal(t, newSocket, n.calls())

	uninstall := func() (string, error) {
		return outputOf(t, exec.Command("chroot", n.root, "/usr/local/lib/cowshed/node.sh", "uninstall", "/"))
	}
	// systemd fails in between, and uninstall is repeated.
	n.systemctl("exit 1")
	text, err := uninstall()
	require.Error(t, err, "%s", text)
	n.systemctl("")
	text, err = uninstall()
	require.NoError(t, err, "%s", text)
	assert.Equal(t, "disable --now cowshed.socket cowshed.service\ndaemon-reload\n", n.calls())
	assert.Equal(t, before, n.tree())
}

// TestKubernetesInterrupted: an attempt that follows an interrupted one restarts the daemon, whose files are there already.
// Another mode is a change, too.
func TestKubernetesInterrupted(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	before := n.tree()
	out, err := n.install()
	require.NoError(t, err, out)
	n.calls()
	installed := n.tree()

	for name, change := range map[string]func(){
		"configuration": func() { write(t, filepath.Join(n.config, "config.toml"), "default_limit = \"30G\"\n") },
		"mode":          func() { require.NoError(t, os.Chmod(n.path("/usr/local/bin/cowshed"), 0o644)) },
	} {
		change()
		n.systemctl("exit 1")
		out, err = n.install()
		require.Error(t, err, name+out)
		n.systemctl("")
		out, err = n.install()
		require.NoError(t, err, out)
		assert.Contains(t, n.calls(), "restart", name)
		out, err = n.install()
		require.NoError(t, err, out)
		assert.NotContains(t, n.calls(), "restart", name)
	}
	info, err := os.Stat(n.path("/usr/local/bin/cowshed"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o755), info.Mode())
	assert.Len(t, n.tree(), len(installed))

	// uninstall also removes the files of an attempt that was interrupted.
	for _, name := range []string{"/etc/cowshed/config.toml.new", "/usr/local/bin/cowshed.old", "/etc/cowshed/restart-pending"} {
		write(t, n.path(name), "")
	}
	out, err = runScript(n, "uninstall")
	require.NoError(t, err, out)
	n.calls()
	assert.Equal(t, before, n.tree())
}

// TestKubernetesBadUpdate: a configuration or a program that does not work leaves the daemon as it is. One with which the daemon
// does not start is taken back, also after an interruption at any change of a file.
func TestKubernetesBadUpdate(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	config, program := filepath.Join(n.config, "config.toml"), filepath.Join(n.files, "cowshed")
	good := make(map[string][]byte)
	for _, name := range []string{config, program} {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		good[name] = text
	}
	out, err := n.install()
	require.NoError(t, err, out)
	n.calls()
	installed := n.tree()
	tree := func() map[string]string {
		found := n.tree()
		maps.DeleteFunc(found, func(name, _ string) bool { return strings.HasSuffix(name, ".new") })
		return found
	}

	for name, text := range map[string]string{config: "default_limit = \"much\"\n", program: "#!/bin/sh\nexit 1\n"} {
		require.NoError(t, os.WriteFile(name, []byte(text), 0o755))
		out, err = n.install()
		require.Error(t, err)
		assert.Contains(t, out, "so the daemon stays as it is")
		assert.Equal(t, installed, tree())
		assert.NoFileExists(t, n.path("/etc/systemctl.log"))
		require.NoError(t, os.WriteFile(name, good[name], 0o755))
	}

	write(t, config, "default_limit = \"30G\"\n")
	require.NoError(t, os.WriteFile(program, append(good[program], "# another\n"...), 0o755))
	n.systemctl(`case $1 in restart) ! grep -qs 30G /etc/cowshed/config.toml || exit 1 ;; esac`)
	installed["/usr/local/bin/systemctl"] = n.tree()["/usr/local/bin/systemctl"]
	require.NoError(t, os.Mkdir(n.path("/usr/local/sbin"), 0o755))
	for i := range 5 {
		n.script(n.path("/usr/local/sbin/mv"), fmt.Sprintf("echo >>/run/moves; test $(wc -l </run/moves) != %d || exit 1; exec /usr/bin/mv \"$@\"", i))
		out, err = n.install()
		require.Error(t, err, out)
		moves, err := os.ReadFile(n.path("/run/moves"))
		require.NoError(t, err)
		require.NoError(t, os.Remove(n.path("/run/moves")))
		require.NoError(t, os.Remove(n.path("/usr/local/sbin/mv")))
		if i == 0 {
			require.Len(t, moves, 4, "the files are put in their places, and back")
		} else {
			require.Len(t, moves, i)
			out, err = n.install()
			require.Error(t, err, out)
		}
		assert.Contains(t, out, "so the former are back", i)
		assert.Equal(t, installed, n.tree(), i)
		assert.True(t, strings.HasSuffix(n.calls(), "daemon-reload\nreset-failed cowshed.service\nis-active --quiet cowshed.socket\nrestart cowshed.service\n"), i)
	}
}

// TestKubernetesDoesNotStart: the first attempt says that the daemon does not start, and another one starts it.
func TestKubernetesDoesNotStart(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	n.systemctl(`test "$1" != restart || exit 1`)
	out, err := n.install()
	require.Error(t, err)
	assert.Contains(t, out, "the daemon does not start: see journalctl")
	n.systemctl("")
	n.calls()
	out, err = n.install()
	require.NoError(t, err, out)
	assert.Contains(t, n.calls(), "restart cowshed.service")
	assert.NotContains(t, n.tree(), "/etc/cowshed/restart-pending")
}

// TestKubernetesSecrets: only root reads the configuration on the node, also one whose attempt was interrupted.
func TestKubernetesSecrets(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	check := func(name string) {
		info, err := os.Stat(n.path(name))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode(), name)
	}
	require.NoError(t, os.Mkdir(n.path("/usr/local/sbin"), 0o755))
	n.script(n.path("/usr/local/sbin/chmod"), `test "$1" != 600 && exec /usr/bin/chmod "$@"`)
	out, err := n.install()
	require.Error(t, err, out)
	check("/etc/cowshed/config.toml.new")
	require.NoError(t, os.Remove(n.path("/usr/local/sbin/chmod")))
	out, err = n.install()
	require.NoError(t, err, out)
	check("/etc/cowshed/config.toml")
}

// TestKubernetesToken: only root reads the token for the kubelet. It changes without a restart of the daemon, and goes when the
// cluster has it no more, and with Cowshed.
func TestKubernetesToken(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	before := n.tree()
	const name = "/etc/cowshed/kubelet-token"
	for _, text := range []string{"one", "another"} {
		write(t, filepath.Join(n.kubelet, "token"), text)
		out, err := n.install()
		require.NoError(t, err, out)
		assert.Equal(t, text == "one", strings.Contains(n.calls(), "restart"), text)
		assert.Equal(t, text, n.tree()[name])
		info, err := os.Stat(n.path(name))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode())
	}
	token := filepath.Join(n.kubelet, "token")
	require.NoError(t, os.Remove(token))
	out, err := n.install()
	require.NoError(t, err, out)
	assert.NotContains(t, n.tree(), name)
	write(t, token, "one")
	out, err = n.install()
	require.NoError(t, err, out)
	out, err = runScript(n, "uninstall")
	require.NoError(t, err, out)
	n.calls()
	assert.Equal(t, before, n.tree())
}

// TestKubernetesRoot: the root of the configuration is checked, in both kinds of quotes and with a comment behind it.
func TestKubernetesRoot(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	for _, quoted := range []string{`"/run/cowshed"`, `'/run/cowshed'`} {
		write(t, filepath.Join(n.config, "config.toml"), "root = "+quoted+" # not \"/var/lib/cowshed\", 'never'\n")
		out, err := n.install()
		require.Error(t, err)
		assert.Contains(t, out, "/run of this node is neither on btrfs")
	}
	write(t, filepath.Join(n.config, "config.toml"), "root = \"/var/lib/cowshed\" # \"here\", it's btrfs\n")
	out, err := n.install()
	require.NoError(t, err, out)
}

// TestKubernetesNodeZFS: a node whose filesystem for layers is ZFS gets a daemon that starts, in a dataset of its own.
func TestKubernetesNodeZFS(t *testing.T) {
	if !testfs.Long() {
		return
	}
	dataset, mountpoint := testfs.ZFS(t)
	out, err := outputOf(t, exec.Command("zfs", "create", dataset+"/containerd"))
	require.NoError(t, err, out)
	n := newKubernetesNode(t, mountpoint)
	n.mount(filepath.Join(mountpoint, "containerd"), "var/lib/cowshed/containerd", "", unix.MS_BIND)
	out, err = n.install()
	require.NoError(t, err, out)
	n.serves()
}

// TestKubernetesOwner: a configuration of containerd that is not root's keeps its owner.
func TestKubernetesOwner(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	file := n.path("/etc/containerd/config.toml")
	write(t, file, "version = 2\n")
	require.NoError(t, os.Chown(file, 1234, 4321))
	out, err := n.install()
	require.NoError(t, err, out)
	info, err := os.Stat(file)
	require.NoError(t, err)
	assert.Contains(t, n.tree()["/etc/containerd/config.toml"], "imports")
	stat := info.Sys().(*syscall.Stat_t)
	assert.Equal(t, [2]uint32{1234, 4321}, [2]uint32{stat.Uid, stat.Gid})
}

// TestKubernetesContainerdElsewhere: the changes to a configuration of containerd are taken back in the same file. Another file
// may have been named meanwhile, and uninstall need not be told.
func TestKubernetesContainerdElsewhere(t *testing.T) {
	n := newKubernetesNode(t, testfs.Btrfs(t))
	for _, dir := range []string{"/etc/k3s", "/etc/rke2"} {
		require.NoError(t, os.Mkdir(n.path(dir), 0o755))
		write(t, n.path(dir+"/config.toml"), "version = 3\n")
	}
	before := n.tree()
	for i, dir := range []string{"/etc/k3s", "/etc/rke2"} {
		n.env = []string{"CONTAINERD_CONFIG=" + dir + "/config.toml"}
		out, err := n.install()
		require.NoError(t, err, out)
		installed := n.tree()
		assert.NotEqual(t, before[dir+"/config.toml"], installed[dir+"/config.toml"])
		assert.Contains(t, installed, dir+"/conf.d/cowshed-kubernetes.toml")
		assert.Equal(t, i == 0, installed["/etc/rke2/config.toml"] == before["/etc/rke2/config.toml"])
	}
	assert.Equal(t, before["/etc/k3s/config.toml"], n.tree()["/etc/k3s/config.toml"])
	out, err := outputOf(t, exec.Command("chroot", n.root, "/usr/local/lib/cowshed/node.sh", "uninstall", "/"))
	require.NoError(t, err, out)
	assert.Equal(t, before, n.tree())
}

// serves starts the daemon with the installed configuration, and stops it.
func (n *kubernetesNode) serves() {
	n.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command("chroot", n.root, "/usr/local/bin/cowshed", "serve", "--metrics", "") // the port may be taken
	cmd.Stderr = &log
	testfs.Start(n.t, cmd)
	require.Eventually(n.t, func() bool {
		_, err := os.Stat(n.path("/run/cowshed/cowshed.sock"))
		return err == nil || testfs.Ended(n.t, cmd)
	}, testfs.Patience, 10*time.Millisecond)
	if testfs.Ended(n.t, cmd) {
		require.FailNow(n.t, "the daemon has ended", "%v: %s", testfs.Wait(n.t, cmd), &log)
	}
	require.NoError(n.t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(n.t, testfs.Wait(n.t, cmd), "%s", &log)
}

// TestKubernetesRefuses: a node without btrfs or ZFS, and a node on which Cowshed was installed in another way, stay as they are.
func TestKubernetesRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		onBtrfs bool
		file    string
		says    string
	}{
		"filesystem": {false, "", "neither on btrfs nor on ZFS"},
		"package":    {true, "/usr/local/bin/cowshed", "installed in another way"},
	} {
		t.Run(name, func(t *testing.T) {
			data := ""
			if test.onBtrfs {
				data = testfs.Btrfs(t)
			}
			n := newKubernetesNode(t, data)
			if test.file != "" {
				write(t, filepath.Join(n.root, test.file), "")
			}
			before := n.tree()
			out, err := n.install()
			require.Error(t, err)
			assert.Contains(t, out, test.says)
			assert.Equal(t, before, n.tree())
			assert.NoFileExists(t, n.path("/etc/systemctl.log"))
			out, err = runScript(n, "uninstall")
			require.Error(t, err)
			assert.Contains(t, out, "was not installed by Kubernetes")
		})
	}
}

// TestKubernetesWithoutNode: where no root of a node is mounted, the script ends.
func TestKubernetesWithoutNode(t *testing.T) {
	testfs.Root(t)
	out, err := outputOf(t, exec.Command("sh", "../../packaging/kubernetes/node.sh", "install", t.TempDir()))
	require.Error(t, err)
	assert.Contains(t, out, "no program of the node can be run")
}

// runScript runs the script of the image on a node.
func runScript(n *kubernetesNode, action string) (string, error) {
	return outputOf(n.t, exec.Command("sh", filepath.Join(n.files, "node.sh"), action, n.root))
}
