// Release makes the files that are published of a commit: static programs, packages for Debian and Red Hat, software bills of
// materials, and checksums.
//
// Usage:
//
//	release -maintainer ADDRESS -tree DIR -out DIR [-arch LIST] [-shared-cache] [-once]
//
// It builds the commit that is checked out in the tree twice: in clones with different paths, the second without the
// cache of builds. It puts the files into the directory of -out, which it replaces, if both builds gave the same bytes.
// Otherwise it names the files that differ, and exits with 1. With -once it builds once, for tests. The packages name the
// maintainer, so the same files come only of the same one.
//
// It is a module of its own because the library that makes packages, nfpm, requires many others.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	tree := flags.String("tree", ".", "the `directory` of the tree whose commit is built")
	out := flags.String("out", "dist", "the `directory` for the files, which is replaced")
	maintainer := flags.String("maintainer", "", "the `name and address` of the packages' maintainer, as in \"Jo Doe <jo@example.org>\"")
	arches := flags.String("arch", "amd64,arm64", "the architectures, with commas")
	sharedCache := flags.Bool("shared-cache", false, "use Go's cache for the second build too, which is quicker and shows less")
	once := flags.Bool("once", false, "build once, and compare nothing")
	if err := flags.Parse(args); err != nil {
		return flag.ErrHelp
	}

	if err := checkMaintainer(*maintainer); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "cowshed-release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	commit, err := checkedOut(ctx, *tree)
	if err != nil {
		return err
	}
	b := build{tree: *tree, commit: commit, maintainer: *maintainer, dir: filepath.Join(work, "one"), arches: strings.Split(*arches, ",")}
	if *once {
		if err := b.run(ctx); err != nil {
			return err
		}
		return replace(*out, b.dist())
	}
	dist, err := buildTwice(ctx, b, filepath.Join(work, "the-other", "deeper"), *sharedCache)
	if err != nil {
		return err
	}
	if err := replace(*out, dist); err != nil {
		return err
	}
	fmt.Printf("release: two builds gave the same files, which are in %s\n", *out)
	return nil
}

// replace puts the files of a directory in place of another.
func replace(dir, by string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.CopyFS(dir, os.DirFS(by))
}

// buildTwice builds as first says, and once more in another directory. It returns the directory of the first result, or an
// error that names the files that differ.
func buildTwice(ctx context.Context, first build, elsewhere string, sharedCache bool) (dist string, err error) {
	second := first
	second.dir = elsewhere
	if !sharedCache {
		second.cache = filepath.Join(elsewhere, "cache")
	}
	for _, b := range []build{first, second} {
		if err := b.run(ctx); err != nil {
			return "", err
		}
	}
	return first.dist(), compare(first.dist(), second.dist())
}
