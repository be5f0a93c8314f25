package containersstorage

import (
	"os"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/migrate/internal/rootdir"
)

// checkOwner refuses the root of another user for the superuser. That user's containers had mapped ids.
func checkOwner(root *rootdir.Dir) error {
	uid, _, err := root.Owner(".")
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 && uid != 0 {
		return fault.New(errdefs.ErrFailedPrecondition, "it belongs to user %d, for whom the ids of files were mapped: "+
			"move its images as that user, by podman save", uid)
	}
	return nil
}
