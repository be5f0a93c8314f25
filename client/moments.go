package client

import (
	"context"
	"net/http"

	"github.com/cowshed/cowshed/api"
)

// Fork makes forks of a layer or snapshot, in use or not. All forks are of the same moment. If Fork fails, no fork is
// left.
func (c *Client) Fork(ctx context.Context, layer string, forks api.NewForks) ([]api.Fork, error) {
	var made api.Forks
	err := c.call(ctx, request{method: http.MethodPost, path: layerPath(layer, "forks"), body: forks}, &made)
	return made.Forks, err
}

// ListSnapshots lists the snapshots of a layer, oldest first.
func (c *Client) ListSnapshots(ctx context.Context, layer string) ([]api.Snapshot, error) {
	var snapshots api.Snapshots
	err := c.call(ctx, request{method: http.MethodGet, path: layerPath(layer, "snapshots")}, &snapshots)
	return snapshots.Snapshots, err
}

// TakeSnapshot keeps a layer as it is now, in use or not.
func (c *Client) TakeSnapshot(ctx context.Context, layer string, snapshot api.NewSnapshot) (made api.Snapshot, err error) {
	err = c.call(ctx, request{method: http.MethodPost, path: layerPath(layer, "snapshots"), body: snapshot}, &made)
	return made, err
}

// RemoveSnapshot removes a snapshot of a layer. Its forks stay.
func (c *Client) RemoveSnapshot(ctx context.Context, layer, snapshot string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: layerPath(layer, "snapshots", snapshot)}, nil)
}

// RollBack makes a layer as one of its snapshots is. It returns a new snapshot with the content of before.
func (c *Client) RollBack(ctx context.Context, layer string, rollback api.NewRollback) (before api.Snapshot, err error) {
	err = c.call(ctx, request{method: http.MethodPost, path: layerPath(layer, "rollback"), body: rollback}, &before)
	return before, err
}

// Merge applies the changes of a fork to the layer that it came from, or to another. Returns errdefs.ErrConflict if both sides have
// changed the same paths; the *api.Error lists them, and nothing is merged.
func (c *Client) Merge(ctx context.Context, fork string, merge api.NewMerge) (merged api.Merge, err error) {
	err = c.call(ctx, request{method: http.MethodPost, path: layerPath(fork, "merge"), body: merge}, &merged)
	return merged, err
}

// GetLog returns a layer with its snapshots and forks, and with the snapshots and forks of these.
func (c *Client) GetLog(ctx context.Context, layer string) (log api.Log, err error) {
	err = c.call(ctx, request{method: http.MethodGet, path: layerPath(layer, "log")}, &log)
	return log, err
}
