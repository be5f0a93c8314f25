// Package ancestry walks from a volume to its ancestors.
package ancestry

import "iter"

// longest bounds how far back from a volume its relation to another is looked for.
const longest = 1024

// Of yields first, its parent, the parent of that, and so on, as long as parent finds one.
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
