package daemon

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/snapshotter"
)

// lostName is the file in the state directory that says which volumes were lost when the daemon started.
const lostName = "lost.json"

// ReportedLost lists the volumes that were lost when the running daemon was started. Returns fs.ErrNotExist if none
// were lost.
func ReportedLost(c Config) ([]snapshotter.Lost, error) {
	name := filepath.Join(c.State, lostName)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var lost []snapshotter.Lost
	if err := json.Unmarshal(text, &lost); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return lost, nil
}
