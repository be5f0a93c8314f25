package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/e2e/daemons/harness"
	"github.com/cowshed/cowshed/internal/testfs"
)

// flow is a user's task with a command line that has Docker's commands, which x runs. Flows build on those before
// them.
type flow struct{ name, script string }

// flows are for nerdctl and docker. SAMPLE is an archive with the image sample:1, REGISTRY a registry.
var flows = []flow{
	{"load", `x load -i "$SAMPLE"
test -n "$(x images -q sample:1)"`},
	{"run", `test "$(x run --rm --net none sample:1 cat /data/change)" = first`},
	{"exit code", `x run --rm --net none sample:1 sh -c 'exit 7' || test $? = 7`},
	{"user", `test "$(x run --rm --net none --user 1000 sample:1 id -u)" = 1000`},
	{"read-only", `! x run --rm --net none --read-only sample:1 touch /new`},
	{"volume", `x run --rm --net none -v "$PWD:/here" sample:1 sh -c 'echo of the container >/here/volume'
grep -qx 'of the container' volume`},
	{"start, exec, logs, stop", `x run -d --name up --net none sample:1 sh -c 'echo started; while :; do sleep 0.1; done'
test "$(x exec up cat /data/lower)" = second
x exec up sh -c 'echo executed >/data/executed'
until x logs up | grep -qx started; do sleep 0.1; done
x stop -t 1 up
x start up
test "$(x exec up cat /data/executed)" = executed
x rm -f up`},
	{"commit", `x run --name changed --net none sample:1 sh -c "$CHANGE"
x commit changed sample:2
test "$(x run --rm --net none sample:2 sh -c "$CHECK")" = 'as committed'
test "$(x run --rm --net none sample:1 sh -c "$INTACT")" = intact`},
	{"commit of a running container", `x run -d --name busy --net none sample:1 sh -c 'echo 1 >/one; while :; do sleep 0.1; done'
until x exec busy test -e /one; do sleep 0.1; done
x commit busy busy:1
test "$(x run --rm --net none busy:1 cat /one)" = 1
x rm -f busy`},
	{"history and inspect", `x history sample:2 >/dev/null
test "$(x image inspect --format '{{len .RootFS.Layers}}' sample:2)" = 4`},
	{"cp", `x create --name copied --net none sample:1 true
echo copied >file
x cp file copied:/data/file
x cp copied:/data/file back
cmp file back`},
	{"export", `x export changed >changed.tar
tar -xOf changed.tar data/change | grep -qx second
! tar -tf changed.tar | grep '^data/tree/'`},
	{"save, remove, load", `x save -o saved.tar sample:2
x rmi sample:2
x load -i saved.tar
test "$(x run --rm --net none sample:2 sh -c "$CHECK")" = 'as committed'`},
	{"push, remove, pull", `x tag sample:2 "$REGISTRY/sample:2"
x push "$REGISTRY/sample:2"
x rmi "$REGISTRY/sample:2" sample:2
x pull "$REGISTRY/sample:2"
test "$(x run --rm --net none "$REGISTRY/sample:2" sh -c "$CHECK")" = 'as committed'`},
	{"build", `mkdir -p context
echo from the context >context/file
cat >context/Dockerfile <<DOCKERFILE
FROM $REGISTRY/sample:2 AS first
RUN --network=none echo built >/data/built && rm /data/change
FROM $REGISTRY/sample:2
COPY --from=first /data/built /first
COPY file /file
RUN --network=none cat /first /file >/both
DOCKERFILE
x build -t built:1 context
test "$(x run --rm --net none built:1 cat /both)" = "$(printf 'built\nfrom the context')"`},
	{"build from the cache", `x build -t built:2 context
layers='{{json .RootFS.Layers}}'
test "$(x image inspect --format "$layers" built:1)" = "$(x image inspect --format "$layers" built:2)"`},
	{"parallel runs", `for i in 1 2 3 4 5 6 7 8; do
  x run --rm --net none sample:1 sh -c "echo $i >/data/change; cat /data/change" >"ran$i" &
done
wait
test "$(cat ran[1-8] | tr -d '\n')" = 12345678`},
	{"remove all", `for id in $(x ps -aq); do x rm -f "$id"; done
test -z "$(x ps -aq)"`},
	{"image prune", `x image prune --all --force
test -z "$(x images -q)"`},
}

// runFlows runs flows one after the other. command is the command of x, for a shell.
func runFlows(t *testing.T, h *harness.Host, suite, registry, command string, list []flow) run {
	t.Helper()
	work := filepath.Join(h.Dir, "work")
	bin := filepath.Join(work, "bin")
	require.NoError(t, os.MkdirAll(bin, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(bin, "x"), []byte("#!/bin/sh\nexec "+command+" \"$@\"\n"), 0o755))
	sample := h.SaveImage(harness.SampleImage(t, h.Programs), "sample:1")
	log := logFile(t, suite)
	defer log.Close()

	result := run{outcomes: make(map[string]outcome), output: make(map[string]string)}
	for _, f := range list {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
		cmd := exec.CommandContext(ctx, "bash", "-euxc", f.script)
		cmd.Dir = work
		cmd.WaitDelay = time.Second // for processes that still hold its output
		cmd.Env = append(os.Environ(),
			"PATH="+bin+":"+os.Getenv("PATH"), "HOME="+work, "TMPDIR="+work, "REGISTRY="+registry, "SAMPLE="+sample,
			"CHANGE="+harness.ChangeScript, "CHECK="+harness.CheckScript, "INTACT="+harness.IntactScript)
		out, err := cmd.CombinedOutput()
		cancel()
		took := time.Since(begun).Round(time.Millisecond)
		result.outcomes[f.name], result.output[f.name] = passed, fmt.Sprintf("%s, after %s: %v", end(string(out), shownOutput), took, err)
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			result.outcomes[f.name] = failed
		}
		fmt.Fprintf(log, "==== %s, after %s: %v\n%s", f.name, took, err, out)
	}
	return result
}

// checkEmpty adds to the outcomes whether something is left in a store when all images and containers are removed. Engines let go
// of snapshots some time after they have answered.
func (r run) checkEmpty(t *testing.T, store *harness.Store) {
	t.Helper()
	ctx := store.Context(t.Context())
	var keys []string
	for deadline := time.Now().Add(testfs.Patience); ; time.Sleep(100 * time.Millisecond) {
		require.NoError(t, store.CollectGarbage(ctx))
		var err error
		keys, err = store.Keys(ctx)
		require.NoError(t, err)
		if len(keys) == 0 || time.Now().After(deadline) {
			break
		}
	}
	const name = "no snapshot is left"
	r.outcomes[name], r.output[name] = passed, fmt.Sprintf("%q", keys)
	if len(keys) > 0 {
		r.outcomes[name] = failed
	}
}
