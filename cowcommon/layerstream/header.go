package layerstream

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Header describes a layer.
type Header struct {
	Kind   string            // of the native stream: "btrfs" or "zfs"
	Name   string            // of the layer, where it was sent
	ID     []byte            // by which native streams name the layer's content
	Parent Parent            // on which the native stream builds; the zero Parent: it holds the whole layer
	Limit  Limit             // of the layer
	Labels map[string]string // of the layer
	Image  Image             // whose uppermost layer it is
}

// Parent is the layer on which a native stream builds.
type Parent struct {
	Name   string
	ID     []byte
	Digest *Digest // of the parent in the same stream; nil: it is not known
}

// Limit is the most that a layer may hold.
type Limit struct {
	Bytes uint64 // 0: no limit
	Total bool   // it counts the parents too
}

// Image is an image as people know it.
type Image struct {
	Name string
	ID   string // digest of its config
}

// Bounds of a header, in bytes.
const (
	MaxHeader = 64 << 10
	MaxName   = 1024
	MaxID     = 64
	maxKind   = 16
)

// Fields of a header, in this order.
const (
	fieldKind byte = 1 + iota
	fieldName
	fieldID
	fieldParentName
	fieldParentID
	fieldParentDigest
	fieldLimit
	fieldLabel // one for each label, in the order of the keys
	fieldImageName
	fieldImageID
)

// Scopes of a limit.
const (
	scopeLayer byte = iota
	scopeTotal
)

// check returns an ErrMalformed unless the header can be written.
func (h *Header) check() error {
	switch {
	case len(h.Kind) == 0 || len(h.Kind) > maxKind || strings.Trim(h.Kind, "abcdefghijklmnopqrstuvwxyz") != "":
		return malformed("kind %.20q", h.Kind)
	case !isName(h.Name):
		return malformed("layer name %.64q", h.Name)
	case !isID(h.ID):
		return malformed("an identity of %d bytes", len(h.ID))
	case h.Parent.Name == "" && (len(h.Parent.ID) > 0 || h.Parent.Digest != nil):
		return malformed("a parent without a name")
	case h.Parent.Name != "" && (!isName(h.Parent.Name) || !isID(h.Parent.ID)):
		return malformed("parent %.64q", h.Parent.Name)
	case h.Limit.Bytes == 0 && h.Limit.Total:
		return malformed("a limit of 0")
	case h.Image.Name == "" && h.Image.ID != "" || h.Image.Name != "" && (!isName(h.Image.Name) || !isName(h.Image.ID)):
		return malformed("image %.64q", h.Image.Name)
	}
	for key, value := range h.Labels {
		if !IsLabel(key) || !IsLabel(value) {
			return malformed("label %.64q", key)
		}
	}
	return nil
}

// IsLabel reports whether a text can be the key or the value of a label: UTF-8 without control characters.
func IsLabel(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, unicode.IsControl)
}

func isID(id []byte) bool { return len(id) > 0 && len(id) <= MaxID }

// isName reports whether people can be shown a name as it is.
func isName(name string) bool {
	return len(name) > 0 && len(name) <= MaxName && utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// encode returns the only form of a header.
func (h *Header) encode() ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	var b []byte
	add := func(field byte, value []byte) {
		b = binary.AppendUvarint(append(b, field), uint64(len(value)))
		b = append(b, value...)
	}
	add(fieldKind, []byte(h.Kind))
	add(fieldName, []byte(h.Name))
	add(fieldID, h.ID)
	if h.Parent.Name != "" {
		add(fieldParentName, []byte(h.Parent.Name))
		add(fieldParentID, h.Parent.ID)
	}
	if h.Parent.Digest != nil {
		add(fieldParentDigest, h.Parent.Digest[:])
	}
	if h.Limit.Bytes != 0 {
		scope := scopeLayer
		if h.Limit.Total {
			scope = scopeTotal
		}
		add(fieldLimit, append(binary.AppendUvarint(nil, h.Limit.Bytes), scope))
	}
	for _, key := range slices.Sorted(maps.Keys(h.Labels)) {
		label := append(binary.AppendUvarint(nil, uint64(len(key))), key...)
		add(fieldLabel, append(label, h.Labels[key]...))
	}
	if h.Image.Name != "" {
		add(fieldImageName, []byte(h.Image.Name))
		add(fieldImageID, []byte(h.Image.ID))
	}
	if len(b) > MaxHeader {
		return nil, malformed("a header of %d bytes, where %d fit", len(b), MaxHeader)
	}
	return b, nil
}

// decode reads a header.
func decode(b []byte) (*Header, error) {
	h := &Header{}
	last, lastKey := byte(0), ""
	for len(b) > 0 {
		field := b[0]
		value, rest, err := cutSized(b[1:])
		if err != nil {
			return nil, err
		}
		if field < last || field == last && field != fieldLabel {
			return nil, malformed("field %d after field %d", field, last)
		}
		if field == fieldLabel {
			key, text, err := cutSized(value)
			if err != nil {
				return nil, err
			}
			if last == fieldLabel && string(key) <= lastKey {
				return nil, malformed("label %.64q after label %.64q", key, lastKey)
			}
			lastKey = string(key)
			if h.Labels == nil {
				h.Labels = make(map[string]string)
			}
			h.Labels[lastKey] = string(text)
		} else if err := h.set(field, value); err != nil {
			return nil, err
		}
		b, last = rest, field
	}
	return h, h.check()
}

// set sets a field that a header has once.
func (h *Header) set(field byte, value []byte) error {
	if len(value) == 0 {
		return malformed("field %d is empty", field)
	}
	switch field {
	case fieldKind:
		h.Kind = string(value)
	case fieldName:
		h.Name = string(value)
	case fieldID:
		h.ID = slices.Clone(value)
	case fieldParentName:
		h.Parent.Name = string(value)
	case fieldParentID:
		h.Parent.ID = slices.Clone(value)
	case fieldParentDigest:
		if len(value) != len(Digest{}) {
			return malformed("a digest of %d bytes", len(value))
		}
		digest := Digest(value)
		h.Parent.Digest = &digest
	case fieldLimit:
		n, rest, err := uvarint(value)
		if err != nil {
			return err
		}
		if n == 0 || len(rest) != 1 || rest[0] > scopeTotal {
			return malformed("limit %x", value)
		}
		h.Limit = Limit{Bytes: n, Total: rest[0] == scopeTotal}
	case fieldImageName:
		h.Image.Name = string(value)
	case fieldImageID:
		h.Image.ID = string(value)
	default:
		return malformed("unknown field %d", field)
	}
	return nil
}

// cutSized splits off bytes that follow their number.
func cutSized(b []byte) (value, rest []byte, err error) {
	n, b, err := uvarint(b)
	if err != nil {
		return nil, nil, err
	}
	if n > uint64(len(b)) {
		return nil, nil, malformed("%d bytes, where %d are left", n, len(b))
	}
	return b[:n], b[n:], nil
}

// uvarint splits off a number, in its shortest form.
func uvarint(b []byte) (n uint64, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || size > 1 && b[size-1] == 0 {
		return 0, nil, malformed("number")
	}
	return n, b[size:], nil
}

// Digest is the SHA-256 of a layer in a stream: of the type of its header's frame, of the header, and of the native stream.
type Digest [32]byte

// String returns the digest in the form of OCI.
func (d Digest) String() string { return fmt.Sprintf("sha256:%x", d[:]) }

// MarshalText returns String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the output of MarshalText. Returns ErrMalformed for anything else.
func (d *Digest) UnmarshalText(text []byte) error {
	digits, ok := bytes.CutPrefix(text, []byte("sha256:"))
	if !ok || len(digits) != hex.EncodedLen(len(d)) {
		return malformed("digest %.80q", text)
	}
	if _, err := hex.Decode(d[:], digits); err != nil {
		return malformed("digest %.80q", text)
	}
	return nil
}
