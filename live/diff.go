package live

import (
	"context"

	"github.com/cowshed/cowshed/cowcommon"
)

// Find returns the volume of a reference: a layer, or LAYER@SNAPSHOT.
func (l *Layers) Find(ctx context.Context, ref string) (cowcommon.Volume, error) {
	layer, snapshot, ok := Cut(ref)
	if !ok {
		return l.statNamed(ctx, ref)
	}
	m, err := l.Get(layer, snapshot)
	if err != nil {
		return cowcommon.Volume{}, err
	}
	return l.backend.Stat(ctx, m.Volume)
}

// Diff lists the changes of one layer or snapshot since another, or since its base if since is "". The caller closes the
// result.
func (l *Layers) Diff(ctx context.Context, ref, since string) (*cowcommon.Comparison, error) {
	v, err := l.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	var base string
	if since == "" {
		base, err = l.Base(ctx, v)
	} else {
		var other cowcommon.Volume
		other, err = l.Find(ctx, since)
		base = other.Name
	}
	if err != nil {
		return nil, err
	}
	return l.comparer.Compare(ctx, v.Name, base, cowcommon.Auto)
}
