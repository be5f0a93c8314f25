package soak

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// file is the content of a file: so many bytes that follow from a seed.
type file struct {
	seed uint64
	size int
}

func (f file) bytes() []byte {
	var key [32]byte
	copy(key[:], fmt.Sprintf("%d", f.seed))
	content := make([]byte, f.size)
	_, _ = rand.NewChaCha8(key).Read(content)
	return content
}

// tree is the content of a snapshot: its files by name, all of them in its root.
type tree map[string]file

const (
	maxFiles    = 12
	maxFileSize = 96 << 10
)

// edit changes some files in dir, and the tree with them. A file that cannot be written for want of space is removed.
// An error says that the content of dir is not known.
func (t tree) edit(rng *rand.Rand, dir string) error {
	for range 1 + rng.IntN(4) {
		names := slices.Sorted(maps.Keys(t))
		if len(names) > 0 && (len(names) >= maxFiles || rng.IntN(4) == 0) {
			name := names[rng.IntN(len(names))]
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return err
			}
			delete(t, name)
			continue
		}
		f := file{seed: rng.Uint64(), size: rng.IntN(maxFileSize)}
		name := fmt.Sprintf("file-%d", rng.IntN(2*maxFiles))
		delete(t, name)
		err := os.WriteFile(filepath.Join(dir, name), f.bytes(), 0o644)
		if noSpace(err) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		t[name] = f
	}
	return nil
}

// check says how dir differs from the tree.
func (t tree) check(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := slices.Sorted(maps.Keys(t)); !slices.Equal(want, names) {
		return fmt.Errorf("has the files %q, not %q", names, want)
	}
	for name, f := range t {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(f.bytes(), content) {
			return fmt.Errorf("the content of %s is another", name)
		}
	}
	return nil
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
