package zfs

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/treediff"
)

// nominate hints at all names of the inodes among changed that differ between two snapshots. baseDir and topDir are the
// mounted roots of the snapshots. nominate reads the entries of all directories of top, whose inode numbers lead from
// inodes to names. It looks at no file except those among changed.
//
// That is enough. If a name is in one tree only, or is another inode in each, its directory was changed or has no
// counterpart. nominate compares the entries of a changed directory. A directory without a counterpart is compared in
// full, whatever the hints. Any other name in top is the same inode as in base.
//
// Errors are those of reading the trees. Returns *[treediff.NoHintsError] if a path is too long to be looked up, or if the kernel
// lacks openat2. Returns it also if a changed directory has too many entries.
func nominate(ctx context.Context, changed changes, baseDir, topDir string) (*treediff.Hints, error) {
	base, err := openFrozenTree(baseDir)
	if err != nil {
		return nil, err
	}
	defer base.close()
	top, err := openFrozenTree(topDir)
	if err != nil {
		return nil, err
	}
	defer top.close()

	n := &nominator{changed: changed, hints: &treediff.Hints{}, trees: [2]*frozenTree{inBase: base, inTop: top}, most: maxCompared}
	var candidates []string
	for pending := []string{""}; len(pending) > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		dir := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		candidates = candidates[:0]
		if err := top.list(dir, func(e dirent) bool {
			if e.dir {
				pending = append(pending, joinPath(dir, e.name))
			}
			if changed.has(e.ino) {
				candidates = append(candidates, joinPath(dir, e.name))
			}
			return true
		}); err != nil {
			return nil, err
		}
		if dir == "" {
			candidates = append(candidates, "")
		}
		for _, path := range candidates {
			if err := n.candidate(ctx, path); err != nil {
				return nil, err
			}
		}
	}
	return n.hints, nil
}

// The indexes of the two trees in an array.
const (
	inBase = iota
	inTop
)

// nominator collects hints.
type nominator struct {
	changed changes
	hints   *treediff.Hints
	trees   [2]*frozenTree
	most    int // entries of a directory that are compared in memory
}

// maxCompared is the most entries of a directory that are compared in memory, of both trees together. Their names take up to
// a few hundred bytes each.
const maxCompared = 1 << 20

// candidate hints at a path of top, unless base has the same unchanged inode there. Of a changed directory it also
// hints at the entries that differ.
func (n *nominator) candidate(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var stat [2]unix.Statx_t
	var ok [2]bool
	var err error
	for s, t := range n.trees {
		if stat[s], ok[s], err = t.stat(path); err != nil {
			return err
		}
	}
	b, t := &stat[inBase], &stat[inTop]
	sameInode := ok[inBase] && ok[inTop] && isSameInode(path, b, t)
	if sameInode && b.Ctime == t.Ctime && !n.mayHaveChangedTwice(path, t) {
		return nil // it shares a block with an inode that was changed
	}
	n.hints.Add(path, treediff.Written)
	if sameInode && isDir(t) {
		return n.compareEntries(ctx, path, func(name string) error {
			n.hints.Add(name, 0)
			return nil
		})
	}
	return nil
}

// mayHaveChangedTwice reports whether an inode may have changed on both ways from the common snapshot. Then equal times mean
// nothing: both changes may have been within one tick of the kernel's clock. The root of a mounted snapshot has an inode number
// that belongs to the mount.
func (n *nominator) mayHaveChangedTwice(path string, t *unix.Statx_t) bool {
	if path == "" {
		return len(n.changed.base) > 0 && len(n.changed.top) > 0
	}
	return n.changed.onBoth(t.Ino)
}

// isSameInode reports whether the inodes at a path of both trees are the same file. The root of a mounted snapshot has
// an inode number that belongs to the mount.
func isSameInode(path string, b, t *unix.Statx_t) bool {
	return (path == "" || b.Ino == t.Ino) && b.Btime == t.Btime
}

func isDir(stat *unix.Statx_t) bool { return stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// compareEntries calls differs with each path in a directory of both trees that has another inode in each, or is in one
// tree only.
func (n *nominator) compareEntries(ctx context.Context, dir string, differs func(path string) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	differing := make(map[string]uint64) // names of either tree that are not known to be equal, with the inodes in base
	if err := n.trees[inBase].list(dir, func(e dirent) bool {
		differing[e.name] = e.ino
		return len(differing) <= n.most
	}); err != nil {
		return err
	}
	if len(differing) <= n.most {
		if err := n.trees[inTop].list(dir, func(e dirent) bool {
			if ino, ok := differing[e.name]; ok && ino == e.ino {
				delete(differing, e.name)
			} else {
				differing[e.name] = 0
			}
			return len(differing) <= n.most
		}); err != nil {
			return err
		}
	}
	if len(differing) > n.most {
		return &treediff.NoHintsError{Reason: "large-directory", Err: fmt.Errorf("%s has more than %d entries", dir, n.most)}
	}
	for name := range differing {
		if err := differs(joinPath(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
