package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/snapshotter"
)

// Files in the state directory that tell doctor and lost of the metadata, which these cannot open while the daemon runs.
const (
	lostName   = "lost.json"   // the volumes that were lost when the daemon started
	doomedName = "doomed.json" // the doomed volumes that the last attempt could not destroy
)

// ReportedLost lists the volumes that were lost when the running daemon was started. Returns fs.ErrNotExist if no daemon
// has run.
func ReportedLost(c Config) (lost []snapshotter.Lost, err error) {
	err = readReport(c, lostName, &lost)
	return lost, err
}

// ReportedDoomed lists the volumes of removed snapshots that the running daemon could not destroy yet, with the reasons.
// Returns fs.ErrNotExist if no daemon has run.
func ReportedDoomed(c Config) (reasons map[string]string, err error) {
	err = readReport(c, doomedName, &reasons)
	return reasons, err
}

func readReport(c Config, name string, into any) error {
	name = filepath.Join(c.State, name)
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}
