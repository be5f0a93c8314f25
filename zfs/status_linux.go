package zfs

import (
	"context"
	"strconv"

	gozfs "github.com/mistifyio/go-zfs/v3"

	"github.com/cowshed/cowshed/cowcommon"
)

// Place implements cowcommon.Placer: it is the parent dataset of the volumes' datasets.
func (b *Backend) Place() string { return b.root }

// Status describes the pool and the dataset that holds the volumes, as they are now, under the names that moby's driver
// uses. It adds the removed volumes that were set aside. Sizes are in bytes.
func (b *Backend) Status(ctx context.Context) [][2]string {
	// go-zfs waits for the kernel, and takes no context.
	f, err := read(ctx, b.zfs, "status", func(kernel) (facts, error) { return readFacts(b.zfs.pool, b.root), nil })
	if err != nil {
		f.health = cowcommon.OrUnknown("", err)
	}
	var removed, retained string
	if r, err := b.Retained(ctx); err != nil {
		removed = cowcommon.OrUnknown("", err)
	} else {
		removed, retained = strconv.Itoa(r.Volumes), strconv.FormatUint(r.Bytes, 10)
	}
	return [][2]string{
		{"Zpool", b.zfs.pool},
		{"Zpool Health", f.health},
		{"Parent Dataset", b.root},
		{"Space Used By Parent", f.used},
		{"Space Available", f.available},
		{"Parent Quota", f.limit},
		{"Compression", f.compression},
		{"Removed Layers With Children", removed},
		{"Space Used By Removed Layers", retained},
	}
}

// facts describe a pool and a dataset in it.
type facts struct{ health, used, available, limit, compression string }

func readFacts(pool, root string) (f facts) {
	p, err := gozfs.GetZpool(pool)
	if err != nil {
		f.health = cowcommon.OrUnknown("", err)
		return f
	}
	f.health = p.Health
	d, err := gozfs.GetDataset(root)
	if err != nil {
		f.used = cowcommon.OrUnknown("", err)
		return f
	}
	f.used, f.available = strconv.FormatUint(d.Used, 10), strconv.FormatUint(d.Avail, 10)
	f.compression = d.Compression
	f.limit = "no"
	if d.Quota != 0 {
		f.limit = strconv.FormatUint(d.Quota, 10)
	}
	return f
}
