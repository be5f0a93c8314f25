package migrate

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// String is the problem as a line of text.
func (p Problem) String() string {
	name := p.ID
	if p.Name != "" && p.Name != p.ID {
		name = fmt.Sprintf("%s (%s)", p.Name, shortID(p.ID))
	}
	return fmt.Sprintf("%s %s: %v", p.What, name, p.Err)
}

// shortID is an ID as people see it.
func shortID(id string) string {
	const algorithm, digits = len("sha256:"), 12
	if len(id) > algorithm && id[:algorithm] == "sha256:" {
		id = id[algorithm:]
	}
	if len(id) > digits && isHex(id[:digits]) {
		return id[:digits]
	}
	return id
}

func isHex(s string) bool {
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// PartialError says that single things could not be moved, compared or removed. All others were.
type PartialError struct {
	Operation string // "run", "verify", "undo" or "finish"
	Problems  []Problem
}

// Error implements error.
func (e *PartialError) Error() string {
	text := fmt.Sprintf("%d things could not be %s", len(e.Problems), map[string]string{
		"run": "moved", "verify": "verified", "undo": "removed", "finish": "found up to date in the target",
	}[e.Operation])
	if len(e.Problems) == 1 {
		text = "one thing" + text[len("1 things"):]
	}
	return text
}

// problem is the problem of an item.
func (i Item) problem(err error) Problem {
	switch {
	case i.Layer != nil:
		return Problem{What: "layer", ID: i.Layer.ID, Err: err}
	case i.Image != nil:
		return Problem{What: "image", ID: i.Image.ID.String(), Name: i.label(), Err: err}
	}
	return Problem{What: "container", ID: i.Container.ID, Name: i.Container.Name, Err: err}
}

// label is an item's name for people.
func (i Item) label() string {
	switch {
	case i.Layer != nil:
		return shortID(i.Layer.ID)
	case i.Image != nil && len(i.Image.Names) > 0:
		return i.Image.Names[0]
	case i.Image != nil:
		return shortID(i.Image.ID.String())
	case i.Container.Name != "":
		return i.Container.Name
	}
	return shortID(i.Container.ID)
}

// leftBehind is the error of a thing that cannot come along because another one cannot.
func leftBehind(what, id string) error {
	return fault.New(errdefs.ErrFailedPrecondition, "its %s %s does not come along", what, shortID(id))
}

// stopsAll reports whether an error about the item would come again with all others. A limit that is reached (EDQUOT) may be
// that of the item alone.
func (i Item) stopsAll(err error) bool {
	limited := i.Layer != nil && i.Layer.Limit > 0
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) && !limited ||
		errors.Is(err, syscall.EROFS) || errors.Is(err, errdefs.ErrUnavailable)
}
