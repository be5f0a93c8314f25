package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"
)

// The methods in this file do the same as the docker command of that name. They may be used by several goroutines at
// once.

// Load loads the images of an archive.
func (e *Engine) Load(ctx context.Context, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	resp, err := e.ImageLoad(ctx, f)
	if err != nil {
		return fmt.Errorf("load %s: %w", file, err)
	}
	defer resp.Close()
	if err := messages(resp, nil); err != nil {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

// Save writes an image to a file.
func (e *Engine) Save(ctx context.Context, image, file string) error {
	resp, err := e.ImageSave(ctx, []string{image})
	if err != nil {
		return fmt.Errorf("save %s: %w", image, err)
	}
	defer resp.Close()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, resp); err != nil {
		return errors.Join(fmt.Errorf("save %s: %w", image, err), f.Close())
	}
	return f.Close()
}

// CreateContainer makes a container with no network, whose command runs as in a shell script. storage are options of
// the storage driver, or nil.
func (e *Engine) CreateContainer(ctx context.Context, name, image, script string, storage map[string]string) error {
	return e.create(ctx, name, image, script, nil, storage)
}

// CreateLabelled is CreateContainer with labels instead.
func (e *Engine) CreateLabelled(ctx context.Context, name, image, script string, labels map[string]string) error {
	return e.create(ctx, name, image, script, labels, nil)
}

func (e *Engine) create(ctx context.Context, name, image, script string, labels, storage map[string]string) error {
	_, err := e.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:       name,
		Config:     &container.Config{Image: image, Cmd: []string{"/bin/sh", "-c", script}, Labels: labels},
		HostConfig: &container.HostConfig{NetworkMode: "none", StorageOpt: storage},
	})
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	return nil
}

// StartContainer starts a container that was made.
func (e *Engine) StartContainer(ctx context.Context, name string) error {
	if _, err := e.ContainerStart(ctx, name, client.ContainerStartOptions{}); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	return nil
}

// RunContainer makes a container, runs it to its end and keeps it.
func (e *Engine) RunContainer(ctx context.Context, name, image, script string, storage map[string]string) (Result, error) {
	if err := e.CreateContainer(ctx, name, image, script, storage); err != nil {
		return Result{}, err
	}
	wait := e.ContainerWait(ctx, name, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if err := e.StartContainer(ctx, name); err != nil {
		return Result{}, err
	}
	select {
	case err := <-wait.Error:
		return Result{}, fmt.Errorf("wait for %s: %w", name, err)
	case status := <-wait.Result:
		out, err := e.Output(ctx, name)
		return Result{Code: uint32(status.StatusCode), Output: out}, err
	}
}

// Output returns a container's output.
func (e *Engine) Output(ctx context.Context, name string) (string, error) {
	logs, err := e.ContainerLogs(ctx, name, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return "", fmt.Errorf("logs of %s: %w", name, err)
	}
	defer logs.Close()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, logs)
	return out.String(), err
}

// Exec runs a script in a running container.
func (e *Engine) Exec(ctx context.Context, name, script string) (Result, error) {
	created, err := e.ExecCreate(ctx, name, client.ExecCreateOptions{
		AttachStdout: true, AttachStderr: true, Cmd: []string{"/bin/sh", "-c", script},
	})
	if err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w", name, err)
	}
	attached, err := e.ExecAttach(ctx, created.ID, client.ExecAttachOptions{})
	if err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w", name, err)
	}
	defer attached.Close()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, attached.Reader); err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w", name, err)
	}
	code, err := e.execCode(ctx, created.ID)
	if err != nil {
		return Result{}, fmt.Errorf("exec in %s: %w; it has %q", name, err, out.String())
	}
	return Result{Code: code, Output: out.String()}, nil
}

// execCode waits until the engine knows the exit code of an exec. The output may end before.
func (e *Engine) execCode(ctx context.Context, id string) (uint32, error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		status, err := e.ExecInspect(ctx, id, client.ExecInspectOptions{})
		if err != nil {
			return 0, err
		}
		if !status.Running {
			return uint32(status.ExitCode), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the engine has not heard of its end: %w", ctx.Err())
		case <-ticker.C:
		}
	}
}

// Diff lists a container's changes, as docker diff prints them, sorted by path.
func (e *Engine) Diff(ctx context.Context, name string) ([]string, error) {
	resp, err := e.ContainerDiff(ctx, name, client.ContainerDiffOptions{})
	if err != nil {
		return nil, fmt.Errorf("diff %s: %w", name, err)
	}
	slices.SortFunc(resp.Changes, func(a, b container.FilesystemChange) int { return strings.Compare(a.Path, b.Path) })
	lines := make([]string, len(resp.Changes))
	for i, c := range resp.Changes {
		lines[i] = c.Kind.String() + " " + c.Path
	}
	return lines, nil
}

// Commit makes an image of a container.
func (e *Engine) Commit(ctx context.Context, name, image string) error {
	if _, err := e.ContainerCommit(ctx, name, client.ContainerCommitOptions{Reference: image}); err != nil {
		return fmt.Errorf("commit %s: %w", name, err)
	}
	return nil
}

// Build builds an image from a context with a Dockerfile, in BuildKit or the classic builder. It has neither a
// network nor the cache of earlier builds.
func (e *Engine) Build(ctx context.Context, image string, files []File, builder build.BuilderVersion) error {
	data, err := tarOf(files)
	if err != nil {
		return err
	}
	resp, err := e.ImageBuild(ctx, bytes.NewReader(data), client.ImageBuildOptions{
		Tags: []string{image}, Version: builder, NetworkMode: "none", NoCache: true, Remove: true, ForceRemove: true,
	})
	if err != nil {
		return fmt.Errorf("build %s: %w", image, err)
	}
	defer resp.Body.Close()
	var log bytes.Buffer
	if err := messages(resp.Body, &log); err != nil {
		return fmt.Errorf("build %s: %w\n%s", image, err, log.String())
	}
	return nil
}

// Push sends an image to the registry that its name begins with.
func (e *Engine) Push(ctx context.Context, image string) error {
	resp, err := e.ImagePush(ctx, image, client.ImagePushOptions{RegistryAuth: "e30="}) // {} in base64
	if err != nil {
		return fmt.Errorf("push %s: %w", image, err)
	}
	defer resp.Close()
	if err := resp.Wait(ctx); err != nil {
		return fmt.Errorf("push %s: %w", image, err)
	}
	return nil
}

// Pull fetches an image from the registry that its name begins with.
func (e *Engine) Pull(ctx context.Context, image string) error {
	resp, err := e.ImagePull(ctx, image, client.ImagePullOptions{})
	if err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	defer resp.Close()
	if err := resp.Wait(ctx); err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	return nil
}

// Remove removes containers, running or not.
func (e *Engine) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		_, err := e.ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		if err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

// RemoveAllContainers removes all containers, running or not.
func (e *Engine) RemoveAllContainers(ctx context.Context) error {
	list, err := e.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return err
	}
	for _, c := range list.Items {
		if err := e.Remove(ctx, c.ID); err != nil {
			return err
		}
	}
	return nil
}

// Prune is docker system prune --all: it removes containers that do not run, images that no container uses, and
// caches of builds.
func (e *Engine) Prune(ctx context.Context) error {
	if _, err := e.ContainerPrune(ctx, client.ContainerPruneOptions{}); err != nil {
		return fmt.Errorf("prune containers: %w", err)
	}
	all := client.Filters{}.Add("dangling", "false")
	if _, err := e.ImagePrune(ctx, client.ImagePruneOptions{Filters: all}); err != nil {
		return fmt.Errorf("prune images: %w", err)
	}
	if _, err := e.BuildCachePrune(ctx, client.BuildCachePruneOptions{All: true}); err != nil {
		return fmt.Errorf("prune build cache: %w", err)
	}
	return nil
}

// Images lists the names of all images.
func (e *Engine) Images(ctx context.Context) ([]string, error) {
	list, err := e.ImageList(ctx, client.ImageListOptions{All: true})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, img := range list.Items {
		names = append(names, img.RepoTags...)
		if len(img.RepoTags) == 0 {
			names = append(names, img.ID)
		}
	}
	slices.Sort(names)
	return names, nil
}

// messages reads the progress of an operation to its end and returns the error that it reports. A build's output goes
// to log.
func messages(r io.Reader, log *bytes.Buffer) error {
	dec := json.NewDecoder(r)
	for {
		var m jsonstream.Message
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case m.Error != nil:
			return m.Error
		case log != nil:
			log.WriteString(m.Stream)
		}
	}
}
