// Package limited measures the volumes that have a limit.
package limited

import (
	"context"
	"time"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/quota"
)

// Volume is a writable volume with a limit.
type Volume struct {
	Name    string
	Limit   quota.Limit
	Held    uint64 // in bytes, against the limit
	Counted bool   // whether Held is known
	Created time.Time
}

// Volumes measures all writable volumes that have a limit, in one pass. The cost does not depend on the size of their data. A
// volume that the filesystem does not measure, as after a removal meanwhile, is not Counted.
func Volumes(ctx context.Context, b cowcommon.Backend) ([]Volume, error) {
	var found []Volume
	for v, err := range b.Volumes(ctx) {
		if err != nil {
			return nil, err
		}
		if !v.Sealed && v.Limit.Bytes != 0 {
			found = append(found, Volume{Name: v.Name, Limit: v.Limit, Created: v.Created})
		}
	}
	for i := range found {
		held, err := Held(ctx, b, found[i].Name, found[i].Limit)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		found[i].Held, found[i].Counted = held, err == nil
	}
	return found, nil
}

// Held is how much a volume holds against a limit. Errors are those of cowcommon.Usage.
func Held(ctx context.Context, b cowcommon.Backend, name string, limit quota.Limit) (uint64, error) {
	usage, err := cowcommon.Usage(ctx, b, name)
	return usage.Against(limit), err
}

// Percent is the part of a limit that is held, in percent.
func Percent(held, limit uint64) float64 {
	if limit == 0 {
		return 0
	}
	return 100 * float64(held) / float64(limit)
}
