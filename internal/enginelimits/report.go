package enginelimits

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/snapshotter"
)

// reportName is the file in the state directory that has the Report.
const reportName = "engines.json"

const (
	maxRefused = 100   // containers that a Report names
	maxKnown   = 10000 // containers that are remembered for it; of more, the oldest are forgotten
)

// Report is the state of the engines, for cowshed doctor.
type Report struct {
	Engines []Engine  `json:"engines"`
	Refused []Refused `json:"refused"` // the first of them
	More    int       `json:"more"`    // that are not named
}

// Engine is the state of the connection to an engine.
type Engine struct {
	Name      string    `json:"name"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Error     string    `json:"error,omitempty"` // that ended the last connection
}

// Refused is a container that has not the limit that its engine knows.
type Refused struct {
	Engine    string `json:"engine"`
	Namespace string `json:"namespace"`
	ID        string `json:"id"`
	Name      string `json:"name"`
	Error     string `json:"error"`

	stops bool // it is not to be started
}

// ReadReport reads the report of the running daemon in its state directory. Returns fs.ErrNotExist if it has no engines.
func ReadReport(state string) (Report, error) {
	name := filepath.Join(state, reportName)
	text, err := os.ReadFile(name)
	if err != nil {
		return Report{}, err
	}
	var r Report
	if err := json.Unmarshal(text, &r); err != nil {
		return Report{}, fmt.Errorf("read %s: %w", name, err)
	}
	return r, nil
}

// RemoveReport removes the report of a former daemon.
func RemoveReport(state string) error {
	if err := os.Remove(filepath.Join(state, reportName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// report keeps a Report in its file.
type report struct {
	file string
	log  *slog.Logger

	mu      sync.Mutex
	engines []Engine
	all     []Refused
}

func (r *report) engine(name string, connected bool, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := Engine{Name: name, Connected: connected, Since: time.Now()}
	if reason != nil {
		e.Error = reason.Error()
	}
	i := slices.IndexFunc(r.engines, func(e Engine) bool { return e.Name == name })
	if i < 0 {
		r.engines = append(r.engines, e)
	} else {
		if r.engines[i].Connected == connected {
			e.Since = r.engines[i].Since
		}
		r.engines[i] = e
	}
	r.write()
}

// refused notes a container, and reports whether it is not to be started.
func (r *report) refused(c Container, err error) (stops bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, bad := c.bytes()
	entry := Refused{c.Engine, c.Namespace, c.ID, c.Name, err.Error(), c.Unstarted && bad != nil}
	i := r.find(c.Namespace, c.ID)
	switch {
	case i >= 0:
		r.all[i] = entry
	case len(r.all) == maxKnown:
		r.all = append(slices.Delete(r.all, 0, 1), entry)
	default:
		r.all = append(r.all, entry)
	}
	r.write()
	return entry.stops
}

// started notes that a container has been started after all.
func (r *report) started(namespace, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.find(namespace, id); i >= 0 {
		r.all[i].stops = false
	}
}

func (r *report) forget(namespace, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.find(namespace, id); i >= 0 {
		r.all = slices.Delete(r.all, i, i+1)
		r.write()
	}
}

// stopped returns the container whose snapshot has the key, if it is not to be started.
func (r *report) stopped(key string) (c Refused, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.find(snapshotter.SplitKey(key))
	if i < 0 {
		return Refused{}, false
	}
	return r.all[i], r.all[i].stops
}

func (r *report) settled(key string) { r.forget(snapshotter.SplitKey(key)) }

// begin forgets the refused containers of an engine, which is going to name all of its containers.
func (r *report) begin(engine string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = slices.DeleteFunc(r.all, func(c Refused) bool { return c.Engine == engine })
}

func (r *report) find(namespace, id string) int {
	return slices.IndexFunc(r.all, func(c Refused) bool { return c.Namespace == namespace && c.ID == id })
}

func (r *report) write() {
	named := r.all[:min(len(r.all), maxRefused)]
	text, err := json.Marshal(Report{Engines: r.engines, Refused: named, More: len(r.all) - len(named)})
	if err == nil {
		err = atomicfile.Write(r.file, text, 0o600)
	}
	if err != nil {
		r.log.Warn("the state of the engines cannot be written for cowshed doctor", "error", err)
	}
}
