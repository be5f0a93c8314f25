package containersstorage

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

const (
	maxRecords     = 64 << 20 // bytes of a file of records: a layer takes about a kilobyte
	maxRecordCount = 100_000
	maxConfig      = 16 << 20
	maxSmallFile   = 64 << 10 // such as "lower", which has 30 bytes for each of at most 500 layers
)

// layerRecord is a layer in layers.json.
type layerRecord struct {
	ID       string          `json:"id"`
	Names    []string        `json:"names"`
	Parent   string          `json:"parent"`
	DiffID   digest.Digest   `json:"diff-digest"`
	DiffSize int64           `json:"diff-size"`
	Flags    map[string]any  `json:"flags"`
	UIDMap   []mappedIDRange `json:"uidmap"`
	GIDMap   []mappedIDRange `json:"gidmap"`
}

// imageRecord is an image in images.json.
type imageRecord struct {
	ID              string                   `json:"id"`
	Digest          digest.Digest            `json:"digest"`
	Names           []string                 `json:"names"`
	TopLayer        string                   `json:"layer"`
	MappedTopLayers []string                 `json:"mapped-layers"`
	BigDataDigests  map[string]digest.Digest `json:"big-data-digests"`
}

// containerRecord is a container in containers.json.
type containerRecord struct {
	ID     string          `json:"id"`
	Names  []string        `json:"names"`
	Image  string          `json:"image"`
	Layer  string          `json:"layer"`
	UIDMap []mappedIDRange `json:"uidmap"`
	GIDMap []mappedIDRange `json:"gidmap"`
}

type mappedIDRange struct {
	Container int64 `json:"container_id"`
	Host      int64 `json:"host_id"`
	Size      int64 `json:"size"`
}

// isMapped reports whether files have other ids on the host than in the container.
func isMapped(ranges ...[]mappedIDRange) bool {
	for _, list := range ranges {
		for _, r := range list {
			if r.Container != r.Host {
				return true
			}
		}
	}
	return false
}

// isIncomplete reports whether the layer was being made or removed when its program ended.
func (l *layerRecord) isIncomplete() bool {
	incomplete, _ := l.Flags["incomplete"].(bool)
	return incomplete
}

// parseRecords reads a JSON array of records.
func parseRecords[T any](data []byte) ([]T, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	start, err := decoder.Token()
	if err == nil && start == nil {
		return nil, nil // null, as of no records
	}
	if err != nil || start != json.Delim('[') {
		return nil, errors.Join(fault.New(errdefs.ErrDataLoss, "not a JSON array"), err)
	}
	var records []T
	for decoder.More() {
		if len(records) == maxRecordCount {
			return nil, fault.New(errdefs.ErrResourceExhausted, "more than %d records", maxRecordCount)
		}
		var record T
		if err := decoder.Decode(&record); err != nil {
			return nil, fault.As(errdefs.ErrDataLoss, err)
		}
		records = append(records, record)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, fault.As(errdefs.ErrDataLoss, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fault.New(errdefs.ErrDataLoss, "it has data after the JSON array")
	}
	return records, nil
}

// readRecords reads the records of several files, of which each may be missing. The first record of an ID counts, as in
// containers/storage.
func readRecords[T any](s *Source, id func(*T) string, names ...string) ([]T, error) {
	var all []T
	seen := map[string]bool{}
	for _, name := range names {
		data, err := s.root.ReadFile(name, maxRecords)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(data) == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		records, err := parseRecords[T](data)
		if err != nil {
			return nil, fault.Wrap("read", s.root.Join(name), err)
		}
		for i := range records {
			if !seen[id(&records[i])] {
				seen[id(&records[i])] = true
				all = append(all, records[i])
			}
		}
	}
	return all, nil
}

func (s *Source) readLayers() ([]layerRecord, error) {
	dir := s.driver + "-layers/"
	return readRecords(s, func(l *layerRecord) string { return l.ID }, dir+"layers.json", dir+"volatile-layers.json")
}

func (s *Source) readImages() ([]imageRecord, error) {
	return readRecords(s, func(i *imageRecord) string { return i.ID }, s.driver+"-images/images.json")
}

func (s *Source) readContainers() ([]containerRecord, error) {
	dir := s.driver + "-containers/"
	return readRecords(s, func(c *containerRecord) string { return c.ID }, dir+"containers.json", dir+"volatile-containers.json")
}

// dataFile is the name of the file in which containers/storage keeps data of that name.
func dataFile(name string) string {
	isOdd := func(r rune) bool { return r != '.' && (r < '0' || r > '9') && (r < 'a' || r > 'z') }
	at := strings.IndexFunc(name, isOdd)
	if at < 0 {
		return name
	}
	if _, length := utf8.DecodeRuneInString(name[at:]); at+length == len(name) {
		return name // containers/storage overlooks the last character
	}
	return "=" + base64.StdEncoding.EncodeToString([]byte(name))
}
