// Package dirlist lists directories whose entries others rename meanwhile.
package dirlist

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"time"
)

// attempts bounds how often a directory is read that changes all the time.
const attempts = 4

// tick is longer than two changes can be apart that have the same time.
const tick = 20 * time.Millisecond

// Read lists a directory, sorted by name. One pass may miss a name that is there all the time. btrfs puts an entry at the end that is
// renamed over another, or in exchange for it. A pass stops where the end was when it began. So the directory is read again if it may
// have changed meanwhile. Each name is there once. It may have gone since.
func Read(dir string) ([]os.DirEntry, error) {
	found := make(map[string]os.DirEntry)
	for range attempts {
		before, err := changed(dir)
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		after, err := changed(dir)
		if err != nil {
			return nil, err
		}
		quiet := before.Equal(after) && begun.Sub(before) > tick
		if quiet && len(found) == 0 {
			return entries, nil
		}
		for _, entry := range entries {
			found[entry.Name()] = entry
		}
		if quiet {
			break
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b os.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) }), nil
}

// changed is when the names in a directory changed last.
func changed(dir string) (time.Time, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}
