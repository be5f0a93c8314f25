package quota

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/btrfsctl"
	"github.com/cowshed/cowshed/internal/poll"
)

// ErrNotYet says that a qgroup cannot be removed yet: its subvolume exists, or is not yet dropped, or
// extents that it is charged for are still referenced by other subvolumes. It is matched with errors.Is.
var ErrNotYet = errors.New("still in use")

// Qgroups enforces limits on the subvolumes of one btrfs filesystem. A subvolume is named by its id,
// which is that of its qgroup of level 0.
//
// Methods that change something need CAP_SYS_ADMIN in the initial user namespace, and return
// errdefs.ErrPermissionDenied without it. Methods that read need it too, unless /sys/fs/btrfs shows the filesystem.
// Methods are safe for concurrent use, but not with Close.
type Qgroups struct {
	dir    *os.File
	sysfs  string // directory of the filesystem's qgroups in sysfs, which is there while quotas are on
	policy Policy

	// turnOn keeps two first limits from turning quotas on twice.
	turnOn sync.Mutex

	remembered atomic.Bool // that there are limits
}

// OpenQgroups opens the enforcer of the btrfs filesystem that holds the directory dir. It changes nothing:
// quotas are turned on by the first limit.
func OpenQgroups(dir string, policy Policy) (*Qgroups, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open quotas: %w", err)
	}
	uuid, err := btrfsctl.FilesystemUUID(int(f.Fd()))
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open quotas: filesystem of %s: %w", dir, err)
	}
	q := &Qgroups{dir: f, sysfs: "/sys/fs/btrfs/" + uuid.String() + "/qgroups", policy: policy}
	if _, err := os.Lstat(q.limited()); err == nil {
		q.remembered.Store(true) // so that making a subvolume takes no call more
	}
	return q, nil
}

// Close releases the resources of q. Quotas and limits stay.
func (q *Qgroups) Close() error { return q.dir.Close() }

func (q *Qgroups) fd() int { return int(q.dir.Fd()) }

// Policy returns the policy that q was opened with.
func (q *Qgroups) Policy() Policy { return q.policy }

// Mode says how the filesystem keeps account now.
func (q *Qgroups) Mode() (Mode, error) {
	status, err := q.status()
	return modeOf(status), err
}

// Consistent reports whether the filesystem's accounts can be trusted. Simple accounts always can. Classic accounts
// cannot while a rescan runs, or after the kernel has given up counting: then usage is out of date and limits are not
// enforced. The next limit that is set repairs that, as Rescan does. With quotas off, Consistent returns true.
func (q *Qgroups) Consistent() (bool, error) {
	status, err := q.status()
	return !status.Inconsistent && !status.Rescan, err
}

func modeOf(status btrfsctl.QuotaStatus) Mode {
	switch {
	case !status.On:
		return Off
	case status.Simple:
		return Simple
	default:
		return Classic
	}
}

// Enable makes the filesystem ready for limits of that scope and returns the mode that enforces them. Where quotas
// are off it turns them on as the policy says, which is durable on return. In classic mode it returns when the
// accounts are consistent, so it may take as long as a rescan of the filesystem; if ctx ends before, the rescan goes
// on and Enable returns the error of ctx.
//
// Returns errdefs.ErrFailedPrecondition, with the reason and what to do, if the policy and the present mode do not
// allow such limits. Returns errdefs.ErrNotImplemented if the kernel does not have the policy's mode.
func (q *Qgroups) Enable(ctx context.Context, scope Scope) (Mode, error) {
	status, err := q.status()
	if err != nil {
		return Off, err
	}
	if err := q.allows(modeOf(status), scope); err != nil {
		return Off, err
	}
	if !status.On {
		if status, err = q.enable(scope); err != nil {
			return Off, fmt.Errorf("turn on quotas of %s: %w", q.dir.Name(), kindOf(err))
		}
		q.remember()
		// Another process may have been quicker, and have turned on the other mode.
		if err := q.allows(modeOf(status), scope); err != nil {
			return Off, err
		}
	}
	if status.Rescan || status.Inconsistent {
		if err := q.Rescan(ctx); err != nil {
			return Off, err
		}
	}
	return modeOf(status), nil
}

// allows says whether limits of that scope may be set while the filesystem is in mode.
func (q *Qgroups) allows(mode Mode, scope Scope) error {
	const (
		imageNotCounted = "simple quotas do not count the image, so they cannot enforce quota scope total: "
		modeDiffers     = "quotas of %s are on in %s mode and btrfs.quota=%s asks for another: set btrfs.quota=%[2]s or auto, or turn them off with \"btrfs quota disable %[1]s\", which forgets all limits of that filesystem"
	)
	var reason string
	switch {
	case q.policy == PolicyOff:
		reason = "limits are turned off by btrfs.quota=off: set btrfs.quota to auto, simple or classic to use them"
	case q.policy == PolicySimple && scope == ScopeTotal:
		reason = imageNotCounted + "set btrfs.quota=classic, or btrfs.quota_scope=layer"
	case q.policy == PolicySimple && mode == Classic, q.policy == PolicyClassic && mode == Simple:
		reason = fmt.Sprintf(modeDiffers, q.dir.Name(), mode, q.policy)
	case mode == Simple && scope == ScopeTotal:
		reason = imageNotCounted + "set btrfs.quota_scope=layer"
	default:
		return nil
	}
	return fault.New(errdefs.ErrFailedPrecondition, "%s", reason)
}

// enable turns quotas on unless they are on by now, and returns their state then.
func (q *Qgroups) enable(scope Scope) (btrfsctl.QuotaStatus, error) {
	q.turnOn.Lock()
	defer q.turnOn.Unlock()

	// The kernel does nothing, and says nothing, if quotas are on already, in either mode.
	var err error
	if q.policy == PolicySimple || q.policy == PolicyAuto && scope == ScopeLayer {
		err = btrfsctl.EnableSimpleQuota(q.fd())
	} else {
		err = btrfsctl.EnableQuota(q.fd())
	}
	if simpleUnsupported(err) && q.policy == PolicyAuto {
		err = btrfsctl.EnableQuota(q.fd())
	}
	if simpleUnsupported(err) {
		return btrfsctl.QuotaStatus{}, fault.New(errdefs.ErrNotImplemented, "simple quotas need kernel 6.7, or set btrfs.quota=classic: %w", err)
	}
	if err != nil {
		return btrfsctl.QuotaStatus{}, err
	}
	return q.status()
}

func simpleUnsupported(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY)
}

// Rescan counts anew the references of each subvolume and returns when that is done, or when ctx ends: the rescan
// then goes on. Rescan waits for a rescan that runs already. In simple mode, and with quotas off, there is nothing to
// count.
func (q *Qgroups) Rescan(ctx context.Context) error {
	status, err := q.status()
	if err != nil || modeOf(status) != Classic {
		return err
	}
	if err := btrfsctl.StartRescan(q.fd()); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("rescan quotas of %s: %w", q.dir.Name(), kindOf(err))
	}
	if err := q.waitRescan(ctx); err != nil {
		return fmt.Errorf("wait for the rescan of quotas of %s: %w", q.dir.Name(), kindOf(err))
	}
	return nil
}

// waitRescan returns when no rescan runs. It asks at intervals that grow with the time that has passed, because a
// context cannot interrupt the kernel's call that waits.
func (q *Qgroups) waitRescan(ctx context.Context) error {
	return poll.WhileBusy(ctx, poll.Pauses{First: time.Millisecond, Longest: time.Second / 4}, func() (busy bool, err error) {
		running, _, err := btrfsctl.RescanRunning(q.fd())
		return running && err == nil, err
	})
}

// Inherit prepares the filesystem for a new subvolume, as Enable does if limit is not zero, and tells how the
// subvolume gets limit. source is the id of the subvolume that a snapshot will be made of, or 0 for an empty
// subvolume.
//
// The caller passes inherit to the call that makes the subvolume. If after is true, that is not enough, and SetLimit
// must follow before anyone uses the subvolume.
//
// In simple mode a snapshot has the limit that it is made with, or no limit. In classic mode a snapshot always has
// its source's, whatever it is made with.
func (q *Qgroups) Inherit(ctx context.Context, limit Limit, source uint64) (inherit Inherited, after bool, err error) {
	mode := Off
	if limit.Bytes != 0 {
		mode, err = q.Enable(ctx, limit.Scope)
	} else if source != 0 {
		mode, err = q.Mode()
	}
	if err != nil {
		return Inherited{}, false, err
	}
	if limit.Bytes != 0 {
		q.remember()
	}
	switch {
	case mode == Classic && source != 0 && limit.Bytes == 0:
		inherited, err := q.Limit(source)
		if errors.Is(err, errdefs.ErrNotFound) {
			return Inherited{}, false, nil
		}
		return Inherited{}, inherited.Bytes != 0, err
	case mode == Classic && source != 0:
		return Inherited{}, true, nil
	case limit.Bytes == 0:
		return Inherited{}, false, nil
	}
	if mode == Classic && limit.Scope == ScopeLayer {
		return Inherited{MaxExclusive: limit.Bytes}, false, nil
	}
	return Inherited{MaxReferenced: limit.Bytes}, false, nil
}

// qgroupLimit says limit in terms of mode, in the form that replaces whatever limit there is.
func qgroupLimit(mode Mode, limit Limit) btrfsctl.QgroupLimit {
	l := btrfsctl.QgroupLimit{
		Flags:   btrfsctl.LimitMaxRfer | btrfsctl.LimitMaxExcl,
		MaxRfer: btrfsctl.ClearLimit,
		MaxExcl: btrfsctl.ClearLimit,
	}
	switch {
	case limit.Bytes == 0:
	case mode == Classic && limit.Scope == ScopeLayer:
		l.MaxExcl = limit.Bytes
	default:
		l.MaxRfer = limit.Bytes
	}
	return l
}

// SetLimit replaces the limit of the subvolume id; the zero Limit removes it. If needed and allowed, it first turns
// quotas on, with the errors of Enable. The limit is in force at once for new writes, and durable with the next
// transaction commit (btrfsctl.Commit). A limit below the subvolume's present size can be set: files can then only be
// deleted.
//
// Returns errdefs.ErrNotFound if there is no such subvolume.
func (q *Qgroups) SetLimit(ctx context.Context, id uint64, limit Limit) error {
	var mode Mode
	var err error
	if limit.Bytes != 0 {
		mode, err = q.Enable(ctx, limit.Scope)
	} else {
		mode, err = q.Mode()
	}
	if err != nil {
		return err
	}
	if mode == Off {
		return nil
	}
	if err := btrfsctl.LimitQgroup(q.fd(), id, qgroupLimit(mode, limit)); err != nil {
		return fmt.Errorf("limit subvolume %d: %w", id, kindOf(err))
	}
	if limit.Bytes != 0 {
		q.remember()
	}
	return nil
}

// Limit reads the limit of the subvolume id. With quotas off there is no limit. Returns errdefs.ErrNotFound if quotas
// are on and there is no such subvolume.
func (q *Qgroups) Limit(id uint64) (Limit, error) {
	mode, err := q.Mode()
	if err != nil || mode == Off {
		return Limit{}, err
	}
	limits, err := q.limits(id)
	if err != nil {
		return Limit{}, fmt.Errorf("read limit of subvolume %d: %w", id, kindOf(err))
	}
	return limitOf(mode, limits), nil
}

// limitOf is the inverse of qgroupLimit.
func limitOf(mode Mode, l btrfsctl.QgroupLimit) Limit {
	switch {
	case l.Flags&btrfsctl.LimitMaxExcl != 0:
		return Limit{Bytes: l.MaxExcl, Scope: ScopeLayer}
	case l.Flags&btrfsctl.LimitMaxRfer == 0:
		return Limit{}
	case mode == Classic:
		return Limit{Bytes: l.MaxRfer, Scope: ScopeTotal}
	default:
		return Limit{Bytes: l.MaxRfer, Scope: ScopeLayer}
	}
}

// Usage reads the size of the subvolume id: one value in simple mode, two in classic mode. Its cost does not depend
// on that size.
//
// Usage is as of the last transaction commit. Later writes count against the limit, but do not show until they are
// written back and committed. unix.Syncfs does both, and fsync neither; the kernel does both by itself within a
// minute or so.
//
// In simple mode Bytes counts extents that the subvolume allocated and that it, or a snapshot made of it, still
// references. Extents older than the mode are excepted. Total is not known. In classic mode Bytes counts extents that
// no other subvolume references. While a snapshot of the subvolume exists, Bytes shrinks to the changes since.
//
// Returns errdefs.ErrNotImplemented if quotas are off, and errdefs.ErrNotFound if there is no such subvolume.
func (q *Qgroups) Usage(id uint64) (Usage, error) {
	mode, err := q.Mode()
	if err != nil {
		return Usage{}, err
	}
	if mode == Off {
		return Usage{}, fault.New(errdefs.ErrNotImplemented, "usage of subvolume %d: quotas are off", id)
	}
	var usage Usage
	if mode == Classic {
		if usage.Total, err = q.referenced(id); err == nil {
			usage.Bytes, err = q.exclusive(id)
			usage.Exclusive = true
		}
	} else {
		usage.Bytes, err = q.referenced(id)
	}
	if err != nil {
		return Usage{}, fmt.Errorf("usage of subvolume %d: %w", id, kindOf(err))
	}
	return usage, nil
}

// Remove removes the qgroup that a destroyed subvolume has left. An absent qgroup is not an error.
//
// Recent kernels (6.11) remove it by themselves when the subvolume has been dropped. Remove is for older kernels, and
// for qgroups in simple mode whose extents snapshots still referenced at that time. Such a qgroup can be removed when
// these snapshots are gone. Until then the error is ErrNotYet. [Qgroups.Stale] finds them again.
func (q *Qgroups) Remove(id uint64) error {
	// Older kernels would let the qgroup of a living subvolume go, and its accounts with it.
	exists, err := btrfsctl.SubvolumeExists(q.fd(), id)
	if err != nil {
		return fmt.Errorf("remove qgroup 0/%d: %w", id, kindOf(err))
	}
	if exists {
		return fmt.Errorf("remove qgroup 0/%d: %w: its subvolume is not dropped", id, ErrNotYet)
	}
	err = btrfsctl.RemoveQgroup(q.fd(), id)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTCONN):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("remove qgroup 0/%d: %w: extents of it are referenced elsewhere", id, ErrNotYet)
	default:
		return fmt.Errorf("remove qgroup 0/%d: %w", id, kindOf(err))
	}
}

// Stale lists the qgroups of destroyed subvolumes, also of subvolumes that other programs made, in the order of their
// ids. Subvolume ids are never used again, so nothing will need these qgroups. Remove takes away those that are
// empty.
func (q *Qgroups) Stale() iter.Seq2[uint64, error] {
	return func(yield func(uint64, error) bool) {
		const firstHigherLevel = 1 << 48 // BTRFS_QGROUP_LEVEL_SHIFT
		for next := uint64(btrfsctl.FirstFreeObjectID); ; {
			id, err := btrfsctl.NextQgroup(q.fd(), next)
			if errors.Is(err, unix.ENOENT) || err == nil && id >= firstHigherLevel {
				return
			}
			var exists bool
			if err == nil {
				exists, err = btrfsctl.SubvolumeExists(q.fd(), id)
			}
			if err != nil {
				yield(0, fmt.Errorf("list qgroups of %s: %w", q.dir.Name(), kindOf(err)))
				return
			}
			if !exists && !yield(id, nil) {
				return
			}
			next = id + 1
		}
	}
}

// kindOf gives a kernel error the errdefs error that stands for its kind.
func kindOf(err error) error {
	var kind error
	switch {
	case errors.Is(err, unix.ENOENT):
		kind = errdefs.ErrNotFound
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOTCONN):
		kind = errdefs.ErrFailedPrecondition
	default:
		return err
	}
	return fault.As(kind, err)
}
