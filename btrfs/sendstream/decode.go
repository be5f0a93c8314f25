package sendstream

import (
	"encoding/binary"
	"fmt"
)

// decoder is the visitor that reads the attributes of one command. The first error stays.
type decoder struct {
	values    [attrCount][]byte // parts of the command's payload
	present   uint64            // bit a: values[a] is from this command
	optionals uint64            // bit a: the attribute may be missing
	err       error
}

const attrHeaderSize = 4 // sizeof(struct btrfs_tlv_header)

// split finds the attributes in the payload of a command.
func (d *decoder) split(payload []byte, version uint32) error {
	d.present, d.optionals, d.err = 0, 0, nil
	for len(payload) > 0 {
		if len(payload) < 2 {
			return fmt.Errorf("%w: a byte after the last attribute", ErrMalformed)
		}
		a := Attr(binary.LittleEndian.Uint16(payload))
		if a == 0 || int(a) >= attrCount {
			return fmt.Errorf("%w %v", ErrUnknownAttribute, a)
		}
		if d.present&(1<<a) != 0 {
			return malformed(a, "is given twice")
		}
		d.present |= 1 << a

		if a == AttrData && version >= 2 {
			d.values[a] = payload[2:]
			return nil
		}
		if len(payload) < attrHeaderSize {
			return malformed(a, "has no length")
		}
		size := int(binary.LittleEndian.Uint16(payload[2:]))
		payload = payload[attrHeaderSize:]
		if size > len(payload) {
			return malformed(a, "of %d bytes in a command with %d left", size, len(payload))
		}
		d.values[a] = payload[:size:size]
		payload = payload[size:]
	}
	return nil
}

// value returns the value of an attribute, which must have size bytes unless size is negative. ok is false if the
// attribute is missing or wrong.
func (d *decoder) value(a Attr, size int) (v []byte, ok bool) {
	switch {
	case d.err != nil:
		return nil, false
	case d.present&(1<<a) == 0:
		if d.optionals&(1<<a) == 0 {
			d.err = malformed(a, "is missing")
		}
		return nil, false
	case size >= 0 && len(d.values[a]) != size:
		d.err = malformed(a, "has %d bytes instead of %d", len(d.values[a]), size)
		return nil, false
	}
	return d.values[a], true
}

func (d *decoder) optional(a Attr) { d.optionals |= 1 << a }

func (d *decoder) uuid(a Attr, p *UUID) {
	if v, ok := d.value(a, len(p)); ok {
		copy(p[:], v)
	}
}

func (d *decoder) u8(a Attr, p *uint8) {
	*p = 0
	if v, ok := d.value(a, 1); ok {
		*p = v[0]
	}
}

func (d *decoder) u32(a Attr, p *uint32) {
	*p = 0
	if v, ok := d.value(a, 4); ok {
		*p = binary.LittleEndian.Uint32(v)
	}
}

func (d *decoder) u64(a Attr, p *uint64) {
	*p = 0
	if v, ok := d.value(a, 8); ok {
		*p = binary.LittleEndian.Uint64(v)
	}
}

func (d *decoder) time(a Attr, p *Timespec) {
	*p = Timespec{}
	v, ok := d.value(a, 12)
	if !ok {
		return
	}
	*p = Timespec{Sec: int64(binary.LittleEndian.Uint64(v)), Nsec: binary.LittleEndian.Uint32(v[8:])}
	// Larger values have meanings of their own in utimensat(2).
	if p.Nsec >= nsecPerSec {
		d.err = malformed(a, "has %d nanoseconds", p.Nsec)
	}
}

func (d *decoder) bytes(a Attr, p *[]byte) {
	*p, _ = d.value(a, -1)
}

func (d *decoder) path(a Attr, p *[]byte) {
	v, ok := d.value(a, -1)
	*p = v
	if !ok {
		return
	}
	if err := checkPath(v); err != nil {
		d.err = malformed(a, "%v", err)
	}
}

func (d *decoder) data(p *[]byte) { d.bytes(AttrData, p) }
