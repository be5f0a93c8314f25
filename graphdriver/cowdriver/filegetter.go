package cowdriver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/cowshed/cowshed/cowcommon"
)

// fileGetter serves the regular files of a view.
type fileGetter struct {
	view cowcommon.View
	root *os.Root

	closeOnce sync.Once
	closeErr  error
}

func newFileGetter(view cowcommon.View) (*fileGetter, error) {
	root, err := os.OpenRoot(view.Dir())
	if err != nil {
		return nil, err
	}
	return &fileGetter{view: view, root: root}, nil
}

// Get opens the regular file with that path in the layer. Returns fs.ErrNotExist if it does not exist. Whatever the
// layer's symbolic links say, nothing outside the layer is opened.
func (g *fileGetter) Get(name string) (io.ReadCloser, error) {
	f, err := openInRoot(g.root, name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("not a regular file: %w", fs.ErrInvalid)}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Close releases the view. Files that are open stay open.
func (g *fileGetter) Close() error {
	g.closeOnce.Do(func() {
		g.closeErr = errors.Join(g.root.Close(), g.view.Close())
	})
	return g.closeErr
}
