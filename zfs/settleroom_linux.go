package zfs

import (
	"fmt"
	"maps"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/zfsctl"
	"github.com/cowshed/cowshed/quota"
)

// room finds out whether the datasets above have room for the data that promotions move. The kernel counts data at the
// dataset that has it, and at those above. A reservation is counted in place of less data.
//
// The quota of a promoted dataset does not matter, since it is lifted. Nor does a refquota above: it is about the data of that
// dataset alone.
type room struct {
	added   map[string]int64 // bytes, by dataset
	counted map[string]bool  // snapshots
}

func newRoom() *room { return &room{added: make(map[string]int64), counted: make(map[string]bool)} }

// move notes the snapshots of a foreign dataset that go to a clone.
func (r *room) move(clone string, snapshots []zfsctl.Dataset) {
	for _, s := range snapshots {
		if r.counted[s.Name] { // another clone takes it along
			continue
		}
		r.counted[s.Name] = true
		bytes, _ := s.Properties.Number("written")
		r.added[sourceOf(s.Name)] -= int64(bytes)
		r.added[clone] += int64(bytes)
	}
}

// check looks at each dataset after those below it. It returns unix.EDQUOT if a quota leaves too little, and
// unix.ENOSPC if the pool does, because of a reservation.
func (r *room) check(k kernel) error {
	added := maps.Clone(r.added)
	for level := deepest(added); level >= 0; level-- {
		above := make(map[string]int64)
		for name, bytes := range added {
			if strings.Count(name, "/") < level {
				above[name] += bytes
				continue
			}
			d, err := k.Stats(name)
			if err != nil {
				return err
			}
			if _, lifted := r.added[name]; !lifted {
				if err := checkAdded(d, bytes); err != nil {
					return err
				}
			}
			if at := strings.LastIndexByte(name, '/'); at >= 0 {
				above[name[:at]] += counted(d, bytes) - counted(d, 0)
			}
		}
		added = above
	}
	return nil
}

// deepest is the most slashes in a name.
func deepest(names map[string]int64) (level int) {
	for name := range names {
		level = max(level, strings.Count(name, "/"))
	}
	return level
}

// counted is the number of bytes that count at the dataset above, if that many are added.
func counted(d zfsctl.Dataset, added int64) int64 {
	used, _ := d.Properties.Number("used")
	reserved, _ := d.Properties.Number("reservation")
	return max(int64(used)+added, int64(reserved))
}

// checkAdded checks whether a dataset has room for that many bytes, whatever is above it.
func checkAdded(d zfsctl.Dataset, added int64) error {
	if added <= 0 {
		return nil
	}
	used, _ := d.Properties.Number("used")
	limit, _ := d.Properties.Number("quota")
	if limit != 0 && used+uint64(added) > limit {
		return fmt.Errorf("%s come to %s, whose quota leaves %s: raise it until all are settled: %w",
			quota.FormatSize(uint64(added)), d.Name, quota.FormatSize(limit-min(used, limit)), unix.EDQUOT)
	}
	available, _ := d.Properties.Number("available")
	if !strings.Contains(d.Name, "/") && uint64(added) > available {
		return fmt.Errorf("%s more are reserved in the pool %s, which has %s: %w",
			quota.FormatSize(uint64(added)), d.Name, quota.FormatSize(available), unix.ENOSPC)
	}
	return nil
}
