package layertar

import (
	"fmt"
	"log/slog"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/treeat"
)

// latest is the last time that the peers set: the end of int64 nanoseconds.
var latest = time.Unix(0, 1<<63-1)

func outOfBounds(t time.Time) bool { return t.Unix() < 0 || t.After(latest) }

// timespec bounds a time as the peers do: a time out of bounds becomes 1970.
func timespec(t time.Time) unix.Timespec {
	if outOfBounds(t) {
		return unix.Timespec{}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// movedTimes counts the entries that got other times than the layer says.
type movedTimes struct {
	count int
	first string // its name
}

// move counts an entry whose times are moved.
func (s *setter) move(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moved.count == 0 {
		s.moved.first = treeat.Quote(name)
	}
	s.moved.count++
}

func (m *movedTimes) report(log *slog.Logger) {
	if m.count > 0 {
		log.Warn("layertar: times of a layer are before 1970, or later than can be set here, and were replaced", "count", m.count, "first", m.first)
	}
}

// setTimes sets the times of a file. In place of a time that the filesystem cannot hold the kernel sets the nearest,
// without an error.
func (s *setter) setTimes(t treeat.File, times *[2]unix.Timespec) error {
	if err := t.SetTimes(times); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	if times[1].Sec <= math.MaxInt32 { // 2038, which every filesystem can hold
		return nil
	}
	var st unix.Stat_t
	var err error
	if t.FD >= 0 {
		err = unix.Fstat(t.FD, &st)
	} else {
		err = treeat.Lstat(t.Dir, t.Name, &st)
	}
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mtim.Sec != times[1].Sec {
		s.move(t.Name)
	}
	return nil
}
