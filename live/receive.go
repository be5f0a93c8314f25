package live

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/cowcommon/layerstream"
	"github.com/cowshed/cowshed/internal/stream"
	"github.com/cowshed/cowshed/quota"
)

// ReceiveOptions says how the layers of a stream are made.
type ReceiveOptions struct {
	// Name is that of the last layer. If it is "", the layer has the name that the stream says.
	Name string
	// Parent is the layer on which the stream builds. If it is "", the stream builds on the layer whose name the stream
	// says.
	Parent string
	// ParentNames lists the names that a parent of that name in the stream may have here. A parent that is made gets the
	// last. Another layer may have one of the others. If ParentNames is nil, the parent has the name that the stream says.
	ParentNames func(name string) []string
	// CheckName returns an error if a layer must not get a name. It may be nil.
	CheckName func(name string) error
	// Limit gives the last layer the limit that the stream says. On btrfs this can turn quotas on.
	Limit bool
	// Progress is as in SendOptions.
	Progress func(name string) (add func(bytes int64), end func(error))
}

// Received is a layer of a stream that was received.
type Received struct {
	Sent
	Skipped bool               `json:"skipped"` // it was there
	Header  layerstream.Header `json:"-"`       // the zero Header in a native stream without one
}

// Receive makes sealed layers from a stream of Send, or a single one from the native stream of another program. Parents that are
// there already are read and passed over. If Receive fails, the parents that it has made stay, and nothing else. They are
// whole, and others may build on them by now. The next Receive passes over them.
//
// Returns ErrInvalidArgument if the stream is cut off, damaged or malformed. Returns ErrNotImplemented if it is of another
// filesystem, and ErrNotFound if the layer on which it builds is not there. Returns ErrFailedPrecondition if the layer that
// ReceiveOptions.Parent names is another, and ErrAlreadyExists if a layer of the name is there, or another parent.
func (l *Layers) Receive(ctx context.Context, r io.Reader, opts ReceiveOptions) (_ []Received, err error) {
	kind, err := cowcommon.StreamKind(l.backend)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(r, 64<<10)
	begin, err := in.Peek(layerstream.DetectSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	rc := receiver{layers: l, kind: kind, opts: opts, here: make(map[string]receivedLayer)}
	format := layerstream.Detect(begin)
	switch {
	case format == layerstream.Framed:
		err = rc.framed(ctx, in)
	case format.Kind() != "":
		err = rc.native(ctx, in, format.Kind())
	case len(begin) == 0:
		err = fault.New(errdefs.ErrInvalidArgument, "the stream is empty: see whether its sender has failed")
	default:
		err = fault.New(errdefs.ErrInvalidArgument, "this is neither a stream of cowshed send nor one of btrfs send or zfs send")
	}
	if err != nil {
		return nil, err
	}
	return rc.received, nil
}

// receiver makes the layers of one stream.
type receiver struct {
	layers   *Layers
	kind     string
	opts     ReceiveOptions
	here     map[string]receivedLayer // the layers of the stream by identity
	received []Received
}

// receivedLayer is a layer of the stream that is here.
type receivedLayer struct {
	name   string
	digest layerstream.Digest
}

func (rc *receiver) checkKind(kind string) error {
	if kind != rc.kind {
		return fault.New(errdefs.ErrNotImplemented, "the stream is one of %s, and the layers here are on %s: send the layer as an image or a tar instead", kind, rc.kind)
	}
	return nil
}

// checkName refuses a name that a new layer cannot have.
func (rc *receiver) checkName(ctx context.Context, name string) error {
	if err := cowcommon.CheckID(name); err != nil {
		return err
	}
	if IsMoment(name) {
		return fault.New(errdefs.ErrInvalidArgument, "layer name %s is of the form that moments have; choose another", name)
	}
	if rc.opts.CheckName != nil {
		if err := rc.opts.CheckName(name); err != nil {
			return err
		}
	}
	if _, there, err := rc.layers.exists(ctx, name); err != nil || there {
		if there {
			err = fault.New(errdefs.ErrAlreadyExists, "layer %s", name)
		}
		return err
	}
	return rc.layers.NewLayer(ctx, name)
}

// native receives the stream of another program.
func (rc *receiver) native(ctx context.Context, r io.Reader, kind string) error {
	if err := rc.checkKind(kind); err != nil {
		return err
	}
	name := rc.opts.Name
	if name == "" {
		return fault.New(errdefs.ErrInvalidArgument, "a stream of %s send does not name its layer: give it a name", kind)
	}
	if err := rc.checkName(ctx, name); err != nil {
		return err
	}
	if err := rc.layers.CheckParent(ctx, name, rc.opts.Parent); err != nil {
		return err
	}
	add, end := progressOf(rc.opts.Progress, name)
	one := Received{Sent: Sent{Name: name, Parent: rc.opts.Parent}}
	var bytes atomic.Int64 // a backend may still read the stream after it has failed
	err := cowcommon.Receive(ctx, rc.layers.backend, name, rc.opts.Parent, stream.CountReads(r, func(n int64) {
		bytes.Add(n)
		add(n)
	}))
	end(err)
	one.Bytes = bytes.Load()
	if err == nil {
		rc.received = append(rc.received, one)
	}
	return err
}

// framed receives the layers of a stream of Send.
func (rc *receiver) framed(ctx context.Context, r io.Reader) error {
	in, err := layerstream.NewReader(r)
	if err != nil {
		return err
	}
	for {
		layer, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := rc.layer(ctx, layer); err != nil {
			// The fault of a stream says more than the filesystem's opinion of its beginning.
			if in.Err() != nil {
				err = in.Err()
			}
			return fault.Wrap("receive layer", layer.Header.Name, err)
		}
	}
}

func (rc *receiver) layer(ctx context.Context, layer *layerstream.Layer) error {
	h := &layer.Header
	if err := rc.checkKind(h.Kind); err != nil {
		return err
	}
	if h.Parent.Name == "" && rc.opts.Parent != "" && rc.isFirst() {
		return fault.New(errdefs.ErrInvalidArgument, "the stream holds the whole layer and does not build on %s: leave the parent out", rc.opts.Parent)
	}
	name, skip, err := rc.place(ctx, layer)
	if err != nil {
		return err
	}
	if skip && rc.opts.Parent != "" && rc.isFirst() {
		if _, err := rc.parent(ctx, h.Parent); err != nil {
			return err
		}
	}
	add, end := progressOf(rc.opts.Progress, h.Name)
	one := Received{Sent: Sent{Name: name}, Header: *h, Skipped: skip}
	if skip {
		err = layer.Skip()
	} else {
		one.Parent, err = rc.make(ctx, name, layer, add)
	}
	end(err)
	if err != nil {
		return err
	}
	if one.Digest, err = layer.Digest(); err != nil {
		return err
	}
	one.Bytes = layer.Bytes()
	rc.here[string(h.ID)] = receivedLayer{name, one.Digest}
	rc.received = append(rc.received, one)
	return nil
}

// isFirst reports whether no layer of the stream has been received yet.
func (rc *receiver) isFirst() bool { return len(rc.received) == 0 }

// place finds the name that a layer gets. skip: the layer is there.
func (rc *receiver) place(ctx context.Context, layer *layerstream.Layer) (name string, skip bool, err error) {
	h := &layer.Header
	if layer.Last {
		if name = rc.opts.Name; name == "" {
			name = h.Name
		}
		return name, false, rc.checkName(ctx, name)
	}
	names := rc.parentNames(h.Name)
	for i, name := range names {
		if err := cowcommon.CheckID(name); err != nil {
			return "", false, err
		}
		there, same, err := rc.is(ctx, name, h.ID)
		switch {
		case err != nil:
			return "", false, err
		case same:
			return name, true, nil
		case there && i == len(names)-1:
			return "", false, fault.New(errdefs.ErrAlreadyExists, "another layer %s is there, with the same name as parent %s of the stream: remove it, or send the layer without its parents", name, h.Name)
		}
	}
	name = names[len(names)-1]
	return name, false, rc.checkName(ctx, name)
}

func (rc *receiver) parentNames(name string) []string {
	if rc.opts.ParentNames == nil {
		return []string{name}
	}
	return rc.opts.ParentNames(name)
}

// is reports whether there is a volume of a name, and whether it is sealed and a native stream may name it so.
func (rc *receiver) is(ctx context.Context, name string, id []byte) (there, same bool, err error) {
	v, there, err := rc.layers.exists(ctx, name)
	if err != nil || !there || !v.Sealed {
		return there, false, err
	}
	if err := cowcommon.CheckWhole(ctx, rc.layers.backend, name); err != nil {
		if errdefs.IsNotImplemented(err) {
			err = nil
		}
		return true, false, err
	}
	view, err := rc.layers.backend.View(ctx, name)
	if err != nil {
		return true, false, err
	}
	identity, err := cowcommon.Identify(ctx, rc.layers.backend, view)
	return true, identity.Has(id), errors.Join(err, view.Close())
}

// make makes a layer.
func (rc *receiver) make(ctx context.Context, name string, layer *layerstream.Layer, add func(int64)) (parent string, err error) {
	if parent, err = rc.parent(ctx, layer.Header.Parent); err != nil {
		return "", err
	}
	if err := rc.layers.CheckParent(ctx, name, parent); err != nil {
		return "", err
	}
	if err := cowcommon.Receive(ctx, rc.layers.backend, name, parent, stream.CountReads(layer, add)); err != nil {
		return "", err
	}
	limit := layer.Header.Limit
	if limit.Bytes == 0 || !rc.opts.Limit || !layer.Last {
		return parent, nil
	}
	scope := quota.ScopeLayer
	if limit.Total {
		scope = quota.ScopeTotal
	}
	if err := cowcommon.SetLimit(ctx, rc.layers.backend, name, quota.Limit{Bytes: limit.Bytes, Scope: scope}); err != nil {
		return "", errors.Join(err, rc.undo(context.WithoutCancel(ctx), name, layer.Header.ID))
	}
	return parent, nil
}

// undo removes the layer that was made, unless another has its name by now, or somebody uses it.
func (rc *receiver) undo(ctx context.Context, name string, id []byte) error {
	_, same, err := rc.is(ctx, name, id)
	if err == nil && same {
		err = rc.layers.removeUnused(ctx, name)
	}
	return err
}

// parent finds the layer on which a native stream builds.
func (rc *receiver) parent(ctx context.Context, p layerstream.Parent) (string, error) {
	if p.Name == "" {
		return "", nil
	}
	if here, ok := rc.here[string(p.ID)]; ok {
		if p.Digest != nil && *p.Digest != here.digest {
			return "", fault.New(errdefs.ErrInvalidArgument, "it builds on parent %s with the digest %s, but parent %[1]s in the stream has %[3]s", p.Name, p.Digest, here.digest)
		}
		return here.name, nil
	}
	if rc.opts.Parent != "" && rc.isFirst() {
		if _, same, err := rc.is(ctx, rc.opts.Parent, p.ID); err != nil || !same {
			if err == nil {
				err = fault.New(errdefs.ErrFailedPrecondition, "it builds on layer %s with the identity %s, and %s is another or can still change: name the layer that was received from the same, or send the whole layer",
					p.Name, hex.EncodeToString(p.ID), rc.opts.Parent)
			}
			return "", err
		}
		return rc.opts.Parent, nil
	}
	for _, name := range rc.parentNames(p.Name) {
		if cowcommon.CheckID(name) != nil { // such as that of a snapshot
			continue
		}
		if _, same, err := rc.is(ctx, name, p.ID); err != nil || same {
			return name, err
		}
	}
	return "", fault.New(errdefs.ErrNotFound, "it builds on layer %s with the identity %s, which is not here: receive that first, name it as the parent if it has another name here, or send the whole layer",
		p.Name, hex.EncodeToString(p.ID))
}
