package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is a namespace of a containerd whose images and containers are on one snapshotter. Its methods may be used
// by several goroutines at once.
type Store struct {
	*client.Client
	Snapshotter string

	namespace string
	cgroup    string
	fifos     string
	runcRoot  string
}

// Store connects to containerd. The namespace is made by its first object.
func (c *Containerd) Store(namespace, snapshotter string) *Store {
	c.host.t.Helper()
	return &Store{
		Client: c.Client(namespace), Snapshotter: snapshotter,
		namespace: namespace, cgroup: c.host.Cgroup, fifos: c.host.dir(c.host.Dir, "fifo"),
		runcRoot: c.host.dir(c.host.Dir, "runc"),
	}
}

// Context returns ctx with the store's namespace, which the services of containerd need.
func (s *Store) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, s.namespace)
}

// Snapshots is the store's snapshotter, as clients of containerd see it.
func (s *Store) Snapshots() snapshots.Snapshotter { return s.SnapshotService(s.Snapshotter) }

// ImportFile imports an archive of one image, of docker save or an OCI layout, and unpacks it.
func (s *Store) ImportFile(ctx context.Context, file string) (client.Image, error) {
	img, err := s.ImportPacked(ctx, file)
	if err != nil {
		return nil, err
	}
	if err := img.Unpack(ctx, s.Snapshotter); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", img.Name(), err)
	}
	return img, nil
}

// ImportPacked imports the image of an archive, and does not unpack it.
func (s *Store) ImportPacked(ctx context.Context, file string) (client.Image, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	imported, err := s.Import(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", file, err)
	}
	if len(imported) != 1 {
		return nil, fmt.Errorf("import %s: %d images", file, len(imported))
	}
	return client.NewImage(s.Client, imported[0]), nil
}

// Create makes a container whose snapshot has the container's id as its key. Its command runs as in a shell script.
func (s *Store) Create(ctx context.Context, id string, img client.Image, script string, opts ...snapshots.Opt) (client.Container, error) {
	c, err := s.NewContainer(ctx, id,
		client.WithImage(img),
		client.WithRuntime(plugins.RuntimeRuncV2, &options.Options{Root: s.runcRoot}),
		client.WithSnapshotter(s.Snapshotter),
		client.WithNewSnapshot(id, img, opts...),
		client.WithNewSpec(
			oci.WithImageConfigArgs(img, nil),
			oci.WithProcessArgs("/bin/sh", "-c", script),
			oci.WithCgroup("/"+s.cgroup+"/"+id),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", id, err)
	}
	return c, nil
}

// Result is the output of a process in a container, and its end.
type Result struct {
	Code   uint32
	Output string // of both streams
}

// RunTask runs a container's command to its end.
func (s *Store) RunTask(ctx context.Context, c client.Container) (_ Result, err error) {
	var out output
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &out, &out), cio.WithFIFODir(s.fifos)))
	if err != nil {
		return Result{}, fmt.Errorf("new task of %s: %w", c.ID(), err)
	}
	defer func() {
		_, e := task.Delete(ctx, client.WithProcessKill)
		err = errors.Join(err, e)
	}()
	defer context.AfterFunc(ctx, task.IO().Cancel)() // else the wait for its output has no end
	exited, err := task.Wait(ctx)
	if err != nil {
		return Result{}, err
	}
	if err := task.Start(ctx); err != nil {
		return Result{}, fmt.Errorf("start %s: %w", c.ID(), err)
	}
	status := <-exited
	code, _, err := status.Result()
	if err != nil {
		return Result{}, fmt.Errorf("wait for %s: %w", c.ID(), err)
	}
	task.IO().Wait()
	return Result{Code: code, Output: out.String()}, nil
}

// Run makes a container, runs it to its end and keeps it.
func (s *Store) Run(ctx context.Context, id string, img client.Image, script string, opts ...snapshots.Opt) (Result, error) {
	c, err := s.Create(ctx, id, img, script, opts...)
	if err != nil {
		return Result{}, err
	}
	return s.RunTask(ctx, c)
}

// StartTask starts a container's command, whose output goes to the file log.
func (s *Store) StartTask(ctx context.Context, c client.Container, log string) error {
	task, err := c.NewTask(ctx, cio.LogFile(log))
	if err != nil {
		return fmt.Errorf("new task of %s: %w", c.ID(), err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("start %s: %w", c.ID(), err)
	}
	return nil
}

// StopTask kills a container's command and waits until it is gone.
func (s *Store) StopTask(ctx context.Context, c client.Container) error {
	task, err := c.Task(ctx, nil)
	if err != nil {
		return err
	}
	_, err = task.Delete(ctx, client.WithProcessKill)
	return err
}

// RemoveContainer removes a container and its snapshot.
func (s *Store) RemoveContainer(ctx context.Context, id string) error {
	c, err := s.LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	return c.Delete(ctx, client.WithSnapshotCleanup)
}

// Commit makes an image of a container's changes to img, as nerdctl commit does: the new layer is the diff of the
// container's snapshot. The image is unpacked.
func (s *Store) Commit(ctx context.Context, id string, img client.Image, name string) (_ client.Image, err error) {
	// Nothing refers to the new content until the image is made.
	ctx, done, err := s.WithLease(ctx, leases.WithExpiration(time.Hour))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()

	layer, err := rootfs.CreateDiff(ctx, id, s.Snapshots(), s.DiffService())
	if err != nil {
		return nil, fmt.Errorf("diff of %s: %w", id, err)
	}
	target, err := s.appendLayer(ctx, img, layer)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", id, err)
	}
	made, err := s.ImageService().Create(ctx, images.Image{Name: name, Target: target})
	if err != nil {
		return nil, err
	}
	result := client.NewImage(s.Client, made)
	return result, result.Unpack(ctx, s.Snapshotter)
}

// appendLayer writes configuration and manifest of img with one more layer.
func (s *Store) appendLayer(ctx context.Context, img client.Image, layer ocispec.Descriptor) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	cs := s.ContentStore()
	manifest, err := images.Manifest(ctx, cs, img.Target(), img.Platform())
	if err != nil {
		return none, err
	}
	data, err := content.ReadBlob(ctx, cs, manifest.Config)
	if err != nil {
		return none, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return none, err
	}
	info, err := cs.Info(ctx, layer.Digest)
	if err != nil {
		return none, err
	}
	diffID, err := digest.Parse(info.Labels["containerd.io/uncompressed"])
	if err != nil {
		return none, fmt.Errorf("label of layer %s: %w", layer.Digest, err)
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	config.History = append(config.History, ocispec.History{CreatedBy: "commit"})

	manifest.Versioned = specs.Versioned{SchemaVersion: 2}
	if manifest.Config, err = s.writeJSON(ctx, manifest.Config.MediaType, config, map[string]string{
		"containerd.io/gc.ref.snapshot." + s.Snapshotter: identity.ChainID(config.RootFS.DiffIDs).String(),
	}); err != nil {
		return none, err
	}
	manifest.Layers = append(manifest.Layers, layer)
	refs := map[string]string{"containerd.io/gc.ref.content.0": manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		refs["containerd.io/gc.ref.content."+strconv.Itoa(i+1)] = l.Digest.String()
	}
	return s.writeJSON(ctx, manifest.MediaType, manifest, refs)
}

func (s *Store) writeJSON(ctx context.Context, mediaType string, value any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err = content.WriteBlob(ctx, s.ContentStore(), "harness-"+desc.Digest.String(), bytes.NewReader(data), desc, content.WithLabels(labels))
	return desc, err
}

// PushImage sends an image to a registry without TLS under the given reference.
func (s *Store) PushImage(ctx context.Context, img client.Image, reference string) error {
	if err := s.Push(ctx, reference, img.Target(), client.WithResolver(plainResolver())); err != nil {
		return fmt.Errorf("push %s: %w", reference, err)
	}
	return nil
}

// PullImage fetches an image from a registry without TLS and unpacks it.
func (s *Store) PullImage(ctx context.Context, reference string) (client.Image, error) {
	img, err := s.Pull(ctx, reference, client.WithResolver(plainResolver()), client.WithPullUnpack,
		client.WithPullSnapshotter(s.Snapshotter))
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", reference, err)
	}
	return img, nil
}

// FetchImage is PullImage, and does not unpack the image.
func (s *Store) FetchImage(ctx context.Context, reference string) (client.Image, error) {
	img, err := s.Fetch(ctx, reference, client.WithResolver(plainResolver()))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", reference, err)
	}
	return client.NewImage(s.Client, img), nil
}

// ImageTree mounts a view of an image's root filesystem for as long as f runs.
func (s *Store) ImageTree(ctx context.Context, img client.Image, f func(dir string) error) (err error) {
	ids, err := img.RootFS(ctx)
	if err != nil {
		return err
	}
	// Nothing refers to the view.
	ctx, done, err := s.WithLease(ctx, leases.WithExpiration(time.Hour))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()
	key := "tree-" + digest.FromString(img.Name()).Encoded()
	mounts, err := s.Snapshots().View(ctx, key, identity.ChainID(ids).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Snapshots().Remove(context.WithoutCancel(ctx), key)) }()
	return mount.WithTempMount(ctx, mounts, f)
}

// SnapshotTree mounts a snapshot's tree, to read it, for as long as f runs.
func (s *Store) SnapshotTree(ctx context.Context, key string, f func(dir string) error) error {
	mounts, err := s.Snapshots().Mounts(ctx, key)
	if err != nil {
		return err
	}
	return mount.WithReadonlyTempMount(ctx, mounts, f)
}

// Reach makes and removes a snapshot, for which containerd has to reach the snapshotter's server. It also asks for a blob that is not
// there, for which the differ has to reach containerd. Either fails for a moment after a daemon was started again.
func (s *Store) Reach(ctx context.Context) (err error) {
	ctx, done, err := s.WithLease(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()
	const key = "reached"
	mounts, err := s.Snapshots().Prepare(ctx, key, "")
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.Snapshots().Mounts(ctx, key)
	}
	if err != nil {
		return err
	}
	none := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("nothing has this digest"), Size: 1}
	if _, err := s.DiffService().Apply(ctx, none, mounts); !errdefs.IsNotFound(err) {
		return fmt.Errorf("apply a blob that is not there: %w", err)
	}
	return s.Snapshots().Remove(ctx, key)
}

// Keys lists the keys of the store's snapshots.
func (s *Store) Keys(ctx context.Context) ([]string, error) {
	var keys []string
	err := s.Snapshots().Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		keys = append(keys, info.Name)
		return nil
	})
	return keys, err
}

// Clear removes all containers and images, and collects garbage. Keys left afterwards are a leak.
func (s *Store) Clear(ctx context.Context) error {
	containers, err := s.Containers(ctx)
	if err != nil {
		return err
	}
	for _, c := range containers {
		if task, err := c.Task(ctx, nil); err == nil {
			if _, err := task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	list, err := s.ImageService().List(ctx)
	if err != nil {
		return err
	}
	for _, img := range list {
		if err := s.ImageService().Delete(ctx, img.Name); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return s.CollectGarbage(ctx)
}

// CollectGarbage runs containerd's collection to its end.
func (s *Store) CollectGarbage(ctx context.Context) error {
	// It runs when something is deleted synchronously.
	lease, err := s.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Minute))
	if err != nil {
		return err
	}
	return s.LeasesService().Delete(ctx, lease, leases.SynchronousDelete)
}

// RemoveLeases takes from clients the content that they hold without an image or container. It is for clients that
// have lost track.
func (s *Store) RemoveLeases(ctx context.Context) error {
	list, err := s.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range list {
		if err := s.LeasesService().Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// plainResolver reaches registries on this machine, which have no TLS.
func plainResolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
}
