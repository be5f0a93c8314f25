// Package treediff compares two directory trees and lists what changed between them, with the meaning
// that Docker and containerd give to a layer's change list.
//
// There is one comparer and two ways to aim it. Without hints both trees are walked. With hints, which
// a copy-on-write filesystem can give, only the hinted names are looked at.
package treediff

import (
	"errors"
)

// ErrNoHints says that the filesystem cannot tell where two trees differ, so that they must be walked.
// It is matched with errors.Is; the reason is a [NoHintsError].
var ErrNoHints = errors.New("no hints")

// NoHintsError is ErrNoHints with its reason.
type NoHintsError struct {
	Reason string // short, of few distinct values, fit for a metric label: "permission", "unrelated", "dedupe", "orphan", …
	Err    error  // the detail; may be nil
}

// Error implements error.
func (e *NoHintsError) Error() string {
	if e.Err == nil {
		return "no hints: " + e.Reason
	}
	return "no hints: " + e.Reason + ": " + e.Err.Error()
}

// Is reports whether target is ErrNoHints.
func (e *NoHintsError) Is(target error) bool { return target == ErrNoHints }

// Unwrap returns the detail.
func (e *NoHintsError) Unwrap() error { return e.Err }
