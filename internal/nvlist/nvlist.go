// Package nvlist encodes and decodes lists of named values as ZFS's kernel module exchanges them: the native encoding of
// libnvpair (module/nvpair/nvpair.c of OpenZFS, NV_ENCODE_NATIVE).
//
// An encoded list is a header of 4 bytes, version and flags, the pairs, and a pair of size 0. A pair is nvpair_t of
// sys/nvpair.h: size, length of the name, number of elements, type, the name, and the value. Name and value are padded
// to 8 bytes. The value of a list in a list is its nvlist_t, with its version and flags. Its pairs and a pair of size 0
// follow.
package nvlist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// List is a list of values by name. Of a decoded list the values are, by their type in C:
//
//	Flag                 boolean
//	bool                 boolean_value
//	uint8                byte and uint8
//	int8 to int64        those of that name; hrtime is int64
//	uint16 to uint64     those of that name; of a double, its bits
//	string, List         string, nvlist
//	slices of these      arrays; of booleans []bool
//
// Encode takes Flag, bool, int32, uint64, string, []uint8 (as bytes), []uint64, []string, List and []List.
type List map[string]any

// Flag is a value without content: its name says all.
type Flag struct{}

// kind is data_type_t.
type kind uint32

const (
	kindBoolean      kind = 1
	kindByte         kind = 2
	kindInt16        kind = 3
	kindUint16       kind = 4
	kindInt32        kind = 5
	kindUint32       kind = 6
	kindInt64        kind = 7
	kindUint64       kind = 8
	kindString       kind = 9
	kindByteArray    kind = 10
	kindInt16Array   kind = 11
	kindUint16Array  kind = 12
	kindInt32Array   kind = 13
	kindUint32Array  kind = 14
	kindInt64Array   kind = 15
	kindUint64Array  kind = 16
	kindStringArray  kind = 17
	kindHrtime       kind = 18
	kindList         kind = 19
	kindListArray    kind = 20
	kindBooleanValue kind = 21
	kindInt8         kind = 22
	kindUint8        kind = 23
	kindBooleanArray kind = 24
	kindInt8Array    kind = 25
	kindUint8Array   kind = 26
	kindDouble       kind = 27
)

const (
	headerSize = 4  // nvs_header_t: encoding, endianness, two reserved bytes
	listSize   = 8  // nvl_version, nvl_nvflag
	pairSize   = 16 // nvpair_t
	memorySize = 24 // nvlist_t, which stands where the value of a list would be
	pointer    = 8  // stands before the strings and lists of an array

	encodingNative = 0
	littleEndian   = 1
	uniqueNames    = 1 // NV_UNIQUE_NAME

	// maxDepth bounds lists in lists; the kernel has a similar bound (nvpair_max_recursion, 20).
	maxDepth = 20
)

// ErrMalformed says that an encoded list breaks the format.
var ErrMalformed = errors.New("malformed nvlist")

var native = binary.NativeEndian

func align(n int) int { return (n + 7) &^ 7 }

// Encode encodes a list, its names sorted. Returns an error if a value is of a type that Encode does not take, or if a
// name or string holds a NUL byte.
func Encode(l List) ([]byte, error) {
	b := []byte{encodingNative, endianness(), 0, 0}
	b = native.AppendUint32(b, 0) // version
	b = native.AppendUint32(b, uniqueNames)
	return appendPairs(b, l, 0)
}

func endianness() byte {
	if native.Uint16([]byte{1, 0}) == 1 {
		return littleEndian
	}
	return 0
}

func appendPairs(b []byte, l List, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nvlist: more than %d lists in each other", maxDepth)
	}
	for _, name := range slices.Sorted(maps.Keys(l)) {
		var err error
		if b, err = appendPair(b, name, l[name], depth); err != nil {
			return nil, err
		}
	}
	return native.AppendUint32(b, 0), nil
}

func appendPair(b []byte, name string, value any, depth int) ([]byte, error) {
	var lists []List
	var k kind
	count, data := 1, []byte(nil)
	switch v := value.(type) {
	case Flag:
		k, count = kindBoolean, 0
	case bool:
		k, data = kindBooleanValue, native.AppendUint32(nil, truth(v))
	case int32:
		k, data = kindInt32, native.AppendUint32(nil, uint32(v))
	case uint64:
		k, data = kindUint64, native.AppendUint64(nil, v)
	case []uint8:
		k, count, data = kindByteArray, len(v), v
	case []uint64:
		k, count = kindUint64Array, len(v)
		for _, n := range v {
			data = native.AppendUint64(data, n)
		}
	case string:
		k, data = kindString, cString(nil, v)
	case []string:
		k, count, data = kindStringArray, len(v), make([]byte, len(v)*pointer)
		for _, s := range v {
			data = cString(data, s)
		}
	case List:
		k, data, lists = kindList, inMemory(), []List{v}
	case []List:
		k, count, lists = kindListArray, len(v), v
		data = slices.Concat(make([]byte, len(v)*pointer), bytes.Repeat(inMemory(), len(v)))
	default:
		return nil, fmt.Errorf("nvlist: value %q has type %T, which cannot be encoded", name, value)
	}
	if err := checkText(name, value); err != nil {
		return nil, err
	}
	size := align(pairSize+len(name)+1) + align(len(data))
	b = native.AppendUint32(b, uint32(size))
	b = native.AppendUint16(b, uint16(len(name)+1))
	b = native.AppendUint16(b, 0)
	b = native.AppendUint32(b, uint32(count))
	b = native.AppendUint32(b, uint32(k))
	b = pad(cString(b, name), pairSize+len(name)+1)
	b = pad(append(b, data...), len(data))
	for _, l := range lists {
		var err error
		if b, err = appendPairs(b, l, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// checkText refuses texts that would end early in C, and names that have no room in nvpair_t.
func checkText(name string, value any) error {
	texts := []string{name}
	switch v := value.(type) {
	case string:
		texts = append(texts, v)
	case []string:
		texts = append(texts, v...)
	}
	for _, s := range texts {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("nvlist: %q holds a NUL byte", s)
		}
	}
	if len(name) >= 1<<15-1 {
		return fmt.Errorf("nvlist: a name of %d bytes", len(name))
	}
	return nil
}

func truth(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func cString(b []byte, s string) []byte { return append(append(b, s...), 0) }

// pad appends zeros behind n bytes.
func pad(b []byte, n int) []byte { return append(b, make([]byte, align(n)-n)...) }

// inMemory is nvlist_t, of which the kernel reads nothing but version and flags.
func inMemory() []byte {
	b := native.AppendUint32(nil, 0)
	b = native.AppendUint32(b, uniqueNames)
	return append(b, make([]byte, memorySize-len(b))...)
}
