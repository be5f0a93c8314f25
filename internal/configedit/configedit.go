// Package configedit changes single values in configuration files that people have written. Everything else stays
// byte for byte: order, comments, indentation, line ends.
//
// Each function checks its result: it has the value, and otherwise means the same as before. A text that it cannot
// change in this way is an [Error], an errdefs.ErrFailedPrecondition.
package configedit

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"

	"github.com/containerd/errdefs"
)

// Error says why a text cannot be changed.
type Error struct{ Reason string }

// Error implements error.
func (e *Error) Error() string { return e.Reason }

// Is makes it an errdefs.ErrFailedPrecondition.
func (e *Error) Is(target error) bool { return target == errdefs.ErrFailedPrecondition }

func errorf(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// insertion is text that is put in place of text[from:to].
type insertion struct {
	from, to int
	text     string
}

// splice makes insertions, which are in the order of the text.
func splice(text []byte, insertions ...insertion) []byte {
	var out []byte
	at := 0
	for _, i := range insertions {
		out = append(append(out, text[at:i.from]...), i.text...)
		at = i.to
	}
	return append(out, text[at:]...)
}

// newline is how lines of a text end.
func newline(text []byte) string {
	if bytes.Contains(text, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// lineStart is where the line of an offset begins.
func lineStart(text []byte, offset int) int { return bytes.LastIndexByte(text[:offset], '\n') + 1 }

// lineEnd is where the line of an offset ends, after its newline if it has one.
func lineEnd(text []byte, offset int) int {
	if i := bytes.IndexByte(text[offset:], '\n'); i >= 0 {
		return offset + i + 1
	}
	return len(text)
}

// indentOf is the white space that the line of an offset begins with.
func indentOf(text []byte, offset int) string {
	line := text[lineStart(text, offset):offset]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// put sets a value in nested tables. It reports false where something else than a table is in the way.
func put(table map[string]any, path []string, value any) bool {
	for _, key := range path[:len(path)-1] {
		next, there := table[key]
		if !there {
			next = make(map[string]any)
			table[key] = next
		}
		inner, ok := next.(map[string]any)
		if !ok {
			return false
		}
		table = inner
	}
	table[path[len(path)-1]] = value
	return true
}

// get returns the value at a place in nested tables.
func get(table map[string]any, path []string) (any, bool) {
	for _, key := range path[:len(path)-1] {
		inner, ok := table[key].(map[string]any)
		if !ok {
			return nil, false
		}
		table = inner
	}
	value, ok := table[path[len(path)-1]]
	return value, ok
}

// replaceable returns an [Error] if a value is a table or a list: a single value in its place would drop its content.
func replaceable(value any, path []string) error {
	switch value.(type) {
	case map[string]any, []any:
		return errorf("%s is a table or a list there, and has to be a single value", strings.Join(path, "."))
	}
	return nil
}

// check is the last step of each function: after must be before with the value at the path.
func check(before, after map[string]any, path []string, value any) error {
	if !put(before, path, value) || !reflect.DeepEqual(before, after) {
		return errorf("%s cannot be set in it without changing something else", strings.Join(path, "."))
	}
	return nil
}
