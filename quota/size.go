package quota

import (
	"math"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// ParseSize reads a size in bytes as Docker does (github.com/docker/go-units, RAMInBytes). It is a number, which may
// have a fraction, and a unit of 1024: k, m, g, t or p in either case. b or ib may follow the unit, and a space may
// precede it. "10G", "10g", "10GB" and "10 GiB" are all 10 GiB, "1.5g" is 1536 MiB.
//
// Returns errdefs.ErrInvalidArgument, with s and the right form, if s is no size, zero, negative, not a whole number
// of bytes, or above 2^63-1.
func ParseSize(s string) (uint64, error) {
	size, err := units.RAMInBytes(s)
	switch {
	case s == "":
		return 0, invalidSize(s, "must not be empty")
	case err != nil && strings.HasPrefix(s, "-"):
		return 0, invalidSize(s, "must not be negative")
	case err != nil:
		return 0, invalidSize(s, "must be a number of bytes")
	// Out of range, the conversion in go-units gives the least or the greatest int64, by processor.
	case size < 0, size == math.MaxInt64:
		return 0, invalidSize(s, "must be less than 8 EiB")
	case fractionOfByte(s):
		return 0, invalidSize(s, "must be a whole number of bytes")
	case size == 0:
		return 0, invalidSize(s, "must be more than 0, leave it out for no limit")
	}
	return uint64(size), nil
}

func invalidSize(s, reason string) error {
	return fault.New(errdefs.ErrInvalidArgument, "size %q: %s (examples: 1073741824, 512m, 10G, 1.5TiB)", s, reason)
}

// fractionOfByte reports whether s, which go-units can read, is a number of bytes with a fraction.
func fractionOfByte(s string) bool {
	number := strings.TrimSuffix(strings.TrimRight(s, "bB"), " ")
	n, err := strconv.ParseFloat(number, 64)
	return err == nil && n != math.Trunc(n)
}

// FormatSize formats a number of bytes for people, with at most four significant digits and units of
// 1024: "1.5GiB".
func FormatSize(bytes uint64) string {
	return units.BytesSize(float64(bytes))
}
