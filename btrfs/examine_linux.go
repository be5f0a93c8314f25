package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/printable"
	"github.com/cowshed/cowshed/quota"
)

var _ cowcommon.Examiner = (*Backend)(nil)

// Examine reports whether limits are enforced, and the foreign entries in the directory of the volumes.
func (b *Backend) Examine(ctx context.Context) []cowcommon.Finding {
	return append([]cowcommon.Finding{b.examineQuota()}, b.examineVolumes(ctx)...)
}

// examineQuota reports the quota mode, and whether limits are enforced.
func (b *Backend) examineQuota() cowcommon.Finding {
	f := cowcommon.Finding{Verdict: cowcommon.OK, Check: "quota"}
	mode, err := b.quotas.Mode()
	consistent, lost := true, false
	switch {
	case err != nil:
	case mode == quota.Off:
		lost, err = b.quotas.Lost()
	default:
		consistent, err = b.quotas.Consistent()
	}
	switch {
	case err != nil:
		f.Verdict, f.Detail = cowcommon.Warn, cowcommon.OrUnknown("", err)
	case lost:
		f.Verdict, f.Detail = cowcommon.Fail, mode.String()+", limits are lost: somebody has turned quotas off"
		f.Advice = "set them anew with cowshed limit, which turns quotas on again; if no limit is wanted, remove " + filepath.Join(b.home, quota.LimitedName)
	case mode == quota.Off:
		f.Detail = mode.String() + " (policy " + b.quotas.Policy().String() + ")"
	case !consistent:
		f.Verdict, f.Detail = cowcommon.Fail, mode.String()+", inconsistent: limits are not enforced until a rescan"
		f.Advice = "limits are not enforced; run: btrfs quota rescan -w " + b.home
	default:
		f.Detail = mode.String() + ", consistent"
	}
	return f
}

// examineVolumes reports the foreign entries in the directory of the volumes.
func (b *Backend) examineVolumes(ctx context.Context) (findings []cowcommon.Finding) {
	f := cowcommon.Finding{Verdict: cowcommon.Warn, Check: "layers"}
	dir := b.dirs.subvolumes.Name()
	entries, err := os.ReadDir(dir)
	if err != nil {
		f.Detail = err.Error()
		return []cowcommon.Finding{f}
	}
	for _, entry := range entries {
		_, err := b.Stat(ctx, entry.Name())
		if err == nil {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		if _, lstatErr := os.Lstat(path); !errors.Is(lstatErr, fs.ErrNotExist) { // else it was removed meanwhile
			f.Detail = fmt.Sprintf("%s is not a layer: %v", printable.Path(path), err)
			f.Advice = "Cowshed leaves it alone; if it is of no use, remove it by hand"
			findings = append(findings, f)
		}
	}
	return findings
}
