package dockerapi

import (
	"context"
	"fmt"
	"strings"

	"github.com/cowshed/cowshed/internal/enginelimits"
)

// SizeLabel is the label of a container that says the size of its root. An image can bring it with it, so --storage-opt size comes
// first.
const SizeLabel = "cowshed.size"

const engine = "docker" // in metrics and the log

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
func (s *Source) Run(ctx context.Context, l *enginelimits.Limiter, connected func()) error {
	ctx, cancel := context.WithCancel(ctx)
	w := newWork(s, l)
	defer func() {
		cancel()
		w.wait()
		s.Client.Close()
	}()
	stream, err := s.Client.events(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	ids, err := s.Client.list(ctx)
	if err != nil {
		return err
	}
	connected()
	w.limit(ctx, ids...)
	for {
		e, err := stream.next()
		if err != nil {
			return fmt.Errorf("events of the engine: %w", err)
		}
		switch e.Action {
		case created:
			w.limit(ctx, e.Actor.ID)
		case removed:
			l.Forget(Namespace, e.Actor.ID)
		}
	}
}

// limited returns a container with its size, if it was made with one. The engine does not tell the labels of the image from those
// of the container. With NRI the label has perhaps been applied before.
func (s *Source) limited(id string, c Container) (limited enginelimits.Container, ok bool) {
	limited = enginelimits.Container{
		Engine: engine, Namespace: Namespace, ID: id, Name: strings.TrimPrefix(c.Name, "/"), Created: c.Created,
		Unstarted: c.State.Status == unstarted,
	}
	label, labelled := c.Config.Labels[SizeLabel]
	if option, ok := c.storageSize(); ok {
		limited.Setting, limited.Size, limited.Weaker, limited.Max = "--storage-opt size", option, label, s.Max
		return limited, true
	}
	limited.Setting, limited.Size, limited.Max = "label "+SizeLabel, label, s.MaxLabel
	return limited, labelled
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
