package client

import (
	"context"
	"io"
	"net/http"

	"github.com/cowshed/cowshed/api"
)

// Description returns the description of the API that the server answers, in OpenAPI.
func (c *Client) Description(ctx context.Context) ([]byte, error) {
	body, err := c.stream(ctx, request{method: http.MethodGet, path: []string{"openapi.yaml"}}, "")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxAnswer))
}

// Info describes the server, and the caller as the server sees it.
func (c *Client) Info(ctx context.Context) (info api.Info, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: []string{"info"}}, &info)
	return info, err
}

// ListLayers lists the layers that the caller may read, by name.
func (c *Client) ListLayers(ctx context.Context) ([]api.Layer, error) { return c.list(ctx, false) }

// ListContainerForks lists the forks of containers that the caller may read, by name.
func (c *Client) ListContainerForks(ctx context.Context) ([]api.Layer, error) {
	return c.list(ctx, true)
}

func (c *Client) list(ctx context.Context, forks bool) ([]api.Layer, error) {
	var layers api.Layers
	err := c.call(ctx, request{method: http.MethodGet, path: []string{"layers"}, query: query{}.flag("forks", forks)}, &layers)
	return layers.Layers, err
}

// CreateLayer makes a layer.
func (c *Client) CreateLayer(ctx context.Context, layer api.NewLayer) (made api.Layer, err error) {
	err = c.call(ctx, request{method: http.MethodPost, path: []string{"layers"}, body: layer}, &made)
	return made, err
}

// GetLayer describes a layer.
func (c *Client) GetLayer(ctx context.Context, layer string) (found api.Layer, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: layerPath(layer)}, &found)
	return found, err
}

// RemoveLayer removes a layer with its snapshots. Its forks stay.
func (c *Client) RemoveLayer(ctx context.Context, layer string) error {
	return c.remove(ctx, layer, false)
}

// ForceRemoveLayer is RemoveLayer for a layer from which others were made. It does nothing if there is no such layer.
func (c *Client) ForceRemoveLayer(ctx context.Context, layer string) error {
	return c.remove(ctx, layer, true)
}

func (c *Client) remove(ctx context.Context, layer string, force bool) error {
	return c.call(ctx, request{method: http.MethodDelete, path: layerPath(layer), query: query{}.flag("force", force)}, nil)
}

// GetUsage says how much a layer or snapshot holds.
func (c *Client) GetUsage(ctx context.Context, layer string) (usage api.Usage, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: layerPath(layer, "usage")}, &usage)
	return usage, err
}

// SetLimit sets the limit of a layer to a size such as "10G". The size "none" removes the limit.
func (c *Client) SetLimit(ctx context.Context, layer, size string) error {
	return c.call(ctx, request{method: http.MethodPut, path: layerPath(layer, "limit"), body: api.NewLimit{Size: size}}, nil)
}
