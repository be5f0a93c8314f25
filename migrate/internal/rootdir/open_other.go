//go:build !linux

package rootdir

import (
	"os"

	"github.com/containerd/errdefs"
)

func openDir(string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func (d *Dir) openDir(string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func (d *Dir) find(string) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func reopen(*os.File) (*os.File, error) { return nil, errdefs.ErrNotImplemented }

func ownerOf(*os.File) (uid, gid uint32, err error) { return 0, 0, errdefs.ErrNotImplemented }
