package sharedroot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/filemeta"
	"github.com/cowshed/cowshed/internal/overlaymark"
	"github.com/cowshed/cowshed/internal/sharedmark"
	"github.com/cowshed/cowshed/internal/treeat"
)

// Names in the directory of sharedmark.
const (
	upperName   = sharedmark.Upper
	workName    = "work"
	foldingName = "folding"          // the upper, from when a fold has begun
	stagedName  = "upper.new"        // the upper, until it is complete
	markVersion = "1"                // the first word of the mark
	dirMode     = 0o700              // of Cowshed's own directories
	ownSpace    = "trusted.cowshed." // begins the names of Cowshed's attributes
)

// state is the state of the root directory of a volume.
type state int

const (
	stateNone    state = iota // an ordinary tree
	stateShared               // it has an upper
	stateFolding              // a fold, or a prepare, has not ended: fold completes it
)

// inspect tells the state of the volume whose root is open for reading. lower is the name in its mark, which is as
// hostile as the tree. Returns errdefs.ErrNotImplemented if the mark is of another version.
func inspect(root *os.File) (s state, lower string, err error) {
	own, mark, err := sharedmark.Open(int(root.Fd()))
	if err != nil {
		return stateNone, "", fmt.Errorf("mark of a shared root: %w", err)
	}
	if own < 0 {
		// The last steps of a fold come after the mark.
		_, unfinished, err := readNote(treeat.File{FD: int(root.Fd())})
		if unfinished {
			s = stateFolding
		}
		return s, "", err
	}
	defer unix.Close(own)
	version, lower, _ := strings.Cut(mark, " ")
	if version != markVersion || lower == "" {
		return stateNone, "", fault.New(errdefs.ErrNotImplemented, "mark %s of a shared root: want version %s, and a name",
			treeat.Quote(mark), markVersion)
	}
	isShared, err := exists(own, upperName)
	if err != nil {
		return stateNone, "", err
	}
	if isShared {
		return stateShared, lower, nil
	}
	return stateFolding, lower, nil
}

// exists reports whether a directory has that name.
func exists(dir int, name string) (bool, error) {
	var st unix.Stat_t
	err := treeat.Lstat(dir, name, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat %s: %w", name, err)
	}
	return true, nil
}

// prepare makes a volume of style snapshot, whose root is open for reading, a shared one. lower is the name of the
// volume that the tree is equal to. A crash leaves a volume in stateFolding or, between two calls, an empty directory
// without a mark.
//
// Returns errdefs.ErrFailedPrecondition if the tree has a file of the reserved name.
func prepare(root *os.File, lower string) error {
	own, st, err := makeOwn(int(root.Fd()), lower)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if err := unix.Renameat(own, stagedName, own, upperName); err != nil {
		return errors.Join(fmt.Errorf("rename directory %s: %w", stagedName, err), removeOwn(int(root.Fd()), &st))
	}
	return nil
}

// makeOwn makes and opens Cowshed's directory at the root of a volume. In it is an empty directory, the staged upper, with
// the attributes of the root, which st describes. If makeOwn fails, nothing is left.
func makeOwn(root int, lower string) (own int, st unix.Stat_t, err error) {
	if err := unix.Fstat(root, &st); err != nil {
		return -1, st, fmt.Errorf("root: %w", err)
	}
	if err := unix.Mkdirat(root, sharedmark.Dir, dirMode); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return -1, st, fault.New(errdefs.ErrFailedPrecondition, "the tree has a file /%s, which a shared root cannot have", sharedmark.Dir)
		}
		return -1, st, fmt.Errorf("make directory %s: %w", sharedmark.Dir, err)
	}
	own, err = treeat.Open(root, sharedmark.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err == nil {
		if err = fillOwn(own, root, lower, &st); err == nil {
			err = filemeta.SetTimes(treeat.File{FD: root}, &st)
		}
		if err != nil {
			unix.Close(own)
		}
	}
	if err != nil {
		return -1, st, errors.Join(fmt.Errorf("directory %s: %w", sharedmark.Dir, err), removeOwn(root, &st))
	}
	return own, st, nil
}

func fillOwn(own, root int, lower string, st *unix.Stat_t) error {
	if err := makePrivate(own, lower); err != nil {
		return err
	}
	for _, name := range []string{workName, stagedName} {
		if err := unix.Mkdirat(own, name, dirMode); err != nil {
			return fmt.Errorf("make directory %s: %w", name, err)
		}
	}
	meta := filemeta.Copier{IsContent: isContent}
	target := treeat.File{Dir: own, Name: stagedName, FD: -1}
	err := meta.Set(target, treeat.File{FD: root}, st)
	if err == nil {
		err = filemeta.SetTimes(target, st)
	}
	if err != nil {
		return fmt.Errorf("attributes of the root: %w", err)
	}
	return nil
}

// removeOwn removes Cowshed's directory, which has few names, and gives the root the times in st. It takes no context:
// its callers undo a failed step, also when they are cancelled.
func removeOwn(root int, st *unix.Stat_t) error {
	return errors.Join(treeat.RemoveTree(context.Background(), root, sharedmark.Dir), filemeta.SetTimes(treeat.File{FD: root}, st))
}

// makePrivate gives a fresh directory its mark, and takes away all that it has inherited from the root.
func makePrivate(dir int, lower string) error {
	file := treeat.File{FD: dir}
	if err := file.SetXattr(sharedmark.Xattr, []byte(markVersion+" "+lower)); err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	for _, name := range []string{treeat.ACLAccess, treeat.ACLDefault} {
		if err := file.RemoveXattr(name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("remove extended attribute %s: %w", name, err)
		}
	}
	if err := file.Chown(0, 0); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := file.Chmod(dirMode); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return nil
}

// isContent tells the extended attributes that belong to the tree, and neither to overlayfs nor to Cowshed.
func isContent(name string) bool {
	return !strings.HasPrefix(name, overlaymark.Space) && !strings.HasPrefix(name, ownSpace)
}
