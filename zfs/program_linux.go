package zfs

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
)

// Channel programs (zfs-program(8)) run in the kernel within one transaction group. Nothing that a program has looked
// at can change before it acts. After a crash it has run as a whole or not at all. Only a signal that cannot be blocked
// stops a program in the middle.
//
//go:embed destroy.lua
var destroyProgram string

// destroyed is the answer of destroy.lua.
type destroyed struct {
	errno    unix.Errno // 0 if the dataset is gone; EEXIST if only clones are in the way
	blockers []string   // datasets and snapshots that are in the way; not all, if they are many
	more     bool       // there are more blockers
	busy     string     // could not be destroyed, without blockers
}

// runDestroy destroys a dataset with the snapshots that are Cowshed's own and that nobody uses. These are the snapshot
// that seals it, snapshots whose clones are gone, and those of the views in deadViews. Anything else below the dataset
// is a blocker, and then nothing changes. Nothing changes either if a snapshot has clones.
//
// The snapshot that it was cloned from goes too, if it was taken for this clone alone. So do all datasets that were set
// aside and that no clone needs any more.
func (b *Backend) runDestroy(ctx context.Context, dataset string, deadViews []string) (destroyed, error) {
	answers := make(chan any, 1)
	s := step{
		op: "program",
		do: func(k kernel) error {
			answer, err := k.Program(b.zfs.pool, destroyProgram, append([]string{dataset, b.datasetOf(asideName)}, deadViews...))
			if err == nil {
				answers <- answer
			}
			return err
		},
		happened: b.isGone(dataset),
	}
	if err := b.actToEnd(ctx, s); err != nil {
		return destroyed{}, err
	}
	select {
	case answer := <-answers:
		return readDestroyed(answer)
	default: // it was interrupted, and has happened
		return destroyed{}, nil
	}
}

// readDestroyed reads the answer of destroy.lua.
func readDestroyed(answer any) (destroyed, error) {
	values, _ := answer.(nvlist.List)
	errno, ok := values["errno"].(int64)
	if !ok {
		return destroyed{}, fmt.Errorf("zfs program: unexpected answer %v", answer)
	}
	d := destroyed{errno: unix.Errno(errno)}
	d.busy, _ = values["busy"].(string)
	d.more, _ = values["more"].(bool)
	blockers, _ := values["blockers"].(nvlist.List)
	for _, name := range slices.Sorted(maps.Keys(blockers)) {
		if blocker, ok := blockers[name].(string); ok {
			d.blockers = append(d.blockers, blocker)
		}
	}
	slices.Sort(d.blockers)
	return d, nil
}

// names lists the blockers for people.
func (d destroyed) names() string {
	names := strings.Join(d.blockers, ", ")
	if d.more {
		names += " and others"
	}
	return names
}
