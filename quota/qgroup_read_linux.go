package quota

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/btrfsctl"
)

// The kernel shows the state of quotas in two places. The quota tree says in one call whether they are on, and in
// which mode. Of anything else it has only the state of the last transaction commit: the limit of a new subvolume is
// missing. Reading it needs CAP_SYS_ADMIN in the initial user namespace.
//
// sysfs (fs/btrfs/sysfs.c) shows the present state, to anyone, but may not be mounted. It has qgroups since kernel
// 5.9, their state since 6.1, and the mode since 6.7.

// status reads the state of quotas on the filesystem.
func (q *Qgroups) status() (btrfsctl.QuotaStatus, error) {
	status, err := btrfsctl.ReadQuotaStatus(q.fd())
	if errors.Is(err, unix.EPERM) {
		status, err = q.sysfsStatus()
	} else if err == nil && modeOf(status) == Classic {
		// The kernel can have given up counting since the last commit.
		if n, err := q.sysfsNumber("inconsistent"); err == nil {
			status.Inconsistent = n != 0
		}
	}
	if err != nil {
		return btrfsctl.QuotaStatus{}, fmt.Errorf("read the state of quotas of %s: %w", q.dir.Name(), kindOf(err))
	}
	return status, nil
}

// referenced reads how many bytes a qgroup references, as of the last commit.
func (q *Qgroups) referenced(id uint64) (uint64, error) {
	n, err := q.sysfsNumber(qgroupName(id), "referenced")
	if errors.Is(err, fs.ErrNotExist) {
		n, _, err = btrfsctl.QgroupUsage(q.fd(), id)
	}
	return n, err
}

// exclusive reads how many bytes a qgroup alone references, as of the last commit.
func (q *Qgroups) exclusive(id uint64) (uint64, error) {
	n, err := q.sysfsNumber(qgroupName(id), "exclusive")
	if errors.Is(err, fs.ErrNotExist) {
		_, n, err = btrfsctl.QgroupUsage(q.fd(), id)
	}
	return n, err
}

// limits reads the limits of a qgroup.
func (q *Qgroups) limits(id uint64) (btrfsctl.QgroupLimit, error) {
	limits, err := q.sysfsLimits(id)
	if errors.Is(err, fs.ErrNotExist) {
		return btrfsctl.QgroupLimits(q.fd(), id)
	}
	return limits, err
}

func (q *Qgroups) sysfsStatus() (btrfsctl.QuotaStatus, error) {
	// Without the filesystem's own directory sysfs says nothing; without qgroups in it they are off.
	if _, err := os.Stat(filepath.Dir(q.sysfs)); err != nil {
		return btrfsctl.QuotaStatus{}, err
	}
	inconsistent, err := q.sysfsNumber("inconsistent")
	if errors.Is(err, fs.ErrNotExist) {
		return btrfsctl.QuotaStatus{}, nil
	}
	if err != nil {
		return btrfsctl.QuotaStatus{}, err
	}
	mode, err := os.ReadFile(filepath.Join(q.sysfs, "mode"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return btrfsctl.QuotaStatus{}, err
	}
	return btrfsctl.QuotaStatus{
		On:           true,
		Simple:       strings.TrimSpace(string(mode)) == "squota",
		Inconsistent: inconsistent != 0,
	}, nil
}

func (q *Qgroups) sysfsLimits(id uint64) (limits btrfsctl.QgroupLimit, err error) {
	dir := qgroupName(id)
	if limits.Flags, err = q.sysfsNumber(dir, "limit_flags"); err != nil {
		return btrfsctl.QgroupLimit{}, err
	}
	if limits.Flags&btrfsctl.LimitMaxRfer != 0 {
		if limits.MaxRfer, err = q.sysfsNumber(dir, "max_referenced"); err != nil {
			return btrfsctl.QgroupLimit{}, err
		}
	}
	if limits.Flags&btrfsctl.LimitMaxExcl != 0 {
		limits.MaxExcl, err = q.sysfsNumber(dir, "max_exclusive")
	}
	return limits, err
}

func qgroupName(id uint64) string { return "0_" + strconv.FormatUint(id, 10) }

func (q *Qgroups) sysfsNumber(path ...string) (uint64, error) {
	name := filepath.Join(append([]string{q.sysfs}, path...)...)
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
