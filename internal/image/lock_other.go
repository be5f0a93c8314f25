//go:build !linux

package image

import (
	"context"
	"errors"
)

// lock does nothing where no driver works.
type lock struct{}

var errLocked = errors.New("locked")

func openLock(string, int) (*lock, error)    { return &lock{}, nil }
func (l *lock) shared(context.Context) error { return nil }
func (l *lock) exclusive() error             { return nil }
func (l *lock) alone(context.Context) error  { return nil }
func (l *lock) close() error                 { return nil }
