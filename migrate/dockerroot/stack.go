package dockerroot

import "crypto/sha256"

// stacks are digests of layers with all those below them, by ID. They compare lists of layers, which may be long, without
// keeping these.
type stacks map[string]string

// above is the stack of a layer on another stack, "" for none.
func above(stack, name string) string {
	sum := sha256.Sum256([]byte(stack + "\x00" + name))
	return string(sum[:])
}

// stackOf is the stack of layers, nearest first.
func stackOf(names []string) string {
	stack := ""
	for i := len(names) - 1; i >= 0; i-- {
		stack = above(stack, names[i])
	}
	return stack
}

// of is the stack of a layer. known is false if a layer in it has no name. "" is the empty stack.
func (s stacks) of(id string) (stack string, known bool) {
	if id == "" {
		return "", true
	}
	stack, known = s[id]
	return stack, known
}

// put keeps the stack of a layer. Without a name it is not known, and neither are those above it.
func (s stacks) put(id, parent, name string) {
	if stack, known := s.of(parent); known && name != "" {
		s[id] = above(stack, name)
	}
}
