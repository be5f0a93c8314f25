package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"

	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// maxConfig is more than any configuration has.
const maxConfig = 4 << 20

// readConfig reads a file that a person may have written; nil if it is not there. It returns its name without symbolic
// links.
func readConfig(file string) (real string, text []byte, err error) {
	real, err = resolve(file)
	if err != nil {
		return "", nil, err
	}
	info, err := os.Lstat(real)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return real, nil, nil
	case err != nil:
		return "", nil, err
	case !info.Mode().IsRegular():
		return "", nil, &RefusedError{File: file, Reason: "it is no regular file"}
	case hardLinks(info) > 1:
		return "", nil, &RefusedError{File: file, Reason: "it has other names too (hard links), which would keep the old content"}
	case info.Size() > maxConfig:
		return "", nil, &RefusedError{File: file, Reason: fmt.Sprintf("it has %d bytes, which is too much for a configuration", info.Size())}
	}
	text, err = os.ReadFile(real)
	if err != nil {
		return "", nil, err
	}
	if !utf8.Valid(text) {
		return "", nil, &RefusedError{File: file, Reason: "it is not in UTF-8"}
	}
	if text == nil {
		text = []byte{}
	}
	return real, text, nil
}

// resolve follows symbolic links, also where the file or its directories are not there yet.
func resolve(file string) (string, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(file)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return real, err
	}
	if info, err := os.Lstat(file); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		to, _ := os.Readlink(file)
		return "", &RefusedError{File: file, Reason: fmt.Sprintf("it is a symbolic link to %s, which is not there", to)}
	}
	dir, err := resolve(filepath.Dir(file))
	return filepath.Join(dir, filepath.Base(file)), err
}

// Modes of files that are made.
const (
	newMode    fs.FileMode = 0o644
	recordMode fs.FileMode = 0o600 // a configuration may have passwords
)

// replaceFile gives a file a content, all at once, with the mode and owner that it has. A new one gets mode. If it fails
// the file has the one content or the other.
func replaceFile(file string, content []byte, mode fs.FileMode) error {
	removeTemporary(file)
	f, err := atomicfile.Create(filepath.Dir(file), temporaryPattern(file))
	if err != nil {
		return err
	}
	if err := fill(f.File, file, content, mode); err != nil {
		return errors.Join(err, f.Discard())
	}
	return f.Commit(file)
}

// fill gives f the content and attributes of the file that it will replace.
func fill(f *os.File, file string, content []byte, mode fs.FileMode) error {
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = f.Chmod(mode)
	case err == nil:
		err = copyAttributes(f, file, info)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return err
}

// temporaryPattern has no name that a pattern like *.toml matches.
func temporaryPattern(file string) string { return "." + filepath.Base(file) + ".cowshed-*" }

// removeTemporary removes the remains of an interrupted replaceFile. A writer of the file holds the lock.
func removeTemporary(file string) {
	dir, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		return // the next writer says so
	}
	for _, entry := range dir {
		if matches, err := filepath.Match(temporaryPattern(file), entry.Name()); err == nil && matches {
			_ = os.Remove(filepath.Join(filepath.Dir(file), entry.Name())) // else it stays, hidden
		}
	}
}

// removeFile removes a file if it is there.
func removeFile(file string) error {
	if err := os.Remove(file); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return syncdir.Sync(filepath.Dir(file))
}

// missingDirs lists a directory and those above it that are not there, the lowest last.
func missingDirs(dir string) []string {
	var missing []string
	for dir != filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, dir)
		dir = filepath.Dir(dir)
	}
	slices.Reverse(missing)
	return missing
}

// makeDirs makes a directory with those above it, and returns the new ones, the lowest last.
func makeDirs(dir string) (made []string, err error) {
	for _, missing := range missingDirs(dir) {
		if err := os.Mkdir(missing, 0o755); err != nil {
			return made, err
		}
		made = append(made, missing)
		if err := syncdir.Sync(filepath.Dir(missing)); err != nil {
			return made, err
		}
	}
	return made, nil
}

// removeDirs removes directories that makeDirs has made, if they are empty.
func removeDirs(made []string) {
	for _, dir := range slices.Backward(made) {
		if os.Remove(dir) != nil {
			return // it has something of others
		}
	}
}

// existingDir is the directory of a file, or the first above it that is there.
func existingDir(file string) string {
	dir := filepath.Dir(file)
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
