// Package dockerapi is the Source of Docker Engine 29 and later, which keeps the size of docker run --storage-opt to itself. It
// reads three things from the engine's API: events of containers, the list of containers, and one container.
package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// Namespace is the engine's in containerd.
const Namespace = "moby"

// DefaultAddress is where engines serve their API.
const DefaultAddress = "unix:///run/docker.sock"

const (
	answerTimeout = 30 * time.Second // for an answer that ends
	maxAnswer     = 64 << 20         // of a list
	maxObject     = 4 << 20          // of one container or event
)

// Container is the part of a container's description that limits and promotions need.
type Container struct {
	ID      string    `json:"Id"`
	Name    string    `json:"Name"`
	Created time.Time `json:"Created"`
	Driver  string    `json:"Driver"` // the snapshotter
	Image   string    `json:"Image"`  // digest of the manifest or index
	// ImageManifestDescriptor is that of the manifest, nil if the engine does not know it.
	ImageManifestDescriptor *ocispec.Descriptor `json:"ImageManifestDescriptor"`
	State                   struct {
		Status string `json:"Status"`
	} `json:"State"`
	Config struct {
		Image  string            `json:"Image"` // name
		Labels map[string]string `json:"Labels"`
	} `json:"Config"`
	HostConfig struct {
		StorageOpt map[string]string `json:"StorageOpt"`
	} `json:"HostConfig"`
}

// Client reads from the API of an engine.
type Client struct{ http *http.Client }

// NewClient makes a client for an address as unix:///run/docker.sock. It connects when it is used.
func NewClient(address string) (*Client, error) {
	path, err := socketOf(address)
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialer.DialContext(ctx, "unix", path) },
	}}}, nil
}

// CheckAddress returns errdefs.ErrInvalidArgument if an address is not that of a socket on this host.
func CheckAddress(address string) error {
	_, err := socketOf(address)
	return err
}

func socketOf(address string) (string, error) {
	path, ok := strings.CutPrefix(address, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return "", fault.New(errdefs.ErrInvalidArgument, "%q must be unix:///PATH", address)
	}
	return path, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Container describes a container by its name, its id or the beginning of its id. Returns errdefs.ErrNotFound if there is
// none.
func (c *Client) Container(ctx context.Context, name string) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	body, err := c.get(ctx, "/containers/"+url.PathEscape(name)+"/json", nil)
	if err != nil {
		return Container{}, err
	}
	defer body.Close()
	var found Container
	if err := json.NewDecoder(io.LimitReader(body, maxObject)).Decode(&found); err != nil {
		return Container{}, fmt.Errorf("description of container %s: %w", name, err)
	}
	return found, nil
}

// list lists the ids of all containers.
func (c *Client) list(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	body, err := c.get(ctx, "/containers/json", url.Values{"all": {"1"}})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var found []struct {
		ID string `json:"Id"`
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&found); err != nil {
		return nil, fmt.Errorf("list of containers: %w", err)
	}
	ids := make([]string, len(found))
	for i := range found {
		ids[i] = found[i].ID
	}
	return ids, nil
}

// event is the creation or the removal of a container.
type event struct {
	Action string `json:"Action"`
	Actor  struct {
		ID string `json:"ID"`
	} `json:"Actor"`
}

const (
	created = "create"
	removed = "destroy"
)

// unstarted is the status of a container that has never been started.
const unstarted = "created"

// events are the events from now on. The stream ends with ctx or with the engine.
func (c *Client) events(ctx context.Context) (*eventStream, error) {
	filters, err := json.Marshal(map[string][]string{"type": {"container"}, "event": {created, removed}})
	if err != nil {
		return nil, err
	}
	body, err := c.get(ctx, "/events", url.Values{"filters": {string(filters)}})
	if err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: body}
	return &eventStream{Closer: body, limited: limited, decoder: json.NewDecoder(limited)}, nil
}

type eventStream struct {
	io.Closer
	limited *io.LimitedReader
	decoder *json.Decoder
}

func (s *eventStream) next() (event, error) {
	s.limited.N = maxObject
	var e event
	err := s.decoder.Decode(&e)
	return e, err
}

func (c *Client) get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker"+path+"?"+query.Encode(), http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response.Body, nil
	}
	defer response.Body.Close()
	var kind error = errdefs.ErrUnknown
	if response.StatusCode == http.StatusNotFound {
		kind = errdefs.ErrNotFound
	}
	var problem struct {
		Message string `json:"message"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxObject)).Decode(&problem); err != nil {
		problem.Message = "no reason"
	}
	return nil, fault.New(kind, "docker says %s: %s", response.Status, problem.Message)
}
