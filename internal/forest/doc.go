// Package forest makes random trees, for tests that compare one way to treat a tree with another.
package forest
