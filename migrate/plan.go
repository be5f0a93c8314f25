package migrate

import (
	"context"
	"errors"
	"math"
	"time"
)

// Plan lists the things that a run would make, and how.
type Plan struct {
	Program    string
	Driver     string
	Source     string
	Target     string
	Layers     []PlannedLayer
	Images     []Image
	Containers []Container
	Problems   []Problem // of things that do not come along
	Bytes      int64     // space that the data needs
	Blobs      int64     // space that blobs of images need at most, besides
	Estimate   time.Duration
	// Refusals are the reasons for which a run would change nothing.
	Refusals []error
}

// PlannedLayer is a layer of a Plan.
type PlannedLayer struct {
	Layer
	How   How
	Bytes int64 // space that its data needs
	Blob  int64 // space that its blob needs at most, 0 for none
	There bool  // it is in the target already
}

// Rates for the estimate. They are those of a slow disk, so that most migrations take less time.
const (
	perThing      = 15 * time.Millisecond
	reflinkRate   = 400 << 20 // bytes in a second
	copyRate      = 120 << 20
	blobRate      = 120 << 20 // compressed
	verifyingRate = 250 << 20

	longest = 10000 * time.Hour
)

// Plan makes a Plan. It changes nothing.
func (m *Migration) Plan(ctx context.Context) (_ *Plan, err error) {
	inv, err := m.source.Inventory(ctx)
	if err != nil {
		return nil, err
	}
	j, err := openJournal(m.opts.State, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, j.close()) }()

	p := &Plan{
		Program: inv.Program, Driver: inv.Driver, Source: m.opts.Source, Target: m.opts.Target,
		Problems: append([]Problem(nil), inv.Problems...),
	}
	for _, refusal := range []error{
		m.source.InUse(ctx), m.check(j), m.checkDriver(j, inv), m.target.Check(ctx, m.source, inv),
	} {
		if refusal != nil {
			p.Refusals = append(p.Refusals, refusal)
		}
	}
	without := newDependents()
	forecast := NewForecast(m.source, m.target.How)
	for _, item := range inv.items() {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		err := without.check(item)
		if err == nil {
			err = m.plan(ctx, p, forecast, item)
		}
		if err != nil {
			without.lost(item)
			p.Problems = append(p.Problems, item.problem(err))
		}
	}
	return p, nil
}

func (m *Migration) plan(ctx context.Context, p *Plan, forecast *Forecast, item Item) error {
	p.Estimate += perThing
	switch {
	case item.Image != nil:
		p.Images = append(p.Images, *item.Image)
		return nil
	case item.Container != nil:
		p.Containers = append(p.Containers, *item.Container)
		return nil
	}
	layer := PlannedLayer{Layer: *item.Layer}
	var err error
	if layer.There, err = m.target.Has(ctx, item); err != nil {
		return err
	}
	if !layer.There {
		if layer.How, layer.Bytes, err = forecast.Next(ctx, item.Layer); err != nil {
			return err
		}
		if layer.Blob, err = m.target.BlobSize(ctx, item.Layer); err != nil {
			return err
		}
		p.Bytes, p.Blobs = plus(p.Bytes, layer.Bytes), plus(p.Blobs, layer.Blob)
		p.Estimate = min(p.Estimate+m.estimate(layer), longest)
	}
	p.Layers = append(p.Layers, layer)
	return nil
}

// plus adds a size. The source says how large its layers are, and may say anything.
func plus(sum, size int64) int64 {
	if sum += max(size, 0); sum < 0 {
		return math.MaxInt64
	}
	return sum
}

func (m *Migration) estimate(layer PlannedLayer) time.Duration {
	size := max(layer.Size, layer.Bytes, 0)
	seconds := 0.0
	switch layer.How {
	case Reflinked:
		seconds = float64(size) / reflinkRate
	case Copied:
		seconds = float64(size) / copyRate
	}
	seconds += float64(max(layer.Blob, 0)) / blobRate
	if !m.opts.Trust {
		seconds += float64(size) / verifyingRate
	}
	return time.Duration(min(seconds, longest.Seconds()) * float64(time.Second))
}
