package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// limitSize limits a container where the driver can.
const limitSize = "48m"

// recipe is a container that the old engine makes.
type recipe struct {
	name  string // "": the engine calls it something
	image string
	// script runs when the container is started for the first time. Started again, it changes nothing.
	script string
	size   string // limit
	// copied is extracted into its root, as by docker cp, before it is started.
	copied []entry
	// created says that it is never started.
	created bool
	// writing says that the script goes on until the container is stopped.
	writing bool
}

// recipes are containers whose layers have all kinds of changes. untagged is the ID of the image without a name.
func recipes(untagged string, limits bool) []recipe {
	size := ""
	if limits {
		size = limitSize
	}
	return []recipe{
		{name: "changed", image: "cowtest/sample:1", script: harness.ChangeScript},
		{name: "created", image: "cowtest/hardlinks:1", created: true},
		{name: "deep", image: "cowtest/deep:1", script: `test "$(cat /deep/last)" = 125; echo more >>/deep/last; rm /deep/124`},
		{name: "limited", image: "cowtest/data:1", size: size, script: `dd if=/dev/urandom of=/random bs=1M count=4; cp /data /copy; echo x >>/data`},
		{name: "replaced", image: "cowtest/replaced:1", script: replaceScript},
		{name: "special", image: "cowtest/capabilities:1", script: specialScript, copied: []entry{
			{path: "copied/"},
			{path: "copied/program", data: "#!/bin/sh\n", mode: 0o755, xattrs: map[string]string{"security.capability": capability()}},
			{path: "copied/file", data: "x", uid: 1000, xattrs: map[string]string{"user.copied": "yes"}},
		}},
		{name: "untagged", image: untagged, script: `echo changed >>/untagged`},
		{name: "volume", image: "cowtest/volumes:1", script: `echo in the container >/outside; echo in the volume >>/volume/file`},
		{name: "writer", image: "cowtest/base:1", script: writeScript, writing: true},
		{image: "cowtest/committed:1", script: `rm -r /data/new; touch /data/new`},
	}
}

const replaceScript = `
cat /file/inside /opaque/new
rm -r /file; echo a file again >/file
rm /directory; mkdir /directory; echo back >/directory/a
rm -r /opaque; mkdir /opaque; echo newest >/opaque/newest
rm -r /again; mkdir /again
mkdir /moved; echo x >/moved/x; mv /moved /moved2
ln -s /nowhere /again/soft`

const specialScript = `
mkdir /special
mknod /special/null c 1 3; mknod /special/pipe p; chmod 4711 /special/null
echo linked >/special/b; ln /special/b /special/a; ln /special/b /tmp/c; chown 1000:1000 /special/b
truncate -s 3M /special/sparse; echo data | dd of=/special/sparse bs=1 seek=1000000 conv=notrunc
echo more >>/program; ln /etc/passwd /etc/passwd.link; echo user2 >>/etc/passwd
touch -t 200001020304.05 /special/old; chmod 1777 /special`

// writeScript writes until it is told to end, which happens when the engine is stopped.
const writeScript = `
mkdir /written; trap "echo stopped >/written/end; exit 0" TERM
n=0; while true; do echo "line $n" >>/written/log; echo "$n" >"/written/$((n % 50))"; ln -f "/written/$((n % 50))" /written/latest; n=$((n + 1)); done`

// command is the shell script of the container's process.
func (r recipe) command() string {
	if r.created {
		return `: >/dev/shm/ready; trap "exit 0" TERM; sleep 3600 & wait`
	}
	return "if [ ! -e /ran ]; then : >/ran; set -e\n" + r.script + "\nset +e; fi\n" + `: >/dev/shm/ready; trap "exit 0" TERM; sleep 3600 & wait`
}

// makeContainers makes the containers and starts them.
func makeContainers(t *testing.T, ctx context.Context, e *harness.Engine, list []recipe) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(4)
	for _, r := range list {
		g.Go(func() error {
			var storage map[string]string
			if r.size != "" {
				storage = map[string]string{"size": r.size}
			}
			created, err := e.ContainerCreate(ctx, client.ContainerCreateOptions{
				Name:       r.name,
				Config:     &container.Config{Image: r.image, Cmd: []string{"/bin/sh", "-c", r.command()}, Labels: map[string]string{"cowtest": r.name}},
				HostConfig: &container.HostConfig{NetworkMode: "none", StorageOpt: storage},
			})
			if err != nil {
				return err
			}
			if r.copied != nil {
				_, err := e.CopyToContainer(ctx, created.ID, client.CopyToContainerOptions{
					DestinationPath: "/", Content: bytes.NewReader(tarOf(t, r.copied)),
				})
				if err != nil {
					return err
				}
			}
			if r.created {
				return nil
			}
			_, err = start(ctx, e, created.ID, r.writing)
			return err
		})
	}
	require.NoError(t, g.Wait())
}

// startAll starts all containers, unless wanted says no, waits until their processes have nothing to do, and inspects all.
func startAll(t *testing.T, ctx context.Context, e *harness.Engine, wanted func(name string) bool) []container.InspectResponse {
	t.Helper()
	list, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
	require.NoError(t, err)
	all := make([]container.InspectResponse, len(list.Items))
	var g errgroup.Group
	g.SetLimit(4)
	for i, item := range list.Items {
		g.Go(func() (err error) {
			if wanted(item.Names[0]) {
				all[i], err = start(ctx, e, item.ID, false)
				return err
			}
			inspected, err := e.ContainerInspect(ctx, item.ID, client.ContainerInspectOptions{})
			all[i] = inspected.Container
			return err
		})
	}
	require.NoError(t, g.Wait())
	return all
}

// start starts a container and waits until its process has nothing to do any more, or is writing.
func start(ctx context.Context, e *harness.Engine, id string, writing bool) (container.InspectResponse, error) {
	var c container.InspectResponse
	if _, err := e.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return c, fmt.Errorf("start %s: %w", id, err)
	}
	inspected, err := e.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return c, err
	}
	c = inspected.Container
	sign := "/dev/shm/ready"
	if writing {
		sign = "/written/latest"
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", c.State.Pid, sign))
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			out, _ := e.Output(ctx, id)
			return c, fmt.Errorf("%s does not get ready: %w: %s", c.Name, err, out)
		}
		if inspected, err := e.ContainerInspect(ctx, id, client.ContainerInspectOptions{}); err != nil || !inspected.Container.State.Running {
			out, _ := e.Output(ctx, id)
			return c, fmt.Errorf("%s has ended: %w: %s", c.Name, err, out)
		}
	}
}

const startTimeout = 2 * testfs.Patience // in an emulated machine beside other work
