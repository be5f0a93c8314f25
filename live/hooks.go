package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/flock"
	"github.com/cowshed/cowshed/internal/hostcommand"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// Hooks are commands around a snapshot, for programs whose data needs more than the state of one moment. Each runs on
// the host, by /bin/sh -c, as the user of this process, or in the container. Its environment has PATH, COWSHED_HOOK
// (pre or post), COWSHED_LAYER (the volume), COWSHED_REFERENCE, and COWSHED_PID if the layer is that of a container
// that runs.
type Hooks struct {
	// Pre is run before the snapshot. If it fails, there is no snapshot.
	Pre string `json:"pre,omitempty"`
	// Post is run after the snapshot, and after a Pre that has failed.
	Post string `json:"post,omitempty"`
	// Timeout is how long each may take. Then it is killed, and has failed. The snapshot may take as long.
	Timeout time.Duration `json:"timeout,omitempty"`
	// InContainer runs the commands in the container whose root the layer is, in the way of its first process. If the
	// container does not run, no command is run: nobody writes then. If no container is known and the layer is in use,
	// the commands fail with ErrFailedPrecondition.
	InContainer bool `json:"in_container,omitempty"`
	// Reference is the layer as people write it, "" for the layer's own name.
	Reference string `json:"reference,omitempty"`
}

const (
	maxHook        = 64 << 10
	maxHookTimeout = 10 * time.Minute
	hookPrefix     = "hook-"
	shell          = "/bin/sh"
	processTimeout = 5 * time.Second // to find the process of a container
	briefUse       = time.Second     // others have a volume in use for less if they only look at it
)

func (h Hooks) none() bool { return h.Pre == "" && h.Post == "" }

// Check returns ErrInvalidArgument if a command or the timeout is invalid.
func (h Hooks) Check() error {
	for _, command := range []string{h.Pre, h.Post} {
		if len(command) > maxHook || strings.ContainsRune(command, 0) || !utf8.ValidString(command) {
			return fault.New(errdefs.ErrInvalidArgument, "hook: at most %d bytes of UTF-8, without NUL", maxHook)
		}
	}
	if !h.none() && (h.Timeout <= 0 || h.Timeout > maxHookTimeout) {
		return fault.New(errdefs.ErrInvalidArgument, "timeout %s of a hook: say more than 0 and at most %s", h.Timeout, maxHookTimeout)
	}
	return nil
}

// WithProcesses makes hooks get the number of a process, which find returns for the volume of a layer: the first process of its
// container, 0 if none runs. It returns l, and is to be called before anything else.
func (l *Layers) WithProcesses(find func(ctx context.Context, volume string) (pid uint32, err error)) *Layers {
	l.process = find
	return l
}

// Exec is a command in the container whose root a volume is.
type Exec struct {
	Volume  string
	ID      string // of the process in the container; no other has it
	Args    []string
	Env     []string
	Timeout time.Duration
}

// Errors of Containers.Run before the command has begun.
var (
	// ErrNotRunning means that the container is known, and does not run.
	ErrNotRunning = errors.New("the container does not run")
	// ErrNoContainer means that no known container has the volume as its root. An unknown container may run with that
	// root all the same.
	ErrNoContainer = errors.New("no container is known that has the volume as its root")
)

// Containers run commands in containers. The zero value has none.
type Containers struct {
	// Run returns ErrNotRunning or ErrNoContainer if there is nothing to run the command in.
	Run func(ctx context.Context, e Exec) error
	// Kill ends the process with the ID of e, which may be gone.
	Kill func(ctx context.Context, e Exec) error
}

// WithContainers makes hooks run in containers. It returns l, and is to be called before anything else.
func (l *Layers) WithContainers(c Containers) *Layers {
	l.containers = c
	return l
}

// checkRunnable is Hooks.Check of commands that these layers are to run.
func (l *Layers) checkRunnable(layer string, h Hooks) error {
	if h.InContainer && l.containers.Run == nil {
		return fault.New(errdefs.ErrInvalidArgument, "layer %s is no container, in which hooks could be run", layer)
	}
	return h.Check()
}

// runInContainer runs a command of h in its container.
func (l *Layers) runInContainer(ctx context.Context, h *heldHook, which, command string, env []string) error {
	if err := l.checkRunnable(h.Layer, h.Hooks); err != nil {
		return err
	}
	err := l.containers.Run(ctx, Exec{Volume: h.Layer, ID: h.process(which), Args: []string{shell, "-c", command}, Env: env, Timeout: h.Timeout})
	if errors.Is(err, ErrNoContainer) {
		if err := l.checkUnused(ctx, h.Layer); err != nil {
			return err
		}
		err = ErrNotRunning
	}
	if errors.Is(err, ErrNotRunning) {
		l.log.Info("a hook is not run, since its container does not run", "layer", h.Layer, "hook", which)
		return nil
	}
	return err
}

// aloner is a Backend that knows whether somebody uses a volume.
type aloner interface {
	// Alone returns fault.ErrInUse if somebody uses the volume, and fault.ErrSealed if nobody can change it any more.
	Alone(ctx context.Context, name string, do func(root *os.File) error) error
}

// checkUnused returns ErrFailedPrecondition if somebody uses the volume of a container that nobody knows. Without a Backend there are
// post commands alone: if a pre command has been run, its container was known, and is gone.
func (l *Layers) checkUnused(ctx context.Context, volume string) error {
	if l.backend == nil {
		return nil
	}
	backend, ok := cowcommon.As[aloner](l.backend)
	if !ok {
		return fault.New(errdefs.ErrNotImplemented, "%w, and a %T cannot tell whether it is in use", ErrNoContainer, l.backend)
	}
	err := whileInUse(ctx, briefUse, func() error { return backend.Alone(ctx, volume, func(*os.File) error { return nil }) })
	switch {
	case errdefs.IsNotFound(err), errors.Is(err, fault.ErrSealed):
		return nil
	case errors.Is(err, fault.ErrInUse):
		return fault.New(errdefs.ErrFailedPrecondition,
			"%w, but it is in use: make containerd_address the containerd that runs it, or run the commands without --in-container: %w", ErrNoContainer, err)
	}
	return err
}

// endInContainer ends a pre command in a container. Its process may go on when this process has ended.
func (l *Layers) endInContainer(ctx context.Context, h *heldHook) error {
	if !h.InContainer || h.Pre == "" || l.containers.Kill == nil {
		return nil
	}
	return l.containers.Kill(ctx, Exec{Volume: h.Layer, ID: h.process("pre")})
}

// process is the ID of the process in a container that runs a command.
func (h *heldHook) process(which string) string {
	return "cowshed-" + strings.TrimSuffix(filepath.Base(h.path), recordSuffix) + "-" + which
}

// runHook runs a command of h, with files open in it.
func (l *Layers) runHook(ctx context.Context, h *heldHook, which, command string, files ...*os.File) error {
	if command == "" {
		return nil
	}
	layer, reference := h.Layer, h.Reference
	if reference == "" {
		reference = layer
	}
	env := []string{hostcommand.Variable("HOOK", which), hostcommand.Variable("LAYER", layer), hostcommand.Variable("REFERENCE", reference)}
	if h.InContainer {
		if err := l.runInContainer(ctx, h, which, command, env); err != nil {
			return fault.New(errdefs.ErrAborted, "%s command in %s: %w", which, reference, err)
		}
		return nil
	}
	if l.process != nil {
		finding, cancel := context.WithTimeout(ctx, processTimeout) // and the command has all of its own time
		pid, err := l.process(finding, layer)
		cancel()
		switch {
		case err != nil:
			l.log.Warn("a hook is run without the process of its container", "layer", layer, "hook", which, "error", err)
		case pid > 0:
			env = append(env, hostcommand.Variable("PID", strconv.FormatUint(uint64(pid), 10)))
		}
	}
	err := hostcommand.Command{Args: []string{shell, "-c", command}, Env: env, Timeout: h.Timeout, Files: files}.Run(ctx)
	if err != nil {
		return fault.New(errdefs.ErrAborted, "%s command of layer %s: %w", which, reference, err)
	}
	return nil
}

// hookRecord is a post command that has not ended. Its process has the file locked.
type hookRecord struct {
	Version int    `json:"version"`
	Layer   string `json:"layer"`
	Hooks
	Failed *Failure `json:"failed,omitempty"` // the last attempt of another process to run it
}

// heldHook is the record of a post command that this process is about to run. Nobody waits for its lock: it tells others
// that the process is there.
type heldHook struct {
	hookRecord
	path string
	lock *flock.Lock
}

// snapshotWithHooks is Snapshot between two commands.
func (l *Layers) snapshotWithHooks(ctx context.Context, layer, name string, opts SnapshotOptions) (m Moment, err error) {
	if err := l.EndHooks(ctx); err != nil {
		l.log.Warn("a hook of an earlier snapshot", "error", err)
	}
	if _, err := l.backend.Stat(ctx, layer); err != nil {
		return m, err
	}
	h, err := l.holdHook(ctx, layer, opts.Hooks)
	if err != nil {
		return m, err
	}
	going := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, l.endHook(going, h, false)) }()
	// If this process is killed, the record stays locked until the command has ended, and nobody runs the other before.
	if err := l.runHook(ctx, h, "pre", h.Pre, h.lock.File); err != nil {
		return m, fmt.Errorf("there is no snapshot: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, h.Timeout) // somebody waits for the post command
	defer cancel()
	return l.snapshot(ctx, layer, name, opts)
}

// holdHook records a post command before its pre command begins.
func (l *Layers) holdHook(ctx context.Context, layer string, hooks Hooks) (h *heldHook, err error) {
	unlock, err := l.begin(ctx) // nobody deletes the file as half-written meanwhile
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	h = &heldHook{hookRecord: hookRecord{Version: recordVersion, Layer: layer, Hooks: hooks}}
	data, err := json.MarshalIndent(h.hookRecord, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.path(hooksDir), 0o700); err != nil {
		return nil, err
	}
	if err := checkTrusted(l.path(hooksDir), nil); err != nil {
		return nil, err
	}
	h.path = l.path(hooksDir, staging.Name(hookPrefix)+recordSuffix)
	f, err := atomicfile.Create(filepath.Dir(h.path), temporaryPrefix)
	if err != nil {
		return nil, err
	}
	h.lock = &flock.Lock{File: f.File}
	if _, err = h.lock.TryExclusive(); err == nil {
		_, err = f.Write(append(data, '\n'))
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(f.Name(), h.path)
	}
	if err == nil {
		err = syncdir.Sync(filepath.Dir(h.path))
	}
	if err != nil {
		return nil, errors.Join(err, removeIfThere(f.Name()), removeIfThere(h.path), h.lock.Close())
	}
	return h, nil
}

// endHook runs a post command and forgets it. If that fails and untilDone is set, or if ctx is done, it stays recorded.
func (l *Layers) endHook(ctx context.Context, h *heldHook, untilDone bool) error {
	err := l.runHook(ctx, h, "post", h.Post)
	switch {
	case ctx.Err() != nil:
	case err == nil || !untilDone:
		err = errors.Join(err, removeIfThere(h.path))
	default:
		if noteErr := h.noteFailure(err); noteErr != nil {
			l.log.Warn("the failure of a post command cannot be recorded", "layer", h.Layer, "record", h.path, "error", noteErr)
		}
	}
	return errors.Join(err, h.lock.Close())
}

// noteFailure replaces the record by one with an error. A process that has the former file open finds that it is not the record.
func (h *heldHook) noteFailure(err error) error {
	h.Failed = newFailure(err)
	data, err := json.MarshalIndent(h.hookRecord, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteAs(h.path, temporaryPrefix, append(data, '\n'), 0o600)
}

// EndHooks runs the post commands of snapshots whose process is gone, such as after a crash. A command that fails stays for the
// next call. Returns ErrPermissionDenied if somebody else may have written such a record, which stays.
func (l *Layers) EndHooks(ctx context.Context) error {
	return l.eachLeftHook(func(h *heldHook) error {
		l.log.Warn("a post command is run now, since the process that was to run it after a snapshot is gone", "layer", h.Layer, "command", h.Post)
		if err := l.endInContainer(ctx, h); err != nil {
			return errors.Join(err, h.lock.Close())
		}
		return l.endHook(ctx, h, true)
	})
}

// eachLeftHook calls do with the records of processes that are gone. do closes their locks.
func (l *Layers) eachLeftHook(do func(h *heldHook) error) error {
	entries, err := os.ReadDir(l.path(hooksDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), hookPrefix) {
			continue
		}
		h, leftErr := l.leftHook(entry.Name())
		if leftErr == nil && h != nil {
			leftErr = do(h)
		}
		err = errors.Join(err, leftErr)
	}
	return err
}

// leftHook reads and locks a record whose process is gone. It returns nil if the process is there, or if the record is gone.
func (l *Layers) leftHook(name string) (*heldHook, error) {
	h := &heldHook{path: l.path(hooksDir, name)}
	f, err := os.OpenFile(h.path, os.O_RDWR|noFollow, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // said above
	}
	if err != nil {
		return nil, err
	}
	h.lock = &flock.Lock{File: f}
	alone, err := h.lock.TryExclusive()
	if err == nil && alone {
		alone, err = flock.IsAt(f, h.path) // or else it has just ended, or failed once more
	}
	if err == nil && alone {
		err = checkTrusted(h.path, f)
	}
	if err == nil && alone {
		err = decodeRecord(f, &h.hookRecord)
	}
	switch {
	case err == nil && alone && (h.Version != recordVersion || cowcommon.CheckID(h.Layer) != nil):
		err = fault.New(errdefs.ErrDataLoss, "it is of version %d and layer %q", h.Version, h.Layer)
	case err == nil && alone:
		err = h.Check()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record of a hook %s: %w", h.path, err), h.lock.Close())
	}
	if !alone {
		return nil, h.lock.Close()
	}
	return h, nil
}

// LeftHook is a post command whose process is gone.
type LeftHook struct {
	Layer, Post string
	Record      string   // the path of its record
	Failed      *Failure // the last attempt to run it; nil if there was none
}

// LeftHooks lists the post commands that EndHooks is to run. It needs no Backend. The error is about records that cannot be read or
// trusted, which are left out.
func (l *Layers) LeftHooks() (left []LeftHook, err error) {
	err = l.eachLeftHook(func(h *heldHook) error {
		left = append(left, LeftHook{Layer: h.Layer, Post: h.Post, Record: h.path, Failed: h.Failed})
		return h.lock.Close()
	})
	return left, err
}

// checkHooks finds the post commands that nobody has run.
func (l *Layers) checkHooks() (problems []Problem) {
	left, err := l.LeftHooks()
	for _, h := range left {
		what := fmt.Sprintf("the post command of a snapshot of layer %s was not run, since its process is gone: %s", h.Layer, h.Post)
		advice := "start cowshed serve, which runs it, or run it by hand, and delete the record " + h.Record
		if h.Failed != nil {
			what = fmt.Sprintf("the post command of a snapshot of layer %s, whose process is gone, has failed, on %s: %s",
				h.Layer, h.Failed.Time.Local().Format(time.DateTime), h.Failed.Error)
			advice = "cowshed serve tries it again, at least once an hour; or run it by hand, and delete the record " + h.Record + ": " + h.Post
		}
		problems = append(problems, Problem{What: what, Advice: advice, Severe: true})
	}
	if err != nil {
		problems = append(problems, Problem{
			What: err.Error(), Severe: true,
			Advice: "find out whether programs are still waiting for the post command of a snapshot, and delete the record",
		})
	}
	return problems
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
