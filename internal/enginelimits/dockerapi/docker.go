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

// SizeLabel is the label of a container that says the size of its root. It comes before --storage-opt size, since it is known
// earlier where the engine has NRI.
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

// limit limits a container if it was made with a size.
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
	if size, ok := c.Config.Labels[SizeLabel]; ok {
		limited.Setting, limited.Size, limited.Max = "label "+SizeLabel, size, s.MaxLabel
		l.Catch(ctx, limited)
		return
	}
	for name, size := range c.HostConfig.StorageOpt {
		if strings.EqualFold(name, "size") {
			limited.Setting, limited.Size, limited.Max = "--storage-opt size", size, s.Max
			l.Catch(ctx, limited)
		}
	}
}
