package zfs

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Channel programs (zfs-program(8)) run in the kernel within one transaction group: what one has looked at
// cannot change before it acts, and after a crash it has run as a whole or not at all.
//
//go:embed destroy.lua
var destroyProgram []byte

// destroyed is what destroy.lua returns.
type destroyed struct {
	Errno    unix.Errno        `json:"errno"`    // 0 if the dataset is gone
	Blockers map[string]string `json:"blockers"` // datasets and snapshots in the way that are others', by number
	Busy     string            `json:"busy"`     // what could not be destroyed, if nothing was in the way
}

// destroy destroys a dataset with the snapshots that are Cowshed's own and that nobody uses: the one that
// seals it, those that clones of it were made from and have left, and the views in deadViews. Anything else
// below the dataset is a blocker, because of which nothing is changed. origin is the snapshot that the dataset
// was made from; if it is one that was taken for this alone, it goes too.
func (c *commands) destroy(ctx context.Context, dataset, origin string, deadViews []string) (destroyed, error) {
	var result struct {
		Return destroyed `json:"return"`
	}
	var out bytes.Buffer
	args := append([]string{"program", "-j", c.pool, "-", dataset, origin}, deadViews...)
	if err := c.pipe(ctx, bytes.NewReader(destroyProgram), &out, args...); err != nil {
		return destroyed{}, err
	}
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		return destroyed{}, fmt.Errorf("zfs program: %q: %w", out.Bytes(), err)
	}
	return result.Return, nil
}

// names are the blockers, for people.
func (d destroyed) names() string {
	return strings.Join(slices.Sorted(maps.Values(d.Blockers)), ", ")
}
