//go:build !linux

package detect

import (
	"context"
	"fmt"
	"runtime"

	"github.com/cowshed/cowshed/graphdriver"
)

func notOnThisPlatform() error {
	return fmt.Errorf("%w: on %s", graphdriver.ErrNotSupported, runtime.GOOS)
}

// Probe answers with graphdriver.ErrNotSupported on this platform.
func Probe(string) (Filesystem, error) { return Filesystem{}, notOnThisPlatform() }

// Btrfs answers with graphdriver.ErrNotSupported on this platform.
func Btrfs(string) error { return notOnThisPlatform() }

// BtrfsDeviceErrors answers with graphdriver.ErrNotSupported on this platform.
func BtrfsDeviceErrors(string) ([]string, error) { return nil, notOnThisPlatform() }

// ZFS answers with graphdriver.ErrNotSupported on this platform.
func ZFS(context.Context, string) error { return notOnThisPlatform() }

// ZFSDataset answers with graphdriver.ErrNotSupported on this platform.
func ZFSDataset(context.Context, string) error { return notOnThisPlatform() }

// SimpleQuota answers with graphdriver.ErrNotSupported on this platform.
func SimpleQuota() error { return notOnThisPlatform() }

// SubvolSyncWait answers with graphdriver.ErrNotSupported on this platform.
func SubvolSyncWait(string) error { return notOnThisPlatform() }

// OpenAt2 answers with graphdriver.ErrNotSupported on this platform.
func OpenAt2() error { return notOnThisPlatform() }

// IDMappedMounts answers with graphdriver.ErrNotSupported on this platform.
func IDMappedMounts(string) error { return notOnThisPlatform() }
