package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/layertar"
	"github.com/cowshed/cowshed/internal/contentstore"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkLifecycle measures the operations of one container beside few and beside many other snapshots: none
// should depend on how many there are.
func BenchmarkLifecycle(b *testing.B) {
	for _, others := range []int{10, 2000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			mnt := testfs.Btrfs(b, testfs.WithSimpleQuota(), testfs.WithSize(8<<30))
			backend, err := btrfs.Open(b.Context(), filepath.Join(mnt, "volumes"), btrfs.Options{})
			check(b, err)
			s, err := New(b.Context(), filepath.Join(mnt, "snapshotter"), backend, Options{})
			check(b, err)
			b.Cleanup(func() { check(b, s.Close()) })
			ctx := b.Context()
			_, err = s.Prepare(ctx, "unpack", "")
			check(b, err)
			check(b, s.Commit(ctx, "image", "unpack"))
			for i := range others {
				_, err := s.Prepare(ctx, fmt.Sprintf("moby/%d/other", i+1), "image")
				check(b, err)
			}

			n := 0
			key := func() string { n++; return fmt.Sprintf("moby/%d/key-%d", others+n, n) }
			measure := func(name string, op func(key string) error) {
				b.Run(name, func(b *testing.B) {
					for b.Loop() {
						b.StopTimer()
						k := key()
						if name != "prepare" {
							_, err := s.Prepare(ctx, k, "image")
							check(b, err)
							volume, err := s.Volume(ctx, k)
							check(b, err)
							check(b, os.WriteFile(filepath.Join(mnt, "volumes/subvolumes", volume, "file"), []byte(k), 0o644))
						}
						b.StartTimer()
						check(b, op(k))
					}
				})
			}
			measure("prepare", func(k string) error { _, err := s.Prepare(ctx, k, "image"); return err })
			measure("usage", func(k string) error { _, err := s.Usage(ctx, k); return err })
			measure("limit", func(k string) error {
				namespace, own := SplitKey(k)
				found, err := s.Key(ctx, namespace, own)
				if err != nil {
					return err
				}
				return s.SetLimit(ctx, found, 1<<30)
			})
			measure("commit", func(k string) error { return s.Commit(ctx, "c-"+k, k) })
			measure("remove", func(k string) error {
				if err := s.Remove(ctx, k); err != nil {
					return err
				}
				return s.Cleanup(ctx)
			})
		})
	}
}

// BenchmarkApply measures the time for a layer of 180 MB in 9,500 files. It comes from a content store behind a
// socket, by requests and from its files. Beside it stands the extraction of the same layer from memory.
func BenchmarkApply(b *testing.B) {
	mnt := testfs.Btrfs(b)
	store, err := contentstore.Open(filepath.Join(mnt, "content"))
	check(b, err)
	backend, err := btrfs.Open(b.Context(), filepath.Join(mnt, "volumes"), btrfs.Options{})
	check(b, err)
	s, err := New(b.Context(), filepath.Join(mnt, "snapshotter"), backend, Options{})
	check(b, err)
	b.Cleanup(func() { check(b, s.Close()) })
	remote := dialContent(b, store)
	requests := NewDiffer(s, remote)
	files := NewDiffer(s, remote, WithBlobFiles(func(context.Context) (string, error) { return filepath.Join(mnt, "content"), nil }))
	ctx := namespaces.WithNamespace(b.Context(), "bench")
	layer := testfs.BenchLayer(b)
	n := 0
	run := func(name string, apply func(mounts []mount.Mount, volume string) error) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				n++
				key := fmt.Sprint("active-", n)
				mounts, err := s.Prepare(ctx, key, "")
				check(b, err)
				volume, err := s.Volume(ctx, key)
				check(b, err)
				testfs.Sync(b, mnt)
				b.StartTimer()
				check(b, apply(mounts, volume))
				b.StopTimer()
				check(b, s.Remove(ctx, key))
				check(b, s.Cleanup(ctx))
				testfs.WaitDeleted(b, mnt)
				b.StartTimer()
			}
		})
	}
	run("memory", func(_ []mount.Mount, volume string) error {
		_, err := cowcommon.Apply(ctx, s.backend, volume, bytes.NewReader(layer), layertar.ApplyOptions{Logger: s.log})
		return err
	})
	for _, format := range []layertar.Format{layertar.Plain, layertar.Gzip, layertar.Zstd} {
		var blob bytes.Buffer
		w, err := layertar.Compress(&blob, format, 0)
		check(b, err)
		_, err = w.Write(layer)
		check(b, errors.Join(err, w.Close()))
		desc := ocispec.Descriptor{MediaType: format.MediaType(), Digest: digest.FromBytes(blob.Bytes()), Size: int64(blob.Len())}
		check(b, content.WriteBlob(ctx, store, desc.Digest.String(), &blob, desc))
		for from, differ := range map[string]*Differ{"requests": requests, "file": files} {
			run(format.String()+"/"+from, func(mounts []mount.Mount, _ string) error {
				_, err := differ.Apply(ctx, desc, mounts)
				return err
			})
		}
	}
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
