package containername

import (
	"context"

	"github.com/containerd/errdefs"
)

// Source is a Names.
type Source interface {
	Name(ctx context.Context, id ID) (Name, error)
}

// Look finds the names of many containers, and asks for each once. It is for one goroutine.
type Look struct {
	ctx           context.Context // of all questions
	from          Source
	before, known map[ID]Name
	away          map[string]bool // namespaces whose engine does not answer
}

// NewLook makes a Look that asks until ctx is done, and only for names that an earlier Look has not found.
func NewLook(ctx context.Context, from Source, before map[ID]Name) *Look {
	return &Look{ctx: ctx, from: from, before: before, known: make(map[ID]Name), away: make(map[string]bool)}
}

// Name returns the name of a container, or the zero Name if its engine does not know it, or does not answer.
func (l *Look) Name(id ID) Name {
	if id.ID == "" || id.Namespace == "" {
		return Name{}
	}
	name, ok := l.known[id]
	if !ok {
		name, ok = l.before[id]
	}
	if !ok {
		if l.away[id.Namespace] || l.ctx.Err() != nil {
			return Name{}
		}
		var err error
		if name, err = l.from.Name(l.ctx, id); err != nil {
			l.away[id.Namespace] = !errdefs.IsNotFound(err)
			return Name{}
		}
	}
	l.known[id] = name
	return name
}

// Known returns the names that were asked for and found.
func (l *Look) Known() map[ID]Name { return l.known }
