package configedit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ParseJSON decodes a text that has one object, or nothing. Returns an [Error] if the text is malformed or has a key
// twice.
func ParseJSON(text []byte) (map[string]any, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return make(map[string]any), nil
	}
	if !json.Valid(text) {
		var syntax *json.SyntaxError
		var ignored any
		if err := json.Unmarshal(text, &ignored); errors.As(err, &syntax) {
			return nil, errorf("line %d is no JSON: %v", 1+bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n")), err)
		}
		return nil, errorf("it is no JSON")
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := checkKeys(decoder, ""); err != nil {
		return nil, err
	}
	decoder = json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var parsed map[string]any
	if err := decoder.Decode(&parsed); err != nil || parsed == nil {
		return nil, errorf("it has to be a JSON object")
	}
	return parsed, nil
}

// checkKeys reads a value, and looks for keys that come twice in an object, of which most programs see the last only.
func checkKeys(decoder *json.Decoder, place string) error {
	token, err := decoder.Token()
	if err != nil {
		return errorf("it is no JSON: %v", err)
	}
	opening, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	seen := make(map[string]bool)
	for decoder.More() {
		inner := place
		if opening == '{' {
			token, err := decoder.Token()
			if err != nil {
				return errorf("it is no JSON: %v", err)
			}
			key := fmt.Sprint(token)
			inner = strings.TrimPrefix(place+"."+key, ".")
			if seen[strings.ToLower(key)] {
				return errorf("key %q is there twice", inner)
			}
			seen[strings.ToLower(key)] = true
		}
		if err := checkKeys(decoder, inner); err != nil {
			return err
		}
	}
	if _, err := decoder.Token(); err != nil && !errors.Is(err, io.EOF) {
		return errorf("it is no JSON: %v", err)
	}
	return nil
}

// SetJSON gives a key of an object a value, a string or a bool. The path is that of the objects and the key.
func SetJSON(text []byte, path []string, value any) ([]byte, error) {
	before, err := ParseJSON(text)
	if err != nil {
		return nil, err
	}
	there, ok := get(before, path)
	if err := replaceable(there, path); err != nil {
		return nil, err
	}
	if ok && there == value {
		return text, nil
	}
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("{}\n")
	}
	literal, err := json.Marshal(value)
	if err != nil {
		return nil, errorf("%T is no value for it", value)
	}
	after, err := setJSON(text, path, string(literal))
	if err != nil {
		return nil, err
	}
	parsed, err := ParseJSON(after)
	if err != nil {
		return nil, errorf("%s cannot be set in it: %v", strings.Join(path, "."), err)
	}
	return after, check(before, parsed, path, value)
}

// jsonStyle is how a text is laid out.
type jsonStyle struct {
	eol    string // "": on one line
	indent string // of one level
	colon  string
}

// setJSON sets a key in the outermost object of a text.
func setJSON(text []byte, path []string, literal string) ([]byte, error) {
	object, err := readObject(text, bytes.IndexByte(text, '{'))
	if err != nil {
		return nil, err
	}
	style := object.style(text)
	for depth := range path {
		key := path[depth]
		member := object.find(key)
		if member == nil {
			return object.insert(text, style, depth, path[depth:], literal), nil
		}
		if member.key != key {
			return nil, errorf("it has key %q, which differs from %q in upper and lower case alone", member.key, key)
		}
		if depth == len(path)-1 {
			return splice(text, insertion{member.valueAt, member.end, literal}), nil
		}
		if text[member.valueAt] != '{' {
			return nil, errorf("%q is no object", strings.Join(path[:depth+1], "."))
		}
		if object, err = readObject(text, member.valueAt); err != nil {
			return nil, err
		}
	}
	return text, nil
}

// jsonObject has the places of an object's parts.
type jsonObject struct {
	open, close int // the braces
	members     []jsonMember
}

type jsonMember struct {
	key                 string
	start, valueAt, end int
	colon               string // with white space
}

// readObject reads the object that begins at an offset of a text that is known to be JSON.
func readObject(text []byte, at int) (*jsonObject, error) {
	o := &jsonObject{open: at}
	decoder := json.NewDecoder(bytes.NewReader(text[at:]))
	if _, err := decoder.Token(); err != nil {
		return nil, errorf("it is no JSON: %v", err)
	}
	for decoder.More() {
		previous := at + int(decoder.InputOffset())
		key, err := decoder.Token()
		if err != nil {
			return nil, errorf("it is no JSON: %v", err)
		}
		keyEnd := at + int(decoder.InputOffset())
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return nil, errorf("it is no JSON: %v", err)
		}
		m := jsonMember{key: fmt.Sprint(key), start: previous + bytes.IndexByte(text[previous:], '"'), end: at + int(decoder.InputOffset())}
		m.valueAt = m.end - len(raw)
		m.colon = string(text[keyEnd:m.valueAt])
		o.members = append(o.members, m)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, errorf("it is no JSON: %v", err)
	}
	o.close = at + int(decoder.InputOffset()) - 1
	return o, nil
}

// find returns the member with a key, in whatever letters: programs in Go take them for the same.
func (o *jsonObject) find(key string) *jsonMember {
	for i := range o.members {
		if strings.EqualFold(o.members[i].key, key) {
			return &o.members[i]
		}
	}
	return nil
}

// style is how the outermost object of a text is laid out.
func (o *jsonObject) style(text []byte) jsonStyle {
	if len(o.members) == 0 {
		return jsonStyle{newline(text), "  ", ": "}
	}
	first := o.members[0]
	style := jsonStyle{colon: first.colon}
	if strings.ContainsAny(style.colon, "\r\n") {
		style.colon = ": "
	}
	if bytes.ContainsRune(text[o.open:first.start], '\n') {
		style.eol, style.indent = newline(text), indentOf(text, first.start)
	}
	return style
}

// insert puts the rest of a path into the object at a depth, which lacks it.
func (o *jsonObject) insert(text []byte, style jsonStyle, depth int, path []string, literal string) []byte {
	if at := bytes.IndexAny(text[o.open:o.close], "\r\n"); at >= 0 && len(o.members) == 0 {
		// The object has lines, even if the outermost one has none. They stay.
		if style.eol == "" {
			style.eol, style.indent = newline(text), "  "
		}
		added := style.eol + strings.Repeat(style.indent, depth+1) + style.member(depth+1, path, literal)
		return splice(text, insertion{o.open + 1, o.open + at, added})
	}
	added := style.member(depth+1, path, literal)
	if len(o.members) == 0 {
		return splice(text, insertion{o.open, o.close + 1, style.object(depth, added)})
	}
	separator := ","
	last := o.members[len(o.members)-1]
	if style.eol == "" || !bytes.ContainsRune(text[o.open:last.start], '\n') {
		return splice(text, insertion{last.end, last.end, separator + " " + style.flat().member(0, path, literal)})
	}
	return splice(text, insertion{last.end, last.end, separator + style.eol + indentOf(text, last.start) + added})
}

func (s jsonStyle) flat() jsonStyle { return jsonStyle{colon: s.colon} }

// member writes a key at a depth, with its value.
func (s jsonStyle) member(depth int, path []string, literal string) string {
	key, _ := json.Marshal(path[0]) // which a string never fails at
	if len(path) > 1 {
		literal = s.object(depth, s.member(depth+1, path[1:], literal))
	}
	return string(key) + s.colon + literal
}

// object writes an object at a depth that has one member.
func (s jsonStyle) object(depth int, member string) string {
	if s.eol == "" {
		return "{" + member + "}"
	}
	return "{" + s.eol + strings.Repeat(s.indent, depth+1) + member + s.eol + strings.Repeat(s.indent, depth) + "}"
}
