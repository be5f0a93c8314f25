package clients

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// dockerFlows are for docker alone, and run before those that remove.
var dockerFlows = []flow{
	{"diff", `test "$(x diff changed | sort -k 2)" = "$(printf '%s\n' 'A /changed' 'C /data' 'C /data/change' 'D /data/move' \
  'A /data/moved' 'A /data/moved/file' 'A /data/new' 'A /data/new/file' 'A /data/new/hard' 'A /data/new/soft' 'A /data/same' \
  'C /data/setuid' 'D /data/tree')"`},
	{"sizes", `x ps --all --size >/dev/null
x system df -v >/dev/null`},
	{"compose", `mkdir -p app
cat >app/Dockerfile <<DOCKERFILE
FROM sample:1
RUN --network=none echo built >/data/change
DOCKERFILE
cat >app/compose.yaml <<COMPOSE
services:
  plain:
    image: sample:1
    network_mode: none
    command: [sh, -c, "echo up; while :; do sleep 0.1; done"]
  made:
    build:
      context: .
      network: none
    network_mode: none
    stop_grace_period: 1s
    command: [sh, -c, "cat /data/change; while :; do sleep 0.1; done"]
    volumes: ["kept:/kept"]
volumes:
  kept:
COMPOSE
cd app
x compose up --detach --build
test "$(x compose exec -T plain cat /data/lower)" = second
x compose exec -T made sh -c 'echo kept >/kept/file'
until x compose logs made | grep -q built; do sleep 0.1; done
x compose up --detach --force-recreate --timeout 1
test "$(x compose exec -T made cat /kept/file)" = kept
x compose down --rmi all --volumes --timeout 1`},
	{"builder prune", `x builder prune --all --force`},
}

// docker does users' tasks with the commands docker and docker compose, and the Docker Engine of today.
func docker() suite {
	// Those that remove are the last two.
	list := slices.Insert(slices.Clone(flows), len(flows)-2, dockerFlows...)
	return suite{name: "docker", long: true, least: len(list), run: func(t *testing.T, snapshotter string) run {
		h := harness.NewHost(t, testfs.Btrfs(t))
		registry := h.StartRegistry()
		opts := harness.ContainerdOptions{}
		if snapshotter == cowshed {
			opts = h.StartCowshed("containerd").Options()
		}
		containerd := h.StartContainerd("containerd", opts)
		engine := h.StartDocker(harness.EngineOptions{Driver: snapshotter, Containerd: containerd})

		command := strings.Join(dockerCommand(t, h, engine, "buildx", "compose"), " ")
		result := runFlows(t, h, "docker-"+snapshotter, registry, command, list)
		result.checkEmpty(t, containerd.Store("moby", snapshotter))
		return result
	}}
}

// dockerCommand is the command docker for an engine, with plugins, as the words of a command line.
func dockerCommand(t *testing.T, h *harness.Host, engine *harness.Engine, plugins ...string) []string {
	t.Helper()
	config := filepath.Join(h.Dir, "config")
	require.NoError(t, os.MkdirAll(filepath.Join(config, "cli-plugins"), 0o755))
	for _, plugin := range plugins {
		program := "docker-" + plugin
		require.NoError(t, os.Symlink(filepath.Join(programs(t, plugin), program), filepath.Join(config, "cli-plugins", program)))
	}
	return []string{"env", "DOCKER_CONFIG=" + config, filepath.Join(programs(t, "docker"), "docker"), "--host", "unix://" + engine.Socket}
}
