package zfs

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Channel programs (zfs-program(8)) run in the kernel within one transaction group: what one has looked at
// cannot change before it acts, and after a crash it has run as a whole or not at all. Only a signal to the zfs process
// stops one in the middle.
//
//go:embed destroy.lua
var destroyProgram []byte

// destroyed is what destroy.lua returns.
type destroyed struct {
	Errno    unix.Errno        `json:"errno"`    // 0 if the dataset is gone
	Blockers map[string]string `json:"blockers"` // datasets and snapshots in the way that are others', by number
	Busy     string            `json:"busy"`     // what could not be destroyed, if nothing was in the way
}

// runDestroy destroys a claimed volume's dataset with the snapshots that are Cowshed's own and that nobody uses: the one
// that seals it, those that clones of it were made from and have left, and the views in deadViews. Anything else
// below the dataset is a blocker, because of which nothing is changed. origin is the snapshot that the dataset
// was made from; if it is one that was taken for this alone, it goes too.
func (b *Backend) runDestroy(ctx context.Context, c *claim, origin string, deadViews []string) (destroyed, error) {
	dataset := b.datasetOf(c.name)
	s := step{
		args:     append([]string{"program", "-j", b.zfs.pool, "-", dataset, origin}, deadViews...),
		in:       bytes.NewReader(destroyProgram),
		inherits: c.file(),
		happened: b.isGone(dataset),
	}
	out, err := b.act(ctx, s)
	var lost *lostError
	if errors.As(err, &lost) && !lost.left { // a program that is killed stops in the middle: it is finished
		s.in = bytes.NewReader(destroyProgram)
		out, err = b.act(context.WithoutCancel(ctx), s)
	}
	if err != nil || out == nil {
		return destroyed{}, err
	}
	var result struct {
		Return destroyed `json:"return"`
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return destroyed{}, fmt.Errorf("zfs program: %q: %w", out, err)
	}
	return result.Return, nil
}

// names are the blockers, for people.
func (d destroyed) names() string {
	return strings.Join(slices.Sorted(maps.Values(d.Blockers)), ", ")
}
