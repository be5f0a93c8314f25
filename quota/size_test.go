package quota

import (
	"math"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"1":                   1,
		"1073741824":          units.GiB,
		"10G":                 10 * units.GiB,
		"10g":                 10 * units.GiB,
		"10GB":                10 * units.GiB,
		"10GiB":               10 * units.GiB,
		"10 GiB":              10 * units.GiB,
		"1.5g":                1536 * units.MiB,
		".5k":                 512,
		"512b":                512,
		"512 B":               512,
		"2.0":                 2,
		"32T":                 32 * units.TiB,
		"8191P":               8191 * units.PiB,
		"9223372036854774784": math.MaxInt64 - 1023, // the greatest below 2^63 that a float64 holds
	} {
		got, err := ParseSize(in)
		require.NoError(t, err, in)
		assert.Equal(t, want, got, in)
	}
}

func TestParseSizeErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "must not be empty",
		"0":                      "must be more than 0",
		"0G":                     "must be more than 0",
		"0.0001k":                "must be more than 0",
		"-1":                     "must not be negative",
		"-5G":                    "must not be negative",
		"0.5":                    "must be a whole number of bytes",
		"10.5b":                  "must be a whole number of bytes",
		"10.5 B":                 "must be a whole number of bytes",
		"9223372036854775807":    "must be less than 8 EiB",
		"9223372036854775808":    "must be less than 8 EiB",
		"99999999999999999999":   "must be less than 8 EiB",
		"8192P":                  "must be less than 8 EiB",
		"1e300p":                 "must be less than 8 EiB",
		"1e400":                  "must be a number of bytes",
		"ten":                    "must be a number of bytes",
		"10X":                    "must be a number of bytes",
		"10Gi B":                 "must be a number of bytes",
		"10 0G":                  "must be a number of bytes",
		" 10G":                   "must be a number of bytes",
		"NaN":                    "must be a number of bytes",
		"inf":                    "must be a number of bytes",
		"1,5G":                   "must be a number of bytes",
		"10G\x00":                "must be a number of bytes",
		strings.Repeat("9", 400): "must be a number of bytes",
	} {
		_, err := ParseSize(in)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, in)
		assert.ErrorContains(t, err, want, in)
	}
	_, err := ParseSize("0")
	assert.ErrorContains(t, err, `size "0": must be`)
}

func TestFormatSize(t *testing.T) {
	for in, want := range map[uint64]string{0: "0B", 512: "512B", 10 * units.GiB: "10GiB", 1536 * units.MiB: "1.5GiB"} {
		assert.Equal(t, want, FormatSize(in))
	}
}

// FuzzParseSize compares ParseSize with go-units: accepted sizes mean the same there.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "1.5g", "0", "-1", "", "8192P", "1e300p", "0x1p3", "NaN", "10 GiB", "9223372036854775807", "0.3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseSize(s)
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		want, err := units.RAMInBytes(s)
		require.NoError(t, err)
		require.Positive(t, want)
		require.Equal(t, uint64(want), got)
		require.Less(t, got, uint64(math.MaxInt64))
	})
}
