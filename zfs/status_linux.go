package zfs

import (
	"context"
	"strconv"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v3"

	"github.com/cowshed/cowshed/cowcommon"
)

// Status describes the pool and the dataset that holds the volumes, as they are now, under the names that moby's driver
// uses. It adds the removed volumes that were set aside. Sizes are in bytes.
func (b *Backend) Status(ctx context.Context) [][2]string {
	var pool, health, used, available, limit, compression, removed, retained string
	if err := b.zfs.checkPool(); err != nil { // go-zfs would wait for a suspended pool
		health = cowcommon.OrUnknown("", err)
	} else if p, err := gozfs.GetZpool(b.zfs.pool); err != nil {
		health = cowcommon.OrUnknown("", err)
	} else {
		health = p.Health
		d, err := gozfs.GetDataset(b.root)
		if err != nil {
			used = cowcommon.OrUnknown("", err)
		} else {
			used, available = strconv.FormatUint(d.Used, 10), strconv.FormatUint(d.Avail, 10)
			compression = d.Compression
			limit = "no"
			if d.Quota != 0 {
				limit = strconv.FormatUint(d.Quota, 10)
			}
		}
	}
	if r, err := b.Retained(ctx); err != nil {
		removed = cowcommon.OrUnknown("", err)
	} else {
		removed, retained = strconv.Itoa(r.Volumes), strconv.FormatUint(r.Bytes, 10)
	}
	pool, _, _ = strings.Cut(b.root, "/")
	return [][2]string{
		{"Zpool", pool},
		{"Zpool Health", health},
		{"Parent Dataset", b.root},
		{"Space Used By Parent", used},
		{"Space Available", available},
		{"Parent Quota", limit},
		{"Compression", compression},
		{"Removed Layers With Children", removed},
		{"Space Used By Removed Layers", retained},
	}
}
