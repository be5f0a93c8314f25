package snapshotter

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cowshed/cowshed/btrfs"
	"github.com/cowshed/cowshed/internal/testfs"
)

// BenchmarkLifecycle measures the operations of one container beside few and beside many other snapshots: none
// should depend on how many there are.
func BenchmarkLifecycle(b *testing.B) {
	for _, others := range []int{10, 2000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			mnt := testfs.Btrfs(b, testfs.WithSimpleQuota(), testfs.WithSize(8<<30))
			backend, err := btrfs.Open(filepath.Join(mnt, "volumes"), btrfs.Options{})
			check(b, err)
			s, err := New(filepath.Join(mnt, "snapshotter"), backend, Options{})
			check(b, err)
			b.Cleanup(func() { check(b, s.Close()) })
			ctx := b.Context()
			_, err = s.Prepare(ctx, "unpack", "")
			check(b, err)
			check(b, s.Commit(ctx, "image", "unpack"))
			for i := range others {
				_, err := s.Prepare(ctx, fmt.Sprint("other-", i), "image")
				check(b, err)
			}

			n := 0
			key := func() string { n++; return fmt.Sprint("key-", n) }
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

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
