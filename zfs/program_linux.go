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

// Channel programs (zfs-program(8)) run in the kernel within one transaction group. Nothing that a program has looked
// at can change before it acts. After a crash it has run as a whole or not at all. Only a signal to the zfs process
// stops a program in the middle.
//
//go:embed destroy.lua
var destroyProgram []byte

// destroyed is the answer of destroy.lua.
type destroyed struct {
	Errno    unix.Errno        `json:"errno"`    // 0 if the dataset is gone
	Blockers map[string]string `json:"blockers"` // datasets and snapshots that are in the way, by number
	Busy     string            `json:"busy"`     // could not be destroyed, without blockers
}

// runDestroy destroys a claimed volume's dataset with the snapshots that are Cowshed's own and that nobody uses. These
// are the snapshot that seals it, snapshots whose clones are gone, and those of the views in deadViews. Anything else
// below the dataset is a blocker, and then nothing changes. origin is the snapshot that the dataset was cloned from. If
// it was taken for this clone alone, it goes too.
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
	if errors.As(err, &lost) && !lost.left { // a killed program stops in the middle: run it to its end
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

// names lists the blockers for people.
func (d destroyed) names() string {
	return strings.Join(slices.Sorted(maps.Values(d.Blockers)), ", ")
}
