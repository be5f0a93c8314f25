package migrate

import (
	"context"
	"errors"
)

// opener is the part of Source that a Forecast needs.
type opener interface {
	Open(ctx context.Context, layer string) (*Content, error)
}

// Forecast says how layers would come. It remembers the layers below, since a layer cannot be cloned onto a copy.
type Forecast struct {
	source opener
	how    func(ctx context.Context, layer *Layer, content *Content, below Coming) (How, int64, error)
	coming map[string]Coming // by the layer's ID
}

// NewForecast makes a Forecast by Target.How, or by a part of it.
func NewForecast(source opener, how func(ctx context.Context, layer *Layer, content *Content, below Coming) (How, int64, error)) *Forecast {
	return &Forecast{source: source, how: how, coming: make(map[string]Coming)}
}

// Next says how a layer that is not in the target would come, and how many bytes that takes. It is called for the layer
// below first, unless that is in the target.
func (f *Forecast) Next(ctx context.Context, layer *Layer) (How, int64, error) {
	content, err := f.source.Open(ctx, layer.ID)
	if err != nil {
		return "", 0, err
	}
	how, n, err := f.how(ctx, layer, content, f.coming[layer.Parent])
	if err = errors.Join(err, content.Close()); err == nil {
		f.coming[layer.ID] = Coming{how, content.Volume}
	}
	return how, n, err
}
