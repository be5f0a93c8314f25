//go:build !linux

package treecmp

import (
	"errors"
	"fmt"
)

// Diff is implemented on Linux only. Elsewhere it answers errors.ErrUnsupported.
func Diff(a, b string, opts Options) ([]string, error) {
	return nil, fmt.Errorf("treecmp: %w", errors.ErrUnsupported)
}

// Tree is empty, as Read is implemented on Linux only.
type Tree struct{}

// Read answers errors.ErrUnsupported.
func Read(root string, opts Options) (Tree, error) {
	return Tree{}, fmt.Errorf("treecmp: %w", errors.ErrUnsupported)
}

// Diff finds no differences.
func (Tree) Diff(Tree, Options) []string { return nil }
