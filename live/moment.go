package live

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/atomicfile"
	"github.com/cowshed/cowshed/internal/staging"
	"github.com/cowshed/cowshed/internal/syncdir"
)

// Moment is the content of a layer at one time.
type Moment struct {
	Volume  string    `json:"volume"`            // has the content
	Layer   string    `json:"layer"`             // whose content it is
	Base    string    `json:"base,omitempty"`    // from which the layer's changes count
	Name    string    `json:"name,omitempty"`    // of the snapshot; "" for a moment that exists for its forks alone
	Message string    `json:"message,omitempty"` // of the snapshot
	Time    time.Time `json:"time"`
	// Schedule is the Name of the Schedule that took the snapshot, "" if it was taken by hand.
	Schedule string `json:"schedule,omitempty"`
	Forks    []Fork `json:"forks,omitempty"`
}

// Fork is a layer that was forked from a moment.
type Fork struct {
	Name    string            `json:"name"`
	Expires time.Time         `json:"expires,omitzero"` // when it is removed, unless it is in use then
	Labels  map[string]string `json:"labels,omitempty"`
}

// record is a moment as it is kept in a file.
type record struct {
	Version int `json:"version"`
	Moment
	// Replaced is the time at which the layer's former volume was made, while Volume is about to become the layer and the
	// layer the moment.
	Replaced time.Time `json:"replaced,omitzero"`
	// Made is the time at which Volume was made that is about to be exchanged for the layer. Afterwards Volume has another time.
	Made time.Time `json:"made,omitzero"`
	// Limit is the limit of the layer in bytes when the replacement began.
	Limit uint64 `json:"limit,omitempty"`
	// Held is how many bytes the moment may be the last to hold. See Layers.Held.
	Held uint64 `json:"held,omitempty"`
	// Of is the time at which the volume was made whose allocated data Held is. It is zero where Held is counted otherwise.
	Of time.Time `json:"of,omitzero"`
}

const (
	recordVersion   = 1
	maxRecordSize   = 4 << 20
	temporaryPrefix = ".new-"
	recordSuffix    = ".json"
	newSuffix       = ".new" // of the volume that is about to become a layer
)

var momentName = regexp.MustCompile(`^moment-[0-9a-f]{12}-[a-z2-7]{12}$`)

// IsMoment reports whether a volume of that name is a moment. No layer has such a name.
func IsMoment(name string) bool {
	return momentName.MatchString(strings.TrimSuffix(name, newSuffix))
}

// tag begins the names of the volumes of a layer's moments, so that these are found without reading every record.
func tag(layer string) string {
	sum := sha256.Sum256([]byte(layer))
	return "moment-" + hex.EncodeToString(sum[:6]) + "-"
}

// tagOf returns the tag in the name of a moment's volume.
func tagOf(volume string) string { return volume[:strings.LastIndexByte(volume, '-')+1] }

// newMoment describes a moment of layer that is about to be made.
func newMoment(layer, base string) record {
	return record{Version: recordVersion, Moment: Moment{
		Volume: staging.Name(tag(layer)), Layer: layer, Base: base, Time: time.Now().UTC().Truncate(time.Millisecond),
	}}
}

// save writes a record, so that it survives a power cut. Returns ErrInvalidArgument if load would refuse it for its size.
func (l *Layers) save(dir string, r record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= maxRecordSize {
		return fault.New(errdefs.ErrInvalidArgument, "message, names and labels have %d bytes: at most %d fit", len(data), maxRecordSize)
	}
	return atomicfile.WriteAs(l.path(dir, r.Volume+recordSuffix), temporaryPrefix, append(data, '\n'), 0o600)
}

// commit records a moment whose step has ended. A crash leaves the record of the step too, which then counts no more.
func (l *Layers) commit(r record) (Moment, error) {
	r.Replaced, r.Made, r.Limit = time.Time{}, time.Time{}, 0
	if err := l.save(momentsDir, r); err != nil {
		return Moment{}, err
	}
	return r.Moment, l.forget(pendingDir, r.Volume)
}

// commitMade is commit of a moment that Backend calls alone have made. The record of the step is durable and complete, so it is
// linked, not written again. A rename would cost more: after one into another directory, btrfs commits its whole transaction at the
// next fsync of the former.
func (l *Layers) commitMade(r record) (Moment, error) {
	err := os.Link(l.path(pendingDir, r.Volume+recordSuffix), l.path(momentsDir, r.Volume+recordSuffix))
	if err == nil {
		err = syncdir.Sync(l.path(momentsDir))
	}
	if err != nil {
		return Moment{}, err
	}
	return r.Moment, l.forget(pendingDir, r.Volume)
}

// forget deletes a record.
func (l *Layers) forget(dir, volume string) error {
	return removeIfThere(l.path(dir, volume+recordSuffix))
}

// load reads a record. Returns errdefs.ErrNotFound if there is none.
func (l *Layers) load(dir, volume string) (r record, err error) {
	path := l.path(dir, volume+recordSuffix)
	defer func() {
		if err != nil {
			err = fmt.Errorf("record of a moment %s: %w", path, err)
		}
	}()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, fault.New(errdefs.ErrNotFound, "moment %s", volume)
	}
	if err != nil {
		return r, err
	}
	if err := errors.Join(decodeRecord(f, &r), f.Close()); err != nil {
		return r, err
	}
	switch {
	case r.Version != recordVersion:
		return r, fault.New(errdefs.ErrNotImplemented, "version %d, where %d is known", r.Version, recordVersion)
	case r.Volume != volume || !IsMoment(volume) || cowcommon.CheckID(r.Layer) != nil:
		return r, fault.New(errdefs.ErrDataLoss, "it is of moment %q of layer %q", r.Volume, r.Layer)
	}
	return r, nil
}

// decodeRecord reads a record from a file. Returns errdefs.ErrDataLoss if the file has no such record.
func decodeRecord(from io.Reader, r any) error {
	data, err := io.ReadAll(io.LimitReader(from, maxRecordSize+1))
	if err != nil {
		return err
	}
	if len(data) > maxRecordSize {
		return fault.New(errdefs.ErrDataLoss, "it is longer than %d bytes", maxRecordSize)
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(r); err != nil {
		return fault.As(errdefs.ErrDataLoss, err)
	}
	return nil
}

type readDir = func(dir string) ([]os.DirEntry, error)

// recorded lists the moments that have a record and whose volumes' names begin so. It may miss a record that is replaced meanwhile,
// unless the caller keeps others from that.
func (l *Layers) recorded(dir, prefix string) (volumes []string, err error) {
	return l.recordedBy(os.ReadDir, dir, prefix)
}

// recordedBy is recorded with a function that reads the directory. With dirlist.Read it misses nothing.
func (l *Layers) recordedBy(read readDir, dir, prefix string) (volumes []string, err error) {
	entries, err := read(l.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		volume, ok := strings.CutSuffix(entry.Name(), recordSuffix)
		if ok && strings.HasPrefix(volume, prefix) && IsMoment(volume) {
			volumes = append(volumes, volume)
		}
	}
	return volumes, err
}

// records reads the records whose volumes' names begin so, oldest first. It reports records that cannot be read.
func (l *Layers) records(dir, prefix string) ([]record, error) {
	volumes, err := l.recorded(dir, prefix)
	if err != nil {
		return nil, err
	}
	return l.loadAll(dir, volumes), nil
}

// loadAll is records for given volumes.
func (l *Layers) loadAll(dir string, volumes []string) (records []record) {
	for _, volume := range volumes {
		r, err := l.load(dir, volume)
		switch {
		case errdefs.IsNotFound(err): // it has just gone
		case err != nil:
			l.log.Warn("the record of a fork or moment cannot be read, and is left out", "error", err)
		default:
			records = append(records, r)
		}
	}
	slices.SortStableFunc(records, func(a, b record) int { return a.Time.Compare(b.Time) })
	return records
}

// recordsOf reads the records of a layer's moments, oldest first.
func (l *Layers) recordsOf(dir, layer string) ([]record, error) {
	records, err := l.records(dir, tag(layer))
	return slices.DeleteFunc(records, func(r record) bool { return r.Layer != layer }), err
}
