package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

// SizeLabel is the label of a container that says the size of its root. An image can bring it with it, so --storage-opt size comes
// first.
const SizeLabel = "cowshed.size"

const (
	engine = "docker" // in metrics and the log
	// atOnce is how many containers are limited at the same time.
	atOnce = 8
)

// Source is an engine.
type Source struct {
	Client   *Client
	Max      uint64 // the largest size that is allowed; 0: any
	MaxLabel uint64 // the same for labels, which an image may bring with it
}

// Engine implements enginelimits.Source.
func (s *Source) Engine() string { return engine }

// NamesAll implements enginelimits.Source.
func (s *Source) NamesAll() bool { return true }

// Run implements enginelimits.Source. It asks for events before it lists containers, so that it misses none.
func (s *Source) Run(ctx context.Context, l *enginelimits.Limiter, connected func()) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	working, ctx := errgroup.WithContext(ctx)
	working.SetLimit(atOnce)
	defer func() {
		cancel()
		err = errors.Join(working.Wait(), err)
		s.Client.Close()
	}()
	stream, err := s.Client.events(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	connected()
	working.Go(func() error { return s.catchUp(ctx, l) })
	for {
		e, err := stream.next()
		if err != nil {
			return fmt.Errorf("events of the engine: %w", err)
		}
		switch e.Action {
		case created:
			working.Go(func() error {
				s.limit(ctx, l, e.Actor.ID)
				return nil
			})
		case removed:
			l.Forget(Namespace, e.Actor.ID)
		}
	}
}

// catchUp limits containers that were made before.
func (s *Source) catchUp(ctx context.Context, l *enginelimits.Limiter) error {
	ids, err := s.Client.list(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.limit(ctx, l, id)
	}
	return nil
}

// limit limits a container if it was made with a size. The engine does not tell the labels of the image from those of the
// container. With NRI the label has perhaps been applied before.
func (s *Source) limit(ctx context.Context, l *enginelimits.Limiter, id string) {
	limited := enginelimits.Container{Engine: engine, Namespace: Namespace, ID: id}
	c, err := s.Client.Container(ctx, id)
	if errdefs.IsNotFound(err) {
		return
	}
	if err != nil {
		l.Unknown(ctx, limited, err)
		return
	}
	limited.Name, limited.Created = strings.TrimPrefix(c.Name, "/"), c.Created
	label, labelled := c.Config.Labels[SizeLabel]
	if option, ok := c.storageSize(); ok {
		limited.Setting, limited.Size, limited.Weaker, limited.Max = "--storage-opt size", option, label, s.Max
	} else if labelled {
		limited.Setting, limited.Size, limited.Max = "label "+SizeLabel, label, s.MaxLabel
	} else {
		return
	}
	l.Catch(ctx, limited)
}

// storageSize is the size of --storage-opt, if it has one.
func (c Container) storageSize() (string, bool) {
	for name, size := range c.HostConfig.StorageOpt {
		if strings.EqualFold(name, "size") {
			return size, true
		}
	}
	return "", false
}
