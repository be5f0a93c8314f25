// Package textdiff shows the differences of two trees as text for people.
package textdiff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/moby/go-archive"
	"github.com/rogpeppe/go-internal/diff"

	"github.com/cowshed/cowshed/internal/printable"
)

// Limits bound the work and the output, in bytes.
type Limits struct {
	File  int64 // of a file whose text is shown
	Total int64 // of all files that are read
}

// Write writes the changes between two trees, top since base, which stay as they are meanwhile. base is "" for an empty tree.
//
// Regular files of UTF-8 are shown as a unified diff. Files with zero bytes, other encodings and large files are named with
// their sizes, and other things with their kinds. Whatever a terminal would act on is written as an escape. Paths with such
// bytes are quoted.
func Write(ctx context.Context, w io.Writer, top, base string, changes []archive.Change, limits Limits) (err error) {
	t := trees{limits: limits, left: limits.Total}
	defer func() { err = errors.Join(err, t.close()) }()
	if t.top, err = os.OpenRoot(top); err != nil {
		return err
	}
	if base != "" {
		if t.base, err = os.OpenRoot(base); err != nil {
			return err
		}
	}
	for _, change := range changes {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		text, err := t.change(change)
		if err != nil {
			return fmt.Errorf("show %s: %w", printable.Path(change.Path), err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

type trees struct {
	top, base *os.Root // base is nil if there is none
	limits    Limits
	left      int64 // of the total
}

func (t *trees) close() error {
	var errs []error
	for _, root := range []*os.Root{t.top, t.base} {
		if root != nil {
			errs = append(errs, root.Close())
		}
	}
	return errors.Join(errs...)
}

// entry is the file, directory or other thing of a path in a tree. The zero entry is nothing.
type entry struct {
	info fs.FileInfo
	link string // target of a symbolic link
	data []byte // of a file that is small enough
	read bool
}

func (e entry) there() bool { return e.info != nil }

func (e entry) regular() bool { return e.there() && e.info.Mode().IsRegular() }

// kind is the word for an entry.
func (e entry) kind() string {
	switch mode := e.info.Mode(); {
	case mode.IsRegular():
		return "file"
	case mode.IsDir():
		return "directory"
	case mode&fs.ModeSymlink != 0:
		return "symbolic link"
	case mode&fs.ModeNamedPipe != 0:
		return "fifo"
	case mode&fs.ModeSocket != 0:
		return "socket"
	}
	return "device"
}

// text reports whether a file's content can be shown.
func (e entry) text() bool {
	return e.read && utf8.Valid(e.data) && bytes.IndexByte(e.data, 0) < 0
}

// change describes one change, "" for a directory whose own facts are the same.
func (t *trees) change(change archive.Change) (string, error) {
	var before, after entry
	var err error
	if change.Kind != archive.ChangeAdd && t.base != nil {
		before, err = t.entry(t.base, change.Path)
	}
	if err == nil && change.Kind != archive.ChangeDelete {
		after, err = t.entry(t.top, change.Path)
	}
	if err != nil {
		return "", err
	}
	name := printable.Path(change.Path)
	switch {
	case (before.regular() || !before.there()) && (after.regular() || !after.there()):
		return t.files(name, change.Path, before, after)
	case before.there() && after.there() && before.kind() == after.kind():
		return sameKind(name, before, after), nil
	}
	var b strings.Builder
	for _, side := range []struct {
		verb string
		entry
	}{{"deleted", before}, {"added", after}} {
		switch {
		case !side.there():
		case side.link != "":
			fmt.Fprintf(&b, "%s %s %s -> %s\n", side.verb, side.kind(), name, printable.Path(side.link))
		case side.regular():
			fmt.Fprintf(&b, "%s file %s, %d bytes\n", side.verb, name, side.info.Size())
		default:
			fmt.Fprintf(&b, "%s %s %s\n", side.verb, side.kind(), name)
		}
	}
	return b.String(), nil
}

// entry looks a path up. The parents of a changed path are directories. The error does not name the path: its bytes are hostile.
func (t *trees) entry(root *os.Root, path string) (entry, error) {
	e, err := t.look(root, path)
	var named *fs.PathError
	if errors.As(err, &named) {
		err = fmt.Errorf("%s: %w", named.Op, named.Err)
	}
	return e, err
}

func (t *trees) look(root *os.Root, path string) (e entry, err error) {
	rel := strings.TrimPrefix(path, "/")
	if e.info, err = root.Lstat(rel); err != nil {
		return entry{}, err
	}
	if e.info.Mode()&fs.ModeSymlink != 0 {
		e.link, err = root.Readlink(rel)
		return e, err
	}
	if size := e.info.Size(); !e.info.Mode().IsRegular() || size > t.limits.File || size > t.left {
		return e, nil
	}
	f, err := root.Open(rel)
	if err != nil {
		return e, err
	}
	e.data, err = io.ReadAll(io.LimitReader(f, e.info.Size()))
	e.read = true
	t.left -= int64(len(e.data))
	return e, errors.Join(err, f.Close())
}

// files describes the change of a regular file, which one side may lack.
func (t *trees) files(name, path string, before, after entry) (string, error) {
	var modes string
	if before.there() && after.there() {
		modes = modeChange(name, before, after)
	}
	shown := func(e entry) bool { return !e.there() || e.text() }
	if !shown(before) || !shown(after) {
		return modes + t.named(name, before, after), nil
	}
	oldName, newName := printable.Path("a"+path), printable.Path("b"+path)
	switch {
	case bytes.Equal(before.data, after.data) && !before.there():
		return fmt.Sprintf("added file %s, 0 bytes\n", name), nil
	case bytes.Equal(before.data, after.data) && !after.there():
		return fmt.Sprintf("deleted file %s, 0 bytes\n", name), nil
	case bytes.Equal(before.data, after.data) && modes != "":
		return modes, nil
	case bytes.Equal(before.data, after.data):
		return fmt.Sprintf("changed file %s: not its content\n", name), nil
	case !before.there():
		oldName = os.DevNull
	case !after.there():
		newName = os.DevNull
	}
	unified := string(diff.Diff(oldName, before.data, newName, after.data))
	var b strings.Builder
	b.WriteString(modes)
	for line := range strings.Lines(unified) {
		b.WriteString(printable.Line(strings.TrimSuffix(line, "\n")))
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// named describes the change of a file whose content is not shown.
func (t *trees) named(name string, before, after entry) string {
	adjective := "binary "
	for _, e := range []entry{before, after} {
		if e.there() && !e.read {
			adjective = "large "
			if e.info.Size() <= t.limits.File {
				adjective = "further "
			}
		}
	}
	switch {
	case !before.there():
		return fmt.Sprintf("added %sfile %s, %d bytes\n", adjective, name, after.info.Size())
	case !after.there():
		return fmt.Sprintf("deleted %sfile %s, %d bytes\n", adjective, name, before.info.Size())
	}
	return fmt.Sprintf("changed %sfile %s, %d -> %d bytes\n", adjective, name, before.info.Size(), after.info.Size())
}

// sameKind describes the change of something other than a regular file.
func sameKind(name string, before, after entry) string {
	modes := modeChange(name, before, after)
	switch {
	case before.link != after.link:
		return fmt.Sprintf("changed symbolic link %s -> %s, was %s\n", name, printable.Path(after.link), printable.Path(before.link))
	case modes != "" || after.info.IsDir():
		return modes
	}
	return fmt.Sprintf("changed %s %s\n", after.kind(), name)
}

// modeChange describes another mode, "" if it is the same.
func modeChange(name string, before, after entry) string {
	const bits = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	was, is := before.info.Mode()&bits, after.info.Mode()&bits
	if was == is {
		return ""
	}
	return fmt.Sprintf("changed %s %s: mode %s -> %s\n", after.kind(), name, was, is)
}
