package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/cowshed/cowshed/api"
)

// CompareOptions says with which layer a layer is compared, and how.
type CompareOptions struct {
	Since string // layer or snapshot; "": that from which the layer's changes count
	Whole bool   // compare with an empty tree
	Walk  bool   // look at every file instead of asking the filesystem for the changes
}

func (o CompareOptions) query() query {
	return query{"since": o.Since}.flag("whole", o.Whole).flag("walk", o.Walk)
}

// ListChanges lists the changes of a layer or snapshot since another.
func (c *Client) ListChanges(ctx context.Context, layer string, opts CompareOptions) (changes api.Changes, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: layerPath(layer, "changes"), query: opts.query()}, &changes)
	return changes, err
}

// Diff returns the changes of a layer or snapshot since another as a layer tar. compress is "none", "gzip" or "zstd", or "" for none.
//
// The caller closes the reader. Reading returns io.ErrUnexpectedEOF if the server could not make the whole tar.
func (c *Client) Diff(ctx context.Context, layer string, opts CompareOptions, compress string) (io.ReadCloser, error) {
	q := opts.query()
	q["compress"] = compress
	return c.stream(ctx, request{method: http.MethodGet, path: layerPath(layer, "diff"), query: q}, api.MediaTypeTar)
}

// ExportOptions says in which form a layer is exported.
type ExportOptions struct {
	Format   string // docker-archive or oci-archive; "" is docker-archive
	Name     string // of the image in the archive
	Compress string // of the layers: none, gzip or zstd; "" is none for docker-archive, and gzip for oci-archive
}

// Export returns a layer or image as an archive of an image. The reader works as the reader of Diff does.
func (c *Client) Export(ctx context.Context, layer string, opts ExportOptions) (io.ReadCloser, error) {
	q := query{"format": opts.Format, "name": opts.Name, "compress": opts.Compress}
	return c.stream(ctx, request{method: http.MethodGet, path: layerPath(layer, "export"), query: q}, api.MediaTypeTar)
}

// SendOptions says how much is sent.
type SendOptions struct {
	From        string // layer or snapshot that the receiver has
	WithParents bool   // send the layers from which the layer was made too, those after From
}

// Send returns a layer or snapshot as a stream for "cowshed receive". The reader works as the reader of Diff does.
func (c *Client) Send(ctx context.Context, layer string, opts SendOptions) (io.ReadCloser, error) {
	q := query{"from": opts.From}.flag("withParents", opts.WithParents)
	return c.stream(ctx, request{method: http.MethodGet, path: layerPath(layer, "stream"), query: q}, api.MediaTypeStream)
}

// Promote makes an image of a layer or snapshot as it is now, in use or not. It calls progress with each message of the
// server, unless progress is nil. Returns io.ErrUnexpectedEOF if the answer was cut off, so that the outcome is not
// known.
func (c *Client) Promote(ctx context.Context, layer string, image api.NewImage, progress func(api.Progress)) (api.Image, error) {
	body, err := c.stream(ctx, request{method: http.MethodPost, path: layerPath(layer, "promote"), body: image}, api.MediaTypeProgress)
	if err != nil {
		return api.Image{}, err
	}
	defer body.Close()
	lines := json.NewDecoder(io.LimitReader(body, maxAnswer))
	for {
		var p api.Progress
		if err := lines.Decode(&p); err != nil {
			return api.Image{}, unreadable(ctx, err)
		}
		switch {
		case p.Error != nil:
			return api.Image{}, p.Error
		case p.Image != nil:
			return *p.Image, nil
		case progress != nil:
			progress(p)
		}
	}
}
