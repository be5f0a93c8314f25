package live

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layerstream"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/quota"
)

// SendOptions says how a layer is sent.
type SendOptions struct {
	// From is a sealed volume, such as that of a snapshot, on which the stream builds. The receiver has it. If it is "", the
	// stream holds everything.
	From string
	// WithParents sends also the sealed layers from which the layer was made, except From and those before From. The
	// layer must have been made from From then.
	WithParents bool
	// Allow is asked about each of these parents, and an error from it is that of Send. It may be nil.
	Allow func(parent cowcommon.Volume) error
	// Image returns the image whose uppermost layer a volume is, the zero Image if there is none. It may be nil.
	Image func(volume string) layerstream.Image
	// Progress is told of each layer, and returns a function that is told how much was written, and one for its end. It may
	// be nil.
	Progress func(name string) (add func(bytes int64), end func(error))
}

// Sent is a layer of a stream that was sent or received.
type Sent struct {
	Name   string             `json:"name"`
	Parent string             `json:"parent,omitempty"` // on which its native stream builds
	Digest layerstream.Digest `json:"digest,omitzero"`  // the zero Digest for the stream of another program
	Bytes  int64              `json:"bytes"`            // of its native stream
}

// Send writes a layer as a stream of package layerstream. layer is a layer, in use or not, or the volume of a moment. It is sent
// as it is now. If it has a shared root, the stream has a copy with a root of its own. So no later stream can build on that layer
// or moment. Returns ErrInvalidArgument if its parents are to come after SendOptions.From, and it was not made from that. Returns
// ErrNotImplemented if no native stream holds it, or if SendOptions.From has a shared root. Returns ErrFailedPrecondition if
// SendOptions.From is not sealed, or if the filesystem cannot build a stream on it.
func (l *Layers) Send(ctx context.Context, w io.Writer, layer string, opts SendOptions) (_ []Sent, err error) {
	kind, err := cowcommon.StreamKind(l.backend)
	if err != nil {
		return nil, err
	}
	chain, err := l.chain(ctx, layer, opts)
	if err != nil {
		return nil, err
	}
	s := sender{layers: l, kind: kind, opts: opts, w: layerstream.NewWriter(w), digests: make(map[string]layerstream.Digest)}
	defer func() { err = errors.Join(err, s.close()) }()
	below, top := chain[:len(chain)-1], chain[len(chain)-1]
	for _, v := range below { // all of the same moment
		if err := s.open(ctx, v, v.Name); err != nil {
			return nil, err
		}
	}
	content := top.Name
	if top.RootStyle == cowcommon.SharedRoot {
		if s.copy, err = l.plain(ctx, top); err != nil {
			return nil, fault.Wrap("copy layer", top.Name, err)
		}
		content = s.copy.volume
	}
	if err := s.open(ctx, top, content); err != nil {
		return nil, err
	}
	return s.send(ctx)
}

// chain lists the volumes of a stream, parents first. The first is that on which the stream builds, or the zero Volume.
func (l *Layers) chain(ctx context.Context, layer string, opts SendOptions) ([]cowcommon.Volume, error) {
	top, err := l.backend.Stat(ctx, layer)
	if err != nil {
		return nil, err
	}
	from := cowcommon.Volume{}
	if opts.From != "" {
		if from, err = l.backend.Stat(ctx, opts.From); err != nil {
			return nil, err
		}
		switch {
		case from.Name == top.Name:
			return nil, fault.New(errdefs.ErrInvalidArgument, "a stream of %s cannot build on itself", layer)
		case !from.Sealed:
			return nil, fault.New(errdefs.ErrFailedPrecondition, "a stream cannot build on layer %s, which can still change: take a snapshot of it, and send that first", from.Name)
		case from.RootStyle == cowcommon.SharedRoot:
			return nil, fault.New(errdefs.ErrNotImplemented, "a stream cannot build on %s, which has a shared root and was sent as a copy: send %s whole, or from its image", from.Name, layer)
		}
	}
	chain := []cowcommon.Volume{top}
	if opts.WithParents {
		for v := top; ; {
			var is bool
			if v, is, err = l.sealedAbove(ctx, v, from.Name); err != nil {
				return nil, err
			}
			if !is && from.Name != "" {
				return nil, fault.New(errdefs.ErrInvalidArgument, "%s is not a layer that %s was made from: send it without its parents", from.Name, layer)
			}
			if !is || v.Name == from.Name {
				break
			}
			if opts.Allow != nil {
				if err := opts.Allow(v); err != nil {
					return nil, err
				}
			}
			chain = append(chain, v)
		}
		if len(chain) > layerstream.MaxLayers {
			return nil, fault.New(errdefs.ErrInvalidArgument, "%s and its parents are more than %d layers: send one of the parents first, and the rest from that", layer, layerstream.MaxLayers)
		}
	}
	slices.Reverse(chain)
	return append([]cowcommon.Volume{from}, chain...), nil
}

// sealedAbove finds the nearest sealed layer from which a volume was made, directly or not. Moments but from are
// passed over, and so are layers that keep their shared roots: the stream has their changes with those of v.
func (l *Layers) sealedAbove(ctx context.Context, v cowcommon.Volume, from string) (_ cowcommon.Volume, is bool, err error) {
	for v.Parent != "" {
		var there bool
		if v, there, err = l.exists(ctx, v.Parent); err != nil || !there {
			return v, false, err
		}
		if v.Sealed && v.RootStyle != cowcommon.SharedRoot && (!IsMoment(v.Name) || v.Name == from) {
			return v, true, nil
		}
	}
	return v, false, nil
}

// sender sends layers of which it holds views.
type sender struct {
	layers  *Layers
	kind    string
	opts    SendOptions
	w       *layerstream.Writer
	views   []sentView
	copy    *plain                        // of the last layer, if it has a shared root
	digests map[string]layerstream.Digest // of the layers that were sent
}

// sentView is a volume and its view. The zero sentView stands for nothing.
type sentView struct {
	volume cowcommon.Volume
	name   string // by which people know it
	view   cowcommon.View
	id     []byte
}

// open opens a view of a volume whose content another has, or itself.
func (s *sender) open(ctx context.Context, v cowcommon.Volume, content string) error {
	if v.Name == "" {
		s.views = append(s.views, sentView{})
		return nil
	}
	name, err := s.layers.nameOf(v)
	if err != nil {
		return err
	}
	view, err := s.layers.backend.View(ctx, content)
	if err != nil {
		return err
	}
	s.views = append(s.views, sentView{volume: v, name: name, view: view})
	// A subvolume could be nested between a check and the view. So the check comes after the view.
	if err := cowcommon.CheckWhole(ctx, s.layers.backend, content); err != nil {
		return fault.Wrap("send layer", name, err)
	}
	identity, err := cowcommon.Identify(ctx, s.layers.backend, view)
	if err == nil {
		s.views[len(s.views)-1].id = identity.IDs[0]
	}
	return err
}

// nameOf is the name of a layer, or LAYER@SNAPSHOT for the volume of a moment.
func (l *Layers) nameOf(v cowcommon.Volume) (string, error) {
	if !IsMoment(v.Name) {
		return v.Name, nil
	}
	m, err := l.Moment(v.Name)
	if m.Name == "" {
		return m.Layer, err
	}
	return m.Layer + "@" + m.Name, err
}

// labels returns the labels of a fork.
func (l *Layers) labels(ctx context.Context, v cowcommon.Volume) (map[string]string, error) {
	m, err := l.ForkedFrom(ctx, v)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	for _, fork := range m.Forks {
		if fork.Name == v.Name {
			return fork.Labels, err
		}
	}
	return nil, err
}

func (s *sender) close() error {
	var errs []error
	for _, v := range s.views {
		if v.view != nil {
			errs = append(errs, v.view.Close())
		}
	}
	if s.copy != nil {
		errs = append(errs, s.copy.close())
	}
	return errors.Join(errs...)
}

func (s *sender) send(ctx context.Context) ([]Sent, error) {
	sent := make([]Sent, 0, len(s.views)-1)
	for i, v := range s.views[1:] {
		one, err := s.sendOne(ctx, s.views[i], v, i == len(s.views)-2)
		if err != nil {
			return nil, fault.Wrap("send layer", v.name, err)
		}
		sent = append(sent, one)
	}
	return sent, nil
}

func (s *sender) sendOne(ctx context.Context, base, v sentView, last bool) (Sent, error) {
	h := layerstream.Header{Kind: s.kind, Name: v.name, ID: v.id}
	if l := v.volume.Limit; l.Bytes != 0 {
		h.Limit = layerstream.Limit{Bytes: l.Bytes, Total: l.Scope == quota.ScopeTotal}
	}
	if base.view != nil {
		h.Parent = layerstream.Parent{Name: base.name, ID: base.id}
		if digest, ok := s.digests[base.name]; ok {
			h.Parent.Digest = &digest
		}
	}
	if s.opts.Image != nil {
		h.Image = s.opts.Image(v.volume.Name)
	}
	var err error
	if h.Labels, err = s.layers.labels(ctx, v.volume); err != nil {
		return Sent{}, err
	}
	add, end := progressOf(s.opts.Progress, v.name)
	write := s.w.Parent
	if last {
		write = s.w.Layer
	}
	written, err := write(h, func(w io.Writer) error {
		return cowcommon.Send(ctx, s.layers.backend, stream.CountWrites(w, add), base.view, v.view)
	})
	end(err)
	s.digests[v.name] = written.Digest
	return Sent{Name: v.name, Parent: base.name, Digest: written.Digest, Bytes: written.Bytes}, err
}

func progressOf(progress func(name string) (func(int64), func(error)), name string) (add func(int64), end func(error)) {
	if progress == nil {
		return func(int64) {}, func(error) {}
	}
	return progress(name)
}
