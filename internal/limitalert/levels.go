// Package limitalert tells people that containers come near their limits: once for each level that a container crosses, by a
// command, by a webhook, or by both.
package limitalert

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/limited"
)

const (
	maxLevels = 10
	// slack is by how many percent a container has to fall below a level before it can cross the level again.
	slack = 5
	// maxState bounds the file of a State: some hundred thousand volumes.
	maxState = 64 << 20
)

// CheckLevels checks levels, which are in percent. Returns errdefs.ErrInvalidArgument if they are not from 1 to 100, do not
// ascend, or are too many.
func CheckLevels(levels []int) error {
	last := 0
	for _, level := range levels {
		if level <= last || level > 100 {
			return fault.New(errdefs.ErrInvalidArgument, "%v must be percentages from 1 to 100, in ascending order", levels)
		}
		last = level
	}
	if len(levels) > maxLevels {
		return fault.New(errdefs.ErrInvalidArgument, "%d percentages are more than %d", len(levels), maxLevels)
	}
	return nil
}

// Crossing is a volume that has crossed a level upwards.
type Crossing struct {
	limited.Volume
	Level int // in percent: the highest that was crossed
}

// State knows which volumes have crossed which levels. It is not safe for concurrent use.
type State struct {
	levels  []int
	file    string
	crossed map[string]map[string]int // service to volume to level
}

// ReadState reads the state that an earlier State has kept in a file. Without the file, no volume has crossed a level. The
// State can be used in spite of an error.
func ReadState(file string, levels []int) (*State, error) {
	s := &State{levels: levels, file: file, crossed: make(map[string]map[string]int)}
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxState) {
		err = fmt.Errorf("%s is no file of a reasonable size", file)
	}
	if err != nil {
		return s, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return s, err
	}
	var crossed map[string]map[string]int
	if err := json.Unmarshal(text, &crossed); err != nil {
		return s, fmt.Errorf("read %s: %w", file, err)
	}
	maps.Copy(s.crossed, crossed)
	return s, nil
}

// Look compares the volumes of a service with their levels, and returns those that have crossed one since the last Look, the
// fullest first. It keeps the state in the file. The result is complete in spite of an error.
func (s *State) Look(service string, volumes []limited.Volume) ([]Crossing, error) {
	before := s.crossed[service]
	now := make(map[string]int)
	var found []Crossing
	for _, v := range volumes {
		level := before[v.Name]
		if v.Counted {
			level = s.levelOf(limited.Percent(v.Held, v.Limit.Bytes), level)
		}
		if level > before[v.Name] {
			found = append(found, Crossing{v, level})
		}
		if level > 0 {
			now[v.Name] = level
		}
	}
	slices.SortFunc(found, func(a, b Crossing) int {
		return cmp.Or(cmp.Compare(limited.Percent(b.Held, b.Limit.Bytes), limited.Percent(a.Held, a.Limit.Bytes)), cmp.Compare(a.Name, b.Name))
	})
	if maps.Equal(before, now) {
		return found, nil
	}
	s.crossed[service] = now
	return found, s.write()
}

// levelOf is the level of a volume that had a level before.
func (s *State) levelOf(percent float64, before int) int {
	level := 0
	for _, l := range s.levels {
		needed := float64(l)
		if l <= before {
			needed -= min(slack, float64(l)/2)
		}
		if percent >= needed {
			level = l
		}
	}
	return level
}

func (s *State) write() error {
	text, err := json.Marshal(s.crossed)
	if err != nil {
		return err
	}
	return atomicfile.Write(s.file, text, 0o600)
}
