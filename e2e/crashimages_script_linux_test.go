package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/image"
	"github.com/cowshed/cowshed/quota"
)

// step is an operation of the script that the power is cut in.
type step struct {
	name string
	run  func(ctx context.Context, h *host) error
	// after changes the kept content to that after run.
	after func(k kept)
	// between are states that a power cut in the middle of run may leave, besides those of before and after. Each
	// changes a copy of the content kept before.
	between []func(k kept)
	// partial: in the middle of it there are partial layers of an image.
	partial bool
	// commits: earlier removals can no longer come back.
	commits bool
}

// innerVolume is the name of a subvolume that is made inside a layer.
const innerVolume = "inner-volume"

// script returns all operations, the rounds one after the other, and the kept content after each of them: keeps[i] is
// the content kept before step i.
func script(s system, rounds int) (steps []step, keeps []kept) {
	for round := range rounds {
		steps = append(steps, layerSteps(s, round)...)
		steps = append(steps, imageSteps(round)...)
		steps = append(steps, snapshotSteps(s, round)...)
	}
	k := newKept()
	for _, st := range steps {
		keeps = append(keeps, k)
		k = k.clone()
		st.after(k)
		if st.commits || s.driver != "btrfs" { // on ZFS a removed volume is gone when Remove returns
			clear(k.removed)
		}
	}
	return steps, append(keeps, k)
}

// random is a content that no other file has.
func random(seed string, size int) string {
	var key [32]byte
	copy(key[:], seed)
	content := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(content) // it never fails
	return string(content)
}

func unchanged(kept) {}

// layerSteps are the operations of a driver and of its backend.
func layerSteps(s system, round int) []step {
	id := func(name string) string { return fmt.Sprintf("%s-%d", name, round) }
	base, top, live, leaf := id("base"), id("top"), id("live"), id("leaf")
	first := tree{"etc/": "", "etc/conf": random(base+"conf", 2000), "bin/": "", "bin/tool": random(base+"tool", 300<<10), "bin/few": "few"}
	second := tree{"etc/": "", "etc/.wh.conf": "", "new/": "", "new/data": random(top, 100<<10), "bin/": "", "bin/few": "more"}
	third := tree{"log": random(live, 60<<10)}
	topFiles := first.with(second)
	liveFiles := topFiles.with(third)
	var limit, lower uint64
	if s.limits() {
		limit, lower = 64<<20, 32<<20
	}

	create := func(name string) step {
		return step{
			name: "create " + name, commits: true,
			run:   func(_ context.Context, h *host) error { return h.d.Create(name, "", nil) },
			after: func(k kept) { k.volumes[name] = keptVolume{files: tree{}} },
		}
	}
	apply := func(name string, layer, files tree) step {
		filled := func(files tree) func(kept) {
			return func(k kept) { k.change(name, func(v *keptVolume) { v.files = files }) }
		}
		return step{
			name: "apply to " + name, commits: true,
			run: func(_ context.Context, h *host) error {
				_, err := h.d.ApplyDiff(name, "", bytes.NewReader(layerTar(layer)))
				return err
			},
			after: filled(files), between: []func(kept){filled(nil)},
		}
	}
	clone := func(name, source string, limit uint64, files tree) step {
		sealed := func(k kept) { k.change(source, func(v *keptVolume) { v.sealed = true }) }
		return step{
			name: "clone " + name + " of " + source, commits: true,
			run: func(_ context.Context, h *host) error {
				opts := &graphdriver.CreateOpts{}
				if limit > 0 {
					opts.StorageOpt = map[string]string{"size": strconv.FormatUint(limit, 10)}
				}
				return h.d.CreateReadWrite(name, source, opts)
			},
			after:   func(k kept) { sealed(k); k.volumes[name] = keptVolume{parent: source, limit: limit, files: files} },
			between: []func(kept){sealed},
		}
	}
	remove := func(name string) step {
		return step{
			name:  "remove " + name,
			run:   func(_ context.Context, h *host) error { return h.d.Remove(name) },
			after: func(k kept) { k.remove(name) },
		}
	}
	cloneInUse := step{
		name: "write to " + top + " and clone " + live + " of it in use", commits: true,
		run: func(ctx context.Context, h *host) error {
			return h.in(ctx, h.d.Backend(), top, func(dir string) error {
				return errors.Join(writeTree(dir, third), h.d.CreateReadWrite(live, top, nil))
			})
		},
		after: func(k kept) {
			k.change(top, func(v *keptVolume) { v.files = liveFiles })
			k.volumes[live] = keptVolume{parent: top, files: liveFiles}
		},
		between: []func(kept){func(k kept) { k.change(top, func(v *keptVolume) { v.files = nil }) }},
	}
	diffPath := step{
		name: "files of the diff of " + top, after: unchanged,
		run: func(_ context.Context, h *host) error {
			_, release, err := h.d.DiffPath(top)
			if err != nil {
				return err
			}
			return release()
		},
	}
	diff := step{
		name: "diff of " + top, after: unchanged,
		run: func(_ context.Context, h *host) error {
			r, err := h.d.Diff(top, base)
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			return errors.Join(err, r.Close())
		},
	}
	setLimit := step{
		name: "limit " + top, commits: true,
		run: func(ctx context.Context, h *host) error {
			return cowcommon.SetLimit(ctx, h.d.Backend(), top, quota.Limit{Bytes: lower})
		},
		after: func(k kept) { k.change(top, func(v *keptVolume) { v.limit = lower }) },
	}
	rename := step{
		name: "rename " + id("old"), commits: true,
		run: func(ctx context.Context, h *host) error {
			return cowcommon.Rename(ctx, h.d.Backend(), id("old"), id("renamed"))
		},
		after: func(k kept) { k.volumes[id("renamed")] = k.volumes[id("old")]; delete(k.volumes, id("old")) },
	}
	seal := step{
		name: "seal " + live, commits: true,
		run:   func(ctx context.Context, h *host) error { return cowcommon.Seal(ctx, h.d.Backend(), live) },
		after: func(k kept) { k.change(live, func(v *keptVolume) { v.sealed = true }) },
	}
	receive := func(name, source, from, to string, files tree) step {
		received := func(sealed bool) func(kept) {
			return func(k kept) { k.volumes[name] = keptVolume{parent: source, sealed: sealed, files: files} }
		}
		return step{
			name: "receive " + name, commits: true,
			run: func(ctx context.Context, h *host) error { return h.copyVolume(ctx, from, to, source, name) },
			// The parent of an incremental stream must not change any more.
			after: received(true), between: []func(kept){received(false)},
		}
	}
	takeBack := step{
		name: "take back what is written to " + leaf, commits: true,
		run: func(ctx context.Context, h *host) error {
			volume, err := cowcommon.Keep(ctx, h.d.Backend(), leaf)
			if err != nil {
				return err
			}
			err = h.in(ctx, h.d.Backend(), leaf, func(dir string) error { return writeTree(dir, tree{"wrong": random(leaf, 90<<10)}) })
			return errors.Join(err, volume.Restore(ctx), volume.Close())
		},
		after: func(k kept) {
			if s.driver == "btrfs" { // where the snapshot that takes the place of the volume is not one of live
				k.change(leaf, func(v *keptVolume) { v.parent = "" })
			}
		},
		between: []func(kept){func(k kept) { k.change(leaf, func(v *keptVolume) { v.files = nil }) }},
	}
	inner := first.with(tree{innerVolume + "/": "", innerVolume + "/file": random(id("nest"), 3000)})
	nested := []step{
		clone(id("nest"), base, 0, first),
		{
			name: "make a volume in " + id("nest"), commits: true,
			run: func(ctx context.Context, h *host) error {
				err := h.in(ctx, h.d.Backend(), id("nest"), func(dir string) error {
					return errors.Join(makeVolume(dir, innerVolume), writeTree(dir, tree{innerVolume + "/file": inner[innerVolume+"/file"]}))
				})
				return errors.Join(err, h.d.Backend().Sync(ctx, id("nest")))
			},
			after:   func(k kept) { k.change(id("nest"), func(v *keptVolume) { v.files = inner }) },
			between: []func(kept){func(k kept) { k.change(id("nest"), func(v *keptVolume) { v.files = nil }) }},
		},
		remove(id("nest")),
	}

	steps := []step{create(base), apply(base, first, first), clone(top, base, limit, first), apply(top, second, topFiles)}
	if s.limits() {
		steps = append(steps, setLimit)
	} else {
		lower = limit
	}
	steps = append(steps, cloneInUse, diff, diffPath, create(id("old")), rename, seal, clone(leaf, live, limit, liveFiles), takeBack, remove(leaf))
	if s.driver == "btrfs" && !s.shared { // overlayfs passes no ioctl on
		steps = append(steps, nested...)
	}
	if s.driver == "zfs" {
		steps = append(append(steps, adoptSteps(round, limit)...), remove(id("adopted")))
	}
	if s.shared {
		steps = append(steps, clone(id("one"), base, 0, first))
		steps = append(steps, sharedSteps(id("one"), id("two"), id("three"), remove)...)
		for _, style := range []cowcommon.RootStyle{cowcommon.SnapshotRoot, cowcommon.SharedRoot, cowcommon.SnapshotRoot} {
			steps = append(steps, styleStep(top, style))
		}
	}
	return append(steps,
		receive(id("received"), "", "", base, first),
		receive(id("increment"), id("received"), base, top, liveFiles),
		remove(id("received")), remove(id("increment")), remove(top), remove(live))
}

// adoptSteps adopt a dataset of another program, which is settled and destroyed.
func adoptSteps(round int, limit uint64) []step {
	adopted, foreign := fmt.Sprintf("adopted-%d", round), fmt.Sprintf("foreign-%d", round)
	files := tree{"file": random(foreign, 90<<10)}
	own := func(h *host) string { return filepath.Join(strings.TrimPrefix(h.mnt, "/"), foreign) } // the pool is mounted by its name
	return []step{
		{
			name: "make " + foreign, after: unchanged,
			run: func(_ context.Context, h *host) error {
				if err := exec.Command("zfs", "create", own(h)).Run(); err != nil {
					return err
				}
				return writeTree(filepath.Join(h.mnt, foreign), files)
			},
		},
		{
			name: "adopt " + foreign, commits: true,
			run: func(ctx context.Context, h *host) error {
				return cowcommon.Adopt(ctx, h.d.Backend(), adopted, "", own(h), cowcommon.VolumeOptions{Limit: quota.Limit{Bytes: limit}})
			},
			after: func(k kept) { k.volumes[adopted] = keptVolume{limit: limit, files: files} },
		},
		{
			name: "settle " + adopted, after: unchanged,
			run: func(ctx context.Context, h *host) error { return cowcommon.Settle(ctx, h.d.Backend(), adopted) },
			// It has no limit while its dataset is promoted. The next Settle gives it back.
			between: []func(kept){func(k kept) { k.change(adopted, func(v *keptVolume) { v.limit = 0 }) }},
		},
		{
			name: "destroy " + foreign, after: unchanged,
			run: func(_ context.Context, h *host) error { return exec.Command("zfs", "destroy", "-r", own(h)).Run() },
		},
	}
}

// imageSteps are the operations of the store of images.
func imageSteps(round int) []step {
	name := fmt.Sprintf("image-%d:latest", round)
	lower := tree{"a/": "", "a/b": random(name+"b", 50<<10)}
	upper := tree{"a/": "", "a/.wh.b": "", "a/c": random(name+"c", 80<<10)}
	archive, layers := imageArchive(name, lower, upper)
	imported := func(n int, sealed bool) func(kept) {
		return func(k kept) {
			k.volumes[layers[0]] = keptVolume{sealed: sealed, files: lower}
			if n > 1 {
				k.volumes[layers[1]] = keptVolume{parent: layers[0], files: lower.with(upper)}
			}
		}
	}
	done := func(k kept) { imported(2, true)(k); k.images[name] = struct{}{} }
	return []step{
		{
			name: "import " + name, commits: true, partial: true, after: done,
			between: []func(kept){imported(1, false), imported(1, true), imported(2, true)},
			run: func(ctx context.Context, h *host) error {
				src, err := image.Open(ctx, image.Reference{Transport: image.DockerArchive, Path: "-"}, image.OpenOptions{Stdin: bytes.NewReader(archive)})
				if err != nil {
					return err
				}
				_, err = h.images.Import(ctx, src, image.ImportOptions{})
				return errors.Join(err, src.Close())
			},
		},
		{
			name: "remove " + name,
			run:  func(ctx context.Context, h *host) error { _, err := h.images.Remove(ctx, name); return err },
			after: func(k kept) {
				delete(k.images, name)
				k.remove(layers[0])
				k.remove(layers[1])
			},
			between: []func(kept){ // the record goes last
				func(k kept) { k.remove(layers[1]) },
				func(k kept) { k.remove(layers[1]); k.remove(layers[0]) },
			},
		},
	}
}

// snapshotSteps are the operations of containerd's snapshotter.
func snapshotSteps(s system, round int) []step {
	id := func(name string) string { return fmt.Sprintf("%s-%d", name, round) }
	extract, layer, container, committed := "extract-"+id("x"), id("layer"), id("container"), id("committed")
	first := tree{"a": random(layer, 100<<10)}
	second := tree{"b": random(container, 70<<10)}
	var limit uint64
	if s.limits() {
		limit = 16 << 20
	}

	prepare := func(key, parent string, limit uint64, files tree) step {
		return step{
			name: "prepare " + key,
			run: func(ctx context.Context, h *host) error {
				var opts []snapshots.Opt
				if limit > 0 {
					opts = append(opts, snapshots.WithLabels(map[string]string{"containerd.io/snapshot/max-size": strconv.FormatUint(limit, 10)}))
				}
				_, err := h.snapshots.Prepare(ctx, key, parent, opts...)
				return err
			},
			after: func(k kept) {
				k.snapshots[key] = keptSnapshot{kind: snapshots.KindActive, parent: parent, limit: limit, files: files}
			},
		}
	}
	commit := func(name, key string, changes, files tree) step {
		written := func(k kept) {
			active := k.snapshots[key]
			active.files = nil
			k.snapshots[key] = active
		}
		return step{
			name: "write to " + key + " and commit it",
			run: func(ctx context.Context, h *host) error {
				volume, err := h.snapshots.Volume(ctx, key)
				if err != nil {
					return err
				}
				err = h.in(ctx, h.backend, volume, func(dir string) error { return writeTree(dir, changes) })
				return errors.Join(err, h.snapshots.Commit(ctx, name, key))
			},
			after: func(k kept) {
				snapshot := k.snapshots[key]
				delete(k.snapshots, key)
				snapshot.kind, snapshot.files = snapshots.KindCommitted, files
				k.snapshots[name] = snapshot
			},
			between: []func(kept){written},
		}
	}
	remove := func(key string) step {
		return step{
			name:  "remove snapshot " + key,
			run:   func(ctx context.Context, h *host) error { return h.snapshots.Remove(ctx, key) },
			after: func(k kept) { delete(k.snapshots, key) },
		}
	}
	view := step{
		name: "view of " + committed,
		run: func(ctx context.Context, h *host) error {
			_, err := h.snapshots.View(ctx, id("view"), committed)
			return err
		},
		after: func(k kept) { k.snapshots[id("view")] = keptSnapshot{kind: snapshots.KindView, parent: committed} },
	}
	cleanUp := step{name: "clean up", run: func(ctx context.Context, h *host) error { return h.snapshots.Cleanup(ctx) }, after: unchanged}
	return []step{
		prepare(extract, "", 0, tree{}), commit(layer, extract, first, first),
		prepare(container, layer, limit, first), commit(committed, container, second, first.with(second)),
		view, remove(id("view")), remove(committed), cleanUp,
		prepare(container, layer, limit, first), remove(container), cleanUp,
	}
}

// in calls do with the root of a volume's tree.
func (h *host) in(ctx context.Context, b cowcommon.Backend, volume string, do func(dir string) error) error {
	dir, err := b.Mount(ctx, volume, "")
	if err != nil {
		return err
	}
	return errors.Join(do(dir), b.Unmount(ctx, volume))
}

// copyVolume sends a volume, incrementally unless from is "", and receives it as name, which builds on source.
func (h *host) copyVolume(ctx context.Context, from, to, source, name string) (err error) {
	b := h.d.Backend()
	var base cowcommon.View
	if from != "" {
		if base, err = b.View(ctx, from); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, base.Close()) }()
	}
	top, err := b.View(ctx, to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, top.Close()) }()
	var stream bytes.Buffer
	if err := cowcommon.Send(ctx, b, &stream, base, top); err != nil {
		return err
	}
	return cowcommon.Receive(ctx, b, name, source, &stream)
}

// makeVolume makes a subvolume in a layer.
func makeVolume(dir, name string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(btrfsctl.CreateSubvolume(int(f.Fd()), name, nil), f.Close())
}

func writeTree(dir string, files tree) error {
	for _, path := range slices.Sorted(maps.Keys(files)) {
		var err error
		if strings.HasSuffix(path, "/") {
			err = os.MkdirAll(filepath.Join(dir, path), 0o755)
		} else {
			err = os.WriteFile(filepath.Join(dir, path), []byte(files[path]), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// layerTar is the tar of a layer.
func layerTar(files tree) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Name: path, Mode: 0o644, Size: int64(len(files[path])), Format: tar.FormatPAX}
		if strings.HasSuffix(path, "/") {
			header.Typeflag, header.Mode = tar.TypeDir, 0o755
		}
		// Writing to memory fails only for headers that cannot be.
		_ = w.WriteHeader(header)
		_, _ = io.WriteString(w, files[path])
	}
	_ = w.Close()
	return out.Bytes()
}

// imageArchive makes an image as docker save writes it, and returns the names of its layers too.
func imageArchive(tag string, layers ...tree) (archive []byte, ids []string) {
	img := empty.Image
	must := func(err error) {
		if err != nil {
			panic(err) // all of it is in memory
		}
	}
	for _, files := range layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layerTar(files))), nil })
		must(err)
		img, err = mutate.AppendLayers(img, layer)
		must(err)
	}
	config, err := img.ConfigFile()
	must(err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", image.HostPlatform().Architecture
	img, err = mutate.ConfigFile(img, config)
	must(err)
	parsed, err := name.NewTag(tag)
	must(err)
	var out bytes.Buffer
	must(tarball.Write(parsed, img, &out))
	return out.Bytes(), chainIDs(config.RootFS.DiffIDs)
}

// chainIDs are the names that the store of images gives to layers.
func chainIDs(diffIDs []v1.Hash) (ids []string) {
	digests := make([]digest.Digest, len(diffIDs))
	for i, h := range diffIDs {
		digests[i] = digest.Digest(h.String())
	}
	for _, chain := range identity.ChainIDs(digests) {
		ids = append(ids, chain.Encoded())
	}
	return ids
}
