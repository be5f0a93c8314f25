package oldgraph

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/atomicfile"
)

// state tells how far the files of an image or container have come.
type state string

const (
	untouched state = ""
	begun     state = "begun"  // the driver's layers of these IDs are this entry's, and incomplete as long as there are files
	linked    state = "linked" // a symbolic link of the driver leads to the files
	filled    state = "filled" // the layers are complete and durable
)

// statesID is the layer with the states. The root is not trusted with them: by a state that is wrong, Into would remove
// a layer that is not its own.
const statesID = "cowshed-moving"

// states are files of a layer in the driver, which is made for the first one.
type states struct {
	driver graphdriver.Driver
	dir    string // "" before the layer is there
}

func openStates(driver graphdriver.Driver) (*states, error) {
	s := &states{driver: driver}
	if !driver.Exists(statesID) {
		return s, nil
	}
	return s, s.open()
}

func (s *states) open() (err error) {
	s.dir, err = s.driver.Get(statesID, "")
	return err
}

// close removes the layer if no states are left.
func (s *states) close() error {
	if s.dir == "" {
		return nil
	}
	left, err := os.ReadDir(s.dir)
	if err := errors.Join(err, s.driver.Put(statesID)); err != nil {
		return err
	}
	for _, file := range left {
		if !strings.HasPrefix(file.Name(), ".") { // else a crash has left it, half written
			return nil
		}
	}
	return s.driver.Remove(statesID)
}

func (s *states) file(in, id string) string { return filepath.Join(s.dir, in+"-"+id) }

func (s *states) of(in, id string) (state, error) {
	if s.dir == "" {
		return untouched, nil
	}
	data, err := os.ReadFile(s.file(in, id))
	if errors.Is(err, fs.ErrNotExist) {
		return untouched, nil
	}
	if err != nil {
		return untouched, err
	}
	switch found := state(data); found {
	case begun, linked, filled:
		return found, nil
	}
	return untouched, fault.New(errdefs.ErrDataLoss, "the file %s is damaged", s.file(in, id))
}

// set records a state durably.
func (s *states) set(in, id string, to state) error {
	if to == untouched {
		return os.Remove(s.file(in, id))
	}
	if s.dir == "" {
		if err := s.driver.Create(statesID, "", nil); err != nil {
			return err
		}
		if err := s.open(); err != nil {
			return err
		}
	}
	return atomicfile.Write(s.file(in, id), []byte(to), 0o600)
}
