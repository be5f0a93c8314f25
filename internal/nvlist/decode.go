package nvlist

import (
	"bytes"
	"fmt"
)

// Decode decodes a list. It ignores bytes behind the list. Returns ErrMalformed if the list breaks the format, has the
// byte order of another machine, or is in the XDR encoding.
func Decode(b []byte) (List, error) {
	if len(b) < headerSize || b[0] != encodingNative || b[1] != endianness() {
		return nil, fmt.Errorf("%w: the header is % x", ErrMalformed, b[:min(len(b), headerSize)])
	}
	d := decoder{b[headerSize:]}
	if _, err := d.take(listSize); err != nil {
		return nil, err
	}
	return d.list(0)
}

// decoder has the bytes that are left.
type decoder struct{ rest []byte }

// take removes n bytes from the rest.
func (d *decoder) take(n int) ([]byte, error) {
	if n < 0 || n > len(d.rest) {
		return nil, fmt.Errorf("%w: it ends early", ErrMalformed)
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *decoder) list(depth int) (List, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("%w: more than %d lists in each other", ErrMalformed, maxDepth)
	}
	l := make(List)
	for {
		sized, err := d.take(4)
		if err != nil {
			return nil, err
		}
		size := int32(native.Uint32(sized))
		if size == 0 {
			return l, nil
		}
		body, err := d.take(int(size) - 4)
		if err != nil {
			return nil, err
		}
		name, value, err := d.pair(body, depth)
		if err != nil {
			return nil, err
		}
		l[name] = value
	}
}

// pair decodes a pair without its size. The lists of its value are in the rest.
func (d *decoder) pair(b []byte, depth int) (name string, value any, err error) {
	if len(b) < pairSize-4 {
		return "", nil, fmt.Errorf("%w: a pair of %d bytes", ErrMalformed, len(b))
	}
	nameSize, count, k := int(int16(native.Uint16(b))), int(int32(native.Uint32(b[4:]))), kind(native.Uint32(b[8:]))
	start := align(pairSize+nameSize) - 4
	if nameSize < 1 || count < 0 || start > len(b) {
		return "", nil, fmt.Errorf("%w: a name of %d bytes, %d elements", ErrMalformed, nameSize, count)
	}
	named := b[pairSize-4:][:nameSize]
	if bytes.IndexByte(named, 0) != nameSize-1 {
		return "", nil, fmt.Errorf("%w: the name %q does not end where it should", ErrMalformed, named)
	}
	name = string(named[:nameSize-1])
	value, err = d.value(k, count, b[start:], depth)
	if err != nil {
		return "", nil, fmt.Errorf("value %q: %w", name, err)
	}
	return name, value, nil
}

func (d *decoder) value(k kind, count int, b []byte, depth int) (any, error) {
	switch k {
	case kindBoolean:
		return Flag{}, nil
	case kindList:
		return d.list(depth + 1)
	case kindListArray:
		if count > len(b)/(pointer+memorySize) {
			return nil, fmt.Errorf("%w: %d lists in %d bytes", ErrMalformed, count, len(b))
		}
		lists := make([]List, count)
		for i := range lists {
			var err error
			if lists[i], err = d.list(depth + 1); err != nil {
				return nil, err
			}
		}
		return lists, nil
	case kindString:
		s, _, err := text(b)
		return s, err
	case kindStringArray:
		if count > len(b)/(pointer+1) {
			return nil, fmt.Errorf("%w: %d strings in %d bytes", ErrMalformed, count, len(b))
		}
		texts, rest := make([]string, count), b[count*pointer:]
		for i := range texts {
			var err error
			if texts[i], rest, err = text(rest); err != nil {
				return nil, err
			}
		}
		return texts, nil
	}
	return number(k, count, b)
}

// text decodes a string of C.
func text(b []byte) (s string, rest []byte, err error) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", nil, fmt.Errorf("%w: a string without an end", ErrMalformed)
	}
	return string(b[:end]), b[end+1:], nil
}

// number decodes numbers and arrays of them.
func number(k kind, count int, b []byte) (any, error) {
	switch k {
	case kindByte, kindUint8:
		return one(count, b, 1, func(b []byte) uint8 { return b[0] })
	case kindInt8:
		return one(count, b, 1, func(b []byte) int8 { return int8(b[0]) })
	case kindInt16:
		return one(count, b, 2, func(b []byte) int16 { return int16(native.Uint16(b)) })
	case kindUint16:
		return one(count, b, 2, native.Uint16)
	case kindInt32:
		return one(count, b, 4, func(b []byte) int32 { return int32(native.Uint32(b)) })
	case kindUint32:
		return one(count, b, 4, native.Uint32)
	case kindInt64, kindHrtime:
		return one(count, b, 8, func(b []byte) int64 { return int64(native.Uint64(b)) })
	case kindUint64, kindDouble:
		return one(count, b, 8, native.Uint64)
	case kindBooleanValue:
		return one(count, b, 4, func(b []byte) bool { return native.Uint32(b) != 0 })
	case kindByteArray, kindUint8Array:
		return array(count, b, 1, func(b []byte) uint8 { return b[0] })
	case kindInt8Array:
		return array(count, b, 1, func(b []byte) int8 { return int8(b[0]) })
	case kindInt16Array:
		return array(count, b, 2, func(b []byte) int16 { return int16(native.Uint16(b)) })
	case kindUint16Array:
		return array(count, b, 2, native.Uint16)
	case kindInt32Array:
		return array(count, b, 4, func(b []byte) int32 { return int32(native.Uint32(b)) })
	case kindUint32Array:
		return array(count, b, 4, native.Uint32)
	case kindInt64Array:
		return array(count, b, 8, func(b []byte) int64 { return int64(native.Uint64(b)) })
	case kindUint64Array:
		return array(count, b, 8, native.Uint64)
	case kindBooleanArray:
		return array(count, b, 4, func(b []byte) bool { return native.Uint32(b) != 0 })
	}
	return nil, fmt.Errorf("%w: type %d is not known", ErrMalformed, k)
}

func one[T any](count int, b []byte, size int, decode func([]byte) T) (any, error) {
	if count != 1 || len(b) < size {
		return nil, fmt.Errorf("%w: %d values in %d bytes", ErrMalformed, count, len(b))
	}
	return decode(b), nil
}

func array[T any](count int, b []byte, size int, decode func([]byte) T) (any, error) {
	if count > len(b)/size {
		return nil, fmt.Errorf("%w: %d values in %d bytes", ErrMalformed, count, len(b))
	}
	values := make([]T, count)
	for i := range values {
		values[i] = decode(b[i*size:])
	}
	return values, nil
}
