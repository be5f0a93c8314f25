package configedit

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// ParseTOML decodes a text. Returns an [Error], with the place, if the text is malformed.
func ParseTOML(text []byte) (map[string]any, error) {
	parsed := make(map[string]any)
	err := toml.Unmarshal(text, &parsed)
	var malformed *toml.DecodeError
	switch {
	case errors.As(err, &malformed):
		line, column := malformed.Position()
		return nil, errorf("line %d, column %d is no TOML: %v", line, column, err)
	case err != nil:
		return nil, errorf("it is no TOML: %v", err)
	}
	return parsed, nil
}

// SetTOML gives a key of a text a value, a string or a bool. The path is that of the tables and the key.
func SetTOML(text []byte, path []string, value any) ([]byte, error) {
	before, err := ParseTOML(text)
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
	literal, err := tomlLiteral(value)
	if err != nil {
		return nil, err
	}
	document, err := readTOML(text)
	if err != nil {
		return nil, err
	}
	after := document.set(path, literal)
	parsed, err := ParseTOML(after)
	if err != nil {
		return nil, errorf("%s cannot be set in it: %v", strings.Join(path, "."), err)
	}
	return after, check(before, parsed, path, value)
}

// AppendTOML puts a string at the end of a list of strings, which is made if it is not there.
func AppendTOML(text []byte, path []string, value string) ([]byte, error) {
	before, err := ParseTOML(text)
	if err != nil {
		return nil, err
	}
	list, there := get(before, path)
	elements, isList := list.([]any)
	if there && !isList {
		return nil, errorf("%s is no list", strings.Join(path, "."))
	}
	document, err := readTOML(text)
	if err != nil {
		return nil, err
	}
	literal, err := tomlLiteral(value)
	if err != nil {
		return nil, err
	}
	var after []byte
	switch pair := document.find(path); {
	case !there:
		after = document.set(path, "["+literal+"]")
	case pair == nil:
		return nil, errorf("%s cannot be changed where it is", strings.Join(path, "."))
	default:
		after = document.appendTo(pair, literal)
	}
	parsed, err := ParseTOML(after)
	if err != nil {
		return nil, errorf("%s cannot be added to: %v", strings.Join(path, "."), err)
	}
	return after, check(before, parsed, path, append(elements, value))
}

// tomlLiteral writes a value.
func tomlLiteral(value any) (string, error) {
	switch v := value.(type) {
	case bool:
		return strconv.FormatBool(v), nil
	case string:
		return QuoteTOML(v), nil
	}
	return "", errorf("%T is no value for it", value)
}

// QuoteTOML writes a string.
func QuoteTOML(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case unicode.IsControl(r) || r == utf8.RuneError:
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// tomlKey writes a key, or several with dots.
func tomlKey(path []string) string {
	keys := make([]string, len(path))
	for i, key := range path {
		keys[i] = key
		if key == "" || strings.ContainsFunc(key, func(r rune) bool {
			return r != '_' && r != '-' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
		}) {
			keys[i] = QuoteTOML(key)
		}
	}
	return strings.Join(keys, ".")
}

// tomlDocument has the places of a text's parts.
type tomlDocument struct {
	text   []byte
	tables []tomlTable // the first is the one without a name
}

// tomlTable is a table with a header, and its lines.
type tomlTable struct {
	path      []string
	repeated  bool // an element of an array of tables, or below one
	start     int  // of the header's line
	headerEnd int  // of that line
	pairs     []tomlPair
}

// tomlPair is a key with its value.
type tomlPair struct {
	path                 []string // from the top
	dotted               int      // number of keys before the value
	start, valueAt, end  int
	elements             []unstable.Range // of a list
	list, commentsInside bool
}

func readTOML(text []byte) (*tomlDocument, error) {
	text = slices.Clip(text)
	d := &tomlDocument{text: text, tables: []tomlTable{{}}}
	repeated := make(map[string]bool)
	p := unstable.Parser{KeepComments: true}
	p.Reset(text)
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, first, last := tomlPath(e.Key())
			t := tomlTable{path: path, start: lineStart(text, int(first.Offset)), headerEnd: lineEnd(text, rangeEnd(last))}
			if e.Kind == unstable.ArrayTable {
				repeated[tomlKey(path)] = true
			}
			for i := range path {
				t.repeated = t.repeated || repeated[tomlKey(path[:i+1])]
			}
			d.tables = append(d.tables, t)
		case unstable.KeyValue:
			t := &d.tables[len(d.tables)-1]
			path, _, last := tomlPath(e.Key())
			pair := tomlPair{path: append(slices.Clone(t.path), path...), dotted: len(path), start: int(e.Raw.Offset), end: rangeEnd(e.Raw)}
			equals := rangeEnd(last) + bytes.IndexByte(text[rangeEnd(last):], '=')
			pair.valueAt = equals + 1 + len(text[equals+1:]) - len(bytes.TrimLeft(text[equals+1:], " \t"))
			if value := e.Value(); value.Kind == unstable.Array {
				pair.list = true
				for it := value.Children(); it.Next(); {
					if it.Node().Kind == unstable.Comment {
						pair.commentsInside = true
					} else {
						pair.elements = append(pair.elements, it.Node().Raw)
					}
				}
			}
			t.pairs = append(t.pairs, pair)
		}
	}
	return d, p.Error()
}

func rangeEnd(r unstable.Range) int { return int(r.Offset) + int(r.Length) }

// tomlPath returns a key's parts, and where the first and the last stand.
func tomlPath(keys unstable.Iterator) (path []string, first, last unstable.Range) {
	for keys.Next() {
		if path == nil {
			first = keys.Node().Raw
		}
		path, last = append(path, string(keys.Node().Data)), keys.Node().Raw
	}
	return path, first, last
}

// find returns the pair of a key, nil if it is not there or in an array of tables.
func (d *tomlDocument) find(path []string) *tomlPair {
	for i := range d.tables {
		for j := range d.tables[i].pairs {
			if pair := &d.tables[i].pairs[j]; slices.Equal(pair.path, path) && !d.tables[i].repeated {
				return pair
			}
		}
	}
	return nil
}

// set gives a key a value: in its place, next to keys of the same table, or in a new table at the end.
func (d *tomlDocument) set(path []string, literal string) []byte {
	if pair := d.find(path); pair != nil {
		return splice(d.text, insertion{pair.valueAt, pair.end, literal})
	}
	parent, key := path[:len(path)-1], path[len(path)-1:]
	for _, t := range d.tables {
		if slices.Equal(t.path, parent) && !t.repeated && (len(parent) > 0 || len(t.pairs) > 0) {
			return d.insertInto(t, key, literal)
		}
	}
	// Dotted keys define their table where they stand.
	for _, t := range d.tables {
		for _, pair := range slices.Backward(t.pairs) {
			if pair.dotted > 1 && !t.repeated && slices.Equal(pair.path[:len(pair.path)-1], parent) {
				return d.insertLine(lineEnd(d.text, pair.end), indentOf(d.text, pair.start), path[len(t.path):], literal)
			}
		}
	}
	if len(parent) == 0 {
		return d.insertLine(d.firstTable(), "", key, literal)
	}
	eol, blank := newline(d.text), ""
	if len(d.text) > 0 {
		blank = eol
		if d.text[len(d.text)-1] != '\n' {
			blank += eol
		}
	}
	return append(slices.Clone(d.text), fmt.Sprintf("%s[%s]%s  %s = %s%s", blank, tomlKey(parent), eol, tomlKey(key), literal, eol)...)
}

// insertInto puts a key after the last one of a table.
func (d *tomlDocument) insertInto(t tomlTable, key []string, literal string) []byte {
	if len(t.pairs) == 0 {
		indent := indentOf(d.text, t.start+len(d.text[t.start:])-len(bytes.TrimLeft(d.text[t.start:], " \t")))
		return d.insertLine(t.headerEnd, indent+"  ", key, literal)
	}
	last := t.pairs[len(t.pairs)-1]
	// The lines after version belong to it.
	if i := slices.IndexFunc(t.pairs, func(p tomlPair) bool { return len(p.path) == 1 && p.path[0] == "version" }); i >= 0 {
		last = t.pairs[i]
	}
	return d.insertLine(lineEnd(d.text, last.end), indentOf(d.text, last.start), key, literal)
}

// firstTable is the place for keys without a table, if there are none: before the first header and its comment, or at
// the end.
func (d *tomlDocument) firstTable() int {
	if len(d.tables) == 1 {
		return len(d.text)
	}
	at := d.tables[1].start
	for at > 0 && bytes.HasPrefix(bytes.TrimLeft(d.text[lineStart(d.text, at-1):], " \t"), []byte("#")) {
		at = lineStart(d.text, at-1)
	}
	return at
}

// insertLine puts a line with a key where a line begins, or after the end of the text.
func (d *tomlDocument) insertLine(at int, indent string, key []string, literal string) []byte {
	eol := newline(d.text)
	line := indent + tomlKey(key) + " = " + literal + eol
	if at > 0 && d.text[at-1] != '\n' {
		line = eol + line
	}
	return splice(d.text, insertion{at, at, line})
}

// appendTo puts an element at the end of a list.
func (d *tomlDocument) appendTo(pair *tomlPair, literal string) []byte {
	closing := pair.end - 1
	if !pair.list {
		return d.text
	}
	if len(pair.elements) == 0 && !pair.commentsInside {
		return splice(d.text, insertion{pair.valueAt, pair.end, "[" + literal + "]"})
	}
	if len(pair.elements) == 0 {
		return splice(d.text, insertion{closing, closing, literal})
	}
	last := rangeEnd(pair.elements[len(pair.elements)-1])
	comma := last + commaAfter(d.text[last:closing])
	end := last // after the last element and its comma
	separator := ","
	if comma > last {
		end, separator = comma, ""
	}
	rest := d.text[end:closing]
	if !bytes.Contains(d.text[pair.valueAt:last], []byte("\n")) || !bytes.Contains(rest, []byte("\n")) {
		trailing := ""
		if separator == "" {
			trailing = ","
		}
		return splice(d.text, insertion{end, end, separator + " " + literal + trailing})
	}
	// A line of its own, after the comment on the last element.
	line := lineEnd(d.text, end)
	indent := indentOf(d.text, int(pair.elements[len(pair.elements)-1].Offset))
	added := indent + literal
	if separator == "" {
		added += ","
	}
	return splice(d.text, insertion{last, last, separator}, insertion{line, line, added + newline(d.text)})
}

// commaAfter is how far the next comma is, itself included, across white space and comments; 0 if there is none.
func commaAfter(text []byte) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case ',':
			return i + 1
		case '#':
			i = lineEnd(text, i) - 1
		}
	}
	return 0
}
