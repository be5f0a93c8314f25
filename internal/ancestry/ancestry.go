// Package ancestry walks from a volume to its ancestors.
package ancestry

import "iter"

// longest is the most volumes that a walk yields.
const longest = 1024

// Of yields first, its parent, the parent's parent, and so on, until parent finds no parent. If parent fails, Of yields
// the same volume again with the error, and ends.
func Of[V any](first V, parent func(V) (_ V, ok bool, err error)) iter.Seq2[V, error] {
	return func(yield func(V, error) bool) {
		v := first
		for range longest {
			if !yield(v, nil) {
				return
			}
			next, ok, err := parent(v)
			if err != nil {
				yield(v, err)
			}
			if err != nil || !ok {
				return
			}
			v = next
		}
	}
}
