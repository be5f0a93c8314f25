package treecopy_test

import (
	"context"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/treecopy"
	"github.com/cowshed/cowshed/cowcommon/treediff"
	"github.com/cowshed/cowshed/internal/testfs"
)

// Trees on one filesystem. TestExamples makes them.
var image, container, changed = "/srv/image", "/srv/container", "/srv/changes"

func TestExamples(t *testing.T) {
	mnt := testfs.Btrfs(t)
	image, container, changed = filepath.Join(mnt, "image"), filepath.Join(mnt, "container"), filepath.Join(mnt, "changes")
	makeFiles(t, image, map[string]string{"etc/hostname": "image", "etc/motd": "hello"})
	makeFiles(t, container, map[string]string{"etc/hostname": "web"})
	makeFiles(t, changed, map[string]string{"etc/.wh.hostname": "", "etc/hosts": "::1 web"})
	testfs.Example(t, ExampleCopy, "removed: 1\netc/hostname: web")
	testfs.Example(t, ExampleMerge, "etc/hosts: ::1 web")
}

func makeFiles(t *testing.T, dir string, files map[string]string) {
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

// An image becomes like a container that was made from it. Run by TestExamples.
func ExampleCopy() {
	ctx := context.Background()
	changes, err := treediff.Compare(ctx, container, image, nil)
	if err != nil {
		log.Fatal(err)
	}
	dst, src := open(image), open(container)
	defer dst.Close()
	defer src.Close()
	report, err := treecopy.Copy(ctx, dst, src, changes, treecopy.Options{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("removed:", report.Removed)
	printFiles(image)
}

// Changes in the form of aufs are merged into the tree that they were made from. Run by TestExamples.
func ExampleMerge() {
	dst, src := open(image), open(changed)
	defer dst.Close()
	defer src.Close()
	if _, err := treecopy.Merge(context.Background(), dst, src, treecopy.AufsMarks, treecopy.Options{}); err != nil {
		log.Fatal(err)
	}
	printFiles(image)
}

func open(dir string) *os.File {
	f, err := os.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	return f
}

// printFiles prints the files of a tree with their content.
func printFiles(dir string) {
	tree := os.DirFS(dir)
	err := fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(tree, path)
		fmt.Printf("%s: %s\n", path, text)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}
