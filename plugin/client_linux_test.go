package plugin

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

// engine is the client half of the protocol, as Docker Engine 20.10 has it: the same requests in the same
// form, and the same reading of the answers. Unlike it, it does not repeat requests.
type engine struct {
	http *http.Client
}

var _ graphdriver.Driver = (*engine)(nil)

// newEngine makes an engine that finds the plugin at a socket. It has no connection open when the test ends.
func newEngine(t testing.TB, socket string) *engine {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		DisableKeepAlives:  true, // an idle connection would look like a leak
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &engine{http: &http.Client{Transport: transport}}
}

// message is every request but Init, as the engine writes it.
type message struct {
	ID         string            `json:",omitempty"`
	Parent     string            `json:",omitempty"`
	MountLabel string            `json:",omitempty"`
	StorageOpt map[string]string `json:",omitempty"`
}

// reply is every answer, as the engine reads it.
type reply struct {
	Err          string            `json:",omitempty"`
	Dir          string            `json:",omitempty"`
	Exists       bool              `json:",omitempty"`
	Status       [][2]string       `json:",omitempty"`
	Changes      []archive.Change  `json:",omitempty"`
	Size         int64             `json:",omitempty"`
	Metadata     map[string]string `json:",omitempty"`
	Capabilities struct {
		ReproducesExactDiffs bool
	} `json:",omitempty"`
}

// engineIDMap is a range of ids as the engine writes it.
type engineIDMap struct {
	ContainerID int `json:"container_id"`
	HostID      int `json:"host_id"`
	Size        int `json:"size"`
}

// initMessageOfEngine is Init as the engine writes it.
type initMessageOfEngine struct {
	Home    string
	Opts    []string      `json:"Opts"`
	UIDMaps []engineIDMap `json:"UIDMaps"`
	GIDMaps []engineIDMap `json:"GIDMaps"`
}

// post sends a request and returns the body of the answer, or the plugin's error.
func (e *engine) post(method string, body io.Reader) (io.ReadCloser, error) {
	request, err := http.NewRequest(http.MethodPost, "/"+method, body)
	if err != nil {
		return nil, err
	}
	request.Header.Add("Accept", "application/vnd.docker.plugins.v1.2+json")
	request.URL.Scheme = "http"
	request.URL.Host = "plugin"
	response, err := e.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var failed struct{ Err string }
	if err := json.Unmarshal(text, &failed); err == nil && failed.Err != "" {
		return nil, pluginError{failed.Err}
	}
	return nil, fmt.Errorf("%s: %s", method, text)
}

func (e *engine) call(method string, args any) (reply, error) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(args); err != nil {
		return reply{}, err
	}
	answer, err := e.post("GraphDriver."+method, &body)
	if err != nil {
		return reply{}, err
	}
	return read(answer)
}

func read(answer io.ReadCloser) (reply, error) {
	defer answer.Close()
	var r reply
	if err := json.NewDecoder(answer).Decode(&r); err != nil {
		return reply{}, err
	}
	if r.Err != "" {
		return reply{}, pluginError{r.Err}
	}
	return r, nil
}

// pluginError is an error that arrived as text. The tests match it by its original type: that shows, too, that the
// text of the error arrives.
type pluginError struct{ text string }

func (e pluginError) Error() string { return e.text }

func (e pluginError) Is(target error) bool {
	for _, kind := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrAborted, fault.ErrInUse, fault.ErrSealed,
		io.ErrUnexpectedEOF,
	} {
		if errors.Is(kind, target) && strings.Contains(e.text, kind.Error()) {
			return true
		}
	}
	return false
}

func (e *engine) activate() ([]string, error) {
	answer, err := e.post("Plugin.Activate", &bytes.Buffer{})
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	var manifest struct{ Implements []string }
	err = json.NewDecoder(answer).Decode(&manifest)
	return manifest.Implements, err
}

func (e *engine) init(home string, options []string, idMap user.IdentityMapping) error {
	ranges := func(maps []user.IDMap) []engineIDMap {
		var ranges []engineIDMap
		for _, m := range maps {
			ranges = append(ranges, engineIDMap{int(m.ID), int(m.ParentID), int(m.Count)})
		}
		return ranges
	}
	_, err := e.call("Init", initMessageOfEngine{home, options, ranges(idMap.UIDMaps), ranges(idMap.GIDMaps)})
	return err
}

func (e *engine) capabilities() (exactDiffs bool, err error) {
	r, err := e.call("Capabilities", message{})
	return r.Capabilities.ReproducesExactDiffs, err
}

func (e *engine) String() string { return "plugin" }

func (e *engine) create(method, id, parent string, opts *graphdriver.CreateOpts) error {
	m := message{ID: id, Parent: parent}
	if opts != nil {
		m.MountLabel, m.StorageOpt = opts.MountLabel, opts.StorageOpt
	}
	_, err := e.call(method, m)
	return err
}

func (e *engine) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	return e.create("Create", id, parent, opts)
}

func (e *engine) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return e.create("CreateReadWrite", id, parent, opts)
}

func (e *engine) Remove(id string) error {
	_, err := e.call("Remove", message{ID: id})
	return err
}

func (e *engine) Get(id, mountLabel string) (string, error) {
	r, err := e.call("Get", message{ID: id, MountLabel: mountLabel})
	return r.Dir, err
}

func (e *engine) Put(id string) error {
	_, err := e.call("Put", message{ID: id})
	return err
}

func (e *engine) Exists(id string) bool {
	r, err := e.call("Exists", message{ID: id})
	return err == nil && r.Exists
}

func (e *engine) Status() [][2]string {
	r, err := e.call("Status", message{})
	if err != nil {
		return nil
	}
	return r.Status
}

func (e *engine) GetMetadata(id string) (map[string]string, error) {
	r, err := e.call("GetMetadata", message{ID: id})
	return r.Metadata, err
}

func (e *engine) Cleanup() error {
	_, err := e.call("Cleanup", message{})
	return err
}

func (e *engine) Diff(id, parent string) (io.ReadCloser, error) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(message{ID: id, Parent: parent}); err != nil {
		return nil, err
	}
	return e.post("GraphDriver.Diff", &body)
}

func (e *engine) Changes(id, parent string) ([]archive.Change, error) {
	r, err := e.call("Changes", message{ID: id, Parent: parent})
	if err != nil {
		return nil, err
	}
	for _, c := range r.Changes {
		if strings.ContainsRune(c.Path, utf8.RuneError) {
			return e.withNamesOfDiff(r.Changes, id, parent)
		}
	}
	return r.Changes, nil
}

// withNamesOfDiff puts the names that JSON cannot hold back into changes, from the tar of the same changes.
func (e *engine) withNamesOfDiff(changes []archive.Change, id, parent string) ([]archive.Change, error) {
	diff, err := e.Diff(id, parent)
	if err != nil {
		return nil, err
	}
	defer diff.Close()
	names := make(map[string]string) // as bytes, by their form in JSON
	for r := tar.NewReader(diff); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		dir, base := path.Split(path.Join("/", header.Name))
		name := dir + strings.TrimPrefix(base, ".wh.")
		names[string([]rune(name))] = name
	}
	for i, c := range changes {
		if strings.ContainsRune(c.Path, utf8.RuneError) {
			changes[i].Path = names[c.Path]
		}
	}
	return changes, nil
}

func (e *engine) ApplyDiff(id, parent string, diff io.Reader) (int64, error) {
	// The engine does not escape; its ids need no escaping, but those of the tests do.
	answer, err := e.post(fmt.Sprintf("GraphDriver.ApplyDiff?id=%s&parent=%s", url.QueryEscape(id), url.QueryEscape(parent)), diff)
	if err != nil {
		return -1, err
	}
	r, err := read(answer)
	return r.Size, err
}

func (e *engine) DiffSize(id, parent string) (int64, error) {
	r, err := e.call("DiffSize", message{ID: id, Parent: parent})
	return r.Size, err
}

// serveDriver serves a driver at a socket of its own until the test ends.
func serveDriver(t testing.TB, driver Driver) (e *engine, stop func()) {
	t.Helper()
	socket := t.TempDir() + "/p.sock"
	l, err := Listen(t.Context(), socket)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- NewHandler(driver).ServeContext(ctx, l) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		require.NoError(t, testfs.Receive(t, ended))
		require.NoFileExists(t, socket)
	}
	t.Cleanup(stop)
	return newEngine(t, socket), stop
}

// serveAdapter serves an adapter, and closes it after the test.
func serveAdapter(t testing.TB, open func(InitRequest) (graphdriver.Driver, error)) *engine {
	t.Helper()
	adapter := NewAdapter(open, AdapterOptions{})
	t.Cleanup(func() { require.NoError(t, errors.Join(adapter.Close(), adapter.Close())) })
	e, _ := serveDriver(t, adapter)
	return e
}
