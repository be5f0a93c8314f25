package detect

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/zfsctl"
)

// answerWithin is how long the kernel may take to answer. A call waits while its pool is suspended or another is being
// imported.
const answerWithin = 30 * time.Second

// facts are the state of a ZFS dataset, and whether its pool is imported read-only.
type facts struct {
	poolReadOnly   bool
	kind           string // filesystem, volume or snapshot
	mounted        bool
	readOnly       bool
	keyUnavailable bool // it is encrypted and its key is not loaded
	zoned          bool // it is handed to a user namespace
}

// askKernel asks for the state of a dataset. Returns errdefs.ErrUnavailable if the kernel does not answer in time, and
// errdefs.ErrFailedPrecondition if its interface is not the known one.
func askKernel(ctx context.Context, name string) (facts, error) {
	return within(ctx, answerWithin, func() (f facts, err error) {
		c, err := zfsctl.Open()
		if err != nil {
			return facts{}, err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		if err := c.Check(); err != nil {
			return facts{}, err
		}
		d, err := c.Stats(name)
		if err != nil {
			return facts{}, err
		}
		pool, err := c.PoolProperties(zfsctl.PoolOf(name))
		if err != nil {
			return facts{}, err
		}
		f = describeZFS(pool, d)
		f.mounted, err = isMounted(name)
		return f, err
	})
}

// within returns the result of a call that nothing can end. If the call takes longer, or if ctx ends, it is left to itself.
func within[T any](ctx context.Context, atMost time.Duration, call func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, atMost, fault.New(errdefs.ErrUnavailable,
		"%s has not answered for %s, perhaps because a pool is suspended or is being imported: try again when \"zpool list\" answers", zfsctl.Device, atMost))
	defer cancel()
	type result struct {
		value T
		err   error
	}
	ended := make(chan result, 1)
	go func() {
		value, err := call()
		ended <- result{value, err}
	}()
	select {
	case r := <-ended:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// describeZFS describes a dataset by the kernel's answers, which leave out properties that have their default.
func describeZFS(pool zfsctl.Properties, d zfsctl.Dataset) facts {
	const keyUnavailable = 1 // ZFS_KEYSTATUS_UNAVAILABLE
	number := func(of zfsctl.Properties, name string) uint64 {
		n, _ := of.Number(name)
		return n
	}
	return facts{
		poolReadOnly:   number(pool, "readonly") != 0,
		kind:           kindOf(d),
		readOnly:       number(d.Properties, "readonly") != 0,
		keyUnavailable: number(d.Properties, "keystatus") == keyUnavailable,
		zoned:          number(d.Properties, "zoned") != 0,
	}
}

func kindOf(d zfsctl.Dataset) string {
	switch {
	case d.IsSnapshot:
		return "snapshot"
	case d.Type == zfsctl.Filesystem:
		return "filesystem"
	case d.Type == zfsctl.Volume:
		return "volume"
	}
	return fmt.Sprintf("dataset of type %d", d.Type)
}

// isMounted reports whether a dataset is mounted below the root directory of this process.
func isMounted(name string) (bool, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		here := m.FSType == "zfs" && m.Source == name
		return !here, here
	})
	return len(mounts) > 0, err
}

// whyUnhealthy says why no layers can be kept in a pool of that health and what to do, or "".
func whyUnhealthy(pool, health string) string {
	switch health {
	case "ONLINE", "DEGRADED":
		return ""
	case zfsctl.Suspended:
		return fmt.Sprintf("the pool %s is suspended after errors of its devices: run \"zpool status %[1]s\", bring them back, then run \"zpool clear %[1]s\"", pool)
	}
	return fmt.Sprintf("the pool %s is %s: \"zpool status %[1]s\" shows the faults of its devices", pool, health)
}

// unusable says why no layers can be kept in the dataset name and what to do, or "".
func (f facts) unusable(name string) string {
	switch {
	case f.kind != "filesystem":
		return fmt.Sprintf("%s is a %s: choose a filesystem", name, f.kind)
	case f.keyUnavailable:
		return fmt.Sprintf("%s is encrypted and its key is not loaded: run \"zfs load-key %[1]s\" and \"zfs mount %[1]s\"", name)
	case !f.mounted:
		return fmt.Sprintf("%s is not mounted: run \"zfs mount %[1]s\", after \"zfs set mountpoint=DIR %[1]s\" if it has no mount point", name)
	default:
		return ""
	}
}
