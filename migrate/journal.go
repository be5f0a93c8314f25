package migrate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/syncdir"
)

const (
	journalFile    = "journal.json"
	journalVersion = 1
	maxLine        = 4 << 20   // bytes
	maxJournal     = 256 << 20 // bytes
)

// header is the first line of a journal. It says between which two places the migration is.
type header struct {
	Version int    `json:"version"`
	Program string `json:"program"` // of the source
	Driver  string `json:"driver"`  // of the source
	Source  string `json:"source"`
	Target  string `json:"target"`
}

// ProgramOldDocker and DriverGraph are the Program and Driver of an Inventory of package oldgraph.
const (
	ProgramOldDocker = "docker-before-0.7"
	DriverGraph      = "graph"
)

// rename gives the header of an earlier version the names of this one: Docker before 0.7 was "docker" too. Later versions of Docker
// have no driver "graph".
func (h *header) rename() {
	if h.Program == "docker" && h.Driver == DriverGraph {
		h.Program = ProgramOldDocker
	}
}

// Ends are the two places that a migration is between, as its journal has them.
type Ends struct {
	Program, Driver, Source string // Program and Driver are those of the Inventory
	Target                  string
}

// ReadEnds reads the journal in a directory. Returns ErrNotFound if there is no journal.
func ReadEnds(state string) (_ *Ends, err error) {
	j, err := openJournal(state, false)
	if err != nil {
		return nil, err
	}
	if !j.exists() {
		return nil, fault.New(errdefs.ErrNotFound, "there is no journal in %s", state)
	}
	h := j.header
	return &Ends{h.Program, h.Driver, h.Source, h.Target}, j.close()
}

// step is a kind of line of a journal.
type step string

const (
	stepIntent  step = "intent"  // the thing is not there, and is made next
	stepDone    step = "done"    // it is there, and was verified if that was asked for
	stepRemoved step = "removed" // it is gone again
)

// entry is a line of a journal.
type entry struct {
	Step step `json:"step"`
	Item Item `json:"item"`
	// Phase is set instead of Item for a step of the whole migration.
	Phase phase `json:"phase,omitempty"`
	// Time is when the work on the item began that led to this step. The thing is at least as new as its source was then.
	Time time.Time `json:"time,omitzero"`
}

// phase is a step of the whole migration, with an intent and a done as things have.
type phase string

const (
	phaseCommit phase = "commit" // removed: it was taken back
	phaseFinish phase = "finish"
)

// journal is the record of a migration: a header, and a line for each step. It is written in order, and a line that a
// crash has cut off is as if it had never been begun.
type journal struct {
	header header
	begun  []Item       // in the order of their intents; those that were removed are not in it
	at     map[key]int  // where begun has them
	made   map[key]bool // of begun: done
	times  map[key]time.Time
	phases map[phase]step

	file *os.File // nil: it is not there yet
	size int64    // bytes of whole lines
	torn bool     // a part of a line may follow them
	dir  string
	// fault is a test's: it is called before and after each write.
	fault func(point string)
}

// key names a thing in a journal.
type key struct{ kind, id string }

func (i Item) key() key {
	switch {
	case i.Layer != nil:
		return key{"layer", i.Layer.ID}
	case i.Image != nil:
		return key{"image", i.Image.ID.String()}
	case i.Container != nil:
		return key{"container", i.Container.ID}
	}
	return key{}
}

// openJournal opens the journal in a directory, if there is one. A caller that is to write has the lock.
func openJournal(dir string, toWrite bool) (_ *journal, err error) {
	j := &journal{
		at: make(map[key]int), made: make(map[key]bool), times: make(map[key]time.Time), phases: make(map[phase]step),
		dir: dir, fault: func(string) {},
	}
	path := filepath.Join(dir, journalFile)
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fault.New(errdefs.ErrDataLoss, "journal %s is no regular file", path)
	}
	flags := os.O_RDONLY
	if toWrite {
		flags = os.O_RDWR | os.O_APPEND
	}
	j.file, err = os.OpenFile(path, flags, 0)
	if errors.Is(err, fs.ErrNotExist) {
		j.file = nil
		return j, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("journal %s: %w", path, errors.Join(err, j.close()))
		}
	}()
	info, err := j.file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxJournal {
		return nil, fault.New(errdefs.ErrDataLoss, "more than %d bytes", maxJournal)
	}
	if j.size, err = j.read(j.file); err != nil {
		return nil, err
	}
	if toWrite && j.size < info.Size() {
		err = j.file.Truncate(j.size) // of a line that was cut off
	}
	return j, err
}

// exists reports whether the migration was begun.
func (j *journal) exists() bool { return j.file != nil }

// read reads all lines, and returns how many bytes the whole ones have.
func (j *journal) read(r io.Reader) (whole int64, err error) {
	in := bufio.NewReaderSize(r, 1<<16)
	for n := 1; ; n++ {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = j.line(line, n)
		}
		if err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
		whole += int64(len(line))
	}
	if j.header.Version == 0 {
		return 0, fault.New(errdefs.ErrDataLoss, "it has no header")
	}
	return whole, nil
}

// readLine reads a line with its end. Returns io.EOF at the end, and for a last line that has none.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxLine:
			return nil, fault.New(errdefs.ErrDataLoss, "more than %d bytes", maxLine)
		case errors.Is(err, bufio.ErrBufferFull):
		default:
			return line, err
		}
	}
}

// line takes the nth line.
func (j *journal) line(line []byte, n int) error {
	if n == 1 {
		if err := decode(line, &j.header); err != nil {
			return err
		}
		if j.header.Version != journalVersion {
			return fault.New(errdefs.ErrNotImplemented, "version %d, where %d is known", j.header.Version, journalVersion)
		}
		j.header.rename()
		return nil
	}
	var e entry
	if err := decode(line, &e); err != nil {
		return err
	}
	if e.Phase == "" {
		if err := e.Item.check(); err != nil {
			return fault.As(errdefs.ErrDataLoss, err)
		}
	}
	j.note(e)
	return nil
}

func decode(line []byte, into any) error {
	if err := json.Unmarshal(line, into); err != nil {
		return fault.New(errdefs.ErrDataLoss, "%w", err)
	}
	return nil
}

// note takes a step into account.
func (j *journal) note(e entry) {
	if e.Phase != "" {
		j.phases[e.Phase] = e.Step
		return
	}
	k := e.Item.key()
	at, isBegun := j.at[k]
	switch e.Step {
	case stepIntent:
		if !isBegun {
			j.at[k] = len(j.begun)
			j.begun = append(j.begun, e.Item)
		}
		j.times[k] = e.Time
	case stepDone:
		j.made[k] = true
		j.times[k] = e.Time
	case stepRemoved:
		delete(j.made, k)
		delete(j.times, k)
		if isBegun {
			j.drop(k, at)
		}
	}
}

// drop removes a thing from those that were begun. It is the last one, as a rule.
func (j *journal) drop(k key, at int) {
	delete(j.at, k)
	j.begun = append(j.begun[:at], j.begun[at+1:]...)
	for n := at; n < len(j.begun); n++ {
		j.at[j.begun[n].key()] = n
	}
}

func (j *journal) hasBegun(item Item) bool { _, ok := j.at[item.key()]; return ok }
func (j *journal) isMade(item Item) bool   { return j.made[item.key()] }

// mayBeCommitted reports whether the target may have handed things over to an engine.
func (j *journal) mayBeCommitted() bool {
	step := j.phases[phaseCommit]
	return step == stepIntent || step == stepDone
}

// since is when the making of a thing began.
func (j *journal) since(item Item) time.Time { return j.times[item.key()] }

// create writes a journal's header.
func (j *journal) create(h header) error {
	h.Version = journalVersion
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, journalFile)
	j.fault("before header")
	if err := atomicfile.Write(path, append(line, '\n'), 0o600); err != nil {
		return err
	}
	j.fault("after header")
	j.header, j.size = h, int64(len(line)+1)
	j.file, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	return err
}

// write writes a step, which survives a power cut.
func (j *journal) write(e entry) error {
	if err := j.append(e); err != nil {
		return err
	}
	err := j.file.Sync()
	j.fault("after sync")
	return err
}

// append writes a step, which survives a power cut if a later one does.
func (j *journal) append(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(line) >= maxLine {
		return fault.New(errdefs.ErrInvalidArgument, "%s %.32q has more names than a journal can hold", e.Item.key().kind, e.Item.key().id)
	}
	j.fault("before write")
	if err := j.mend(); err != nil {
		return err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		j.torn = true // on a full filesystem
		return errors.Join(err, j.mend())
	}
	j.size += int64(len(line) + 1)
	j.fault("after write")
	j.note(e)
	return nil
}

// mend removes the part of a line that a failed write has left.
func (j *journal) mend() error {
	if !j.torn {
		return nil
	}
	err := j.file.Truncate(j.size)
	j.torn = err != nil
	return err
}

func (j *journal) intent(item Item, began time.Time) error {
	return j.write(entry{Step: stepIntent, Item: item.brief(), Time: began})
}

func (j *journal) done(item Item, began time.Time) error {
	return j.append(entry{Step: stepDone, Item: item.name(), Time: began})
}

func (j *journal) removed(item Item) error {
	return j.append(entry{Step: stepRemoved, Item: item.name()})
}

func (j *journal) phase(p phase, s step) error { return j.write(entry{Phase: p, Step: s}) }

// delete deletes the journal: there is nothing more to undo.
func (j *journal) delete() error {
	if j.file == nil {
		return nil
	}
	j.fault("before delete")
	if err := errors.Join(j.close(), os.Remove(filepath.Join(j.dir, journalFile))); err != nil {
		return err
	}
	j.fault("after delete")
	return syncdir.Sync(j.dir)
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

// brief is an item without its large parts, with which it can still be removed.
func (i Item) brief() Item {
	if i.Image == nil {
		return i
	}
	brief := *i.Image
	brief.Config = nil
	return Item{Image: &brief}
}

// name is an item with its ID alone.
func (i Item) name() Item {
	switch {
	case i.Layer != nil:
		return Item{Layer: &Layer{ID: i.Layer.ID}}
	case i.Image != nil:
		return Item{Image: &Image{ID: i.Image.ID}}
	case i.Container != nil:
		return Item{Container: &Container{ID: i.Container.ID}}
	}
	return i
}

// MarshalJSON leaves out the fields that are nil.
func (i Item) MarshalJSON() ([]byte, error) {
	type item struct {
		Layer     *Layer     `json:"layer,omitempty"`
		Image     *Image     `json:"image,omitempty"`
		Container *Container `json:"container,omitempty"`
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(item(i))
	return bytes.TrimSpace(b.Bytes()), err
}
