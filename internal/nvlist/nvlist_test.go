package nvlist

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func all() List {
	return List{
		"flag": Flag{}, "yes": true, "no": false, "int32": int32(-2), "number": uint64(1) << 63, "text": "tank/a@b",
		"": "empty name", "numbers": []uint64{1, 2, 3}, "texts": []string{"", "a", strings.Repeat("b", 300)},
		"none": []string{}, "list": List{"in": List{"it": uint64(7)}, "after": "x"},
		"lists": []List{{"a": uint64(1)}, {}, {"b": []List{{"c": Flag{}}}}},
	}
}

func TestRoundTrip(t *testing.T) {
	for name, l := range map[string]List{"all": all(), "empty": {}} {
		b, err := Encode(l)
		require.NoError(t, err, name)
		back, err := Decode(append(b, "the kernel's buffer is longer"...))
		require.NoError(t, err, name)
		assert.Equal(t, l, back, name)
	}
}

// TestForm compares with bytes that are written by hand from the description in sys/nvpair.h, for a little-endian machine.
func TestForm(t *testing.T) {
	b, err := Encode(List{"size": uint64(5), "l": List{"s": "ab"}})
	require.NoError(t, err)
	assert.Equal(t, strings.Join([]string{
		"00010000",         // native, little-endian
		"0000000001000000", // version, unique names
		"30000000" + "0200" + "0000" + "01000000" + "13000000" + "6c00" + "000000000000", // "l", a list
		"0000000001000000" + "00000000000000000000000000000000",                          // nvlist_t, then its pairs
		"20000000" + "0200" + "0000" + "01000000" + "09000000" + "7300" + "000000000000" + "6162000000000000",
		"00000000",
		"20000000" + "0500" + "0000" + "01000000" + "08000000" + "73697a6500" + "000000" + "0500000000000000",
		"00000000",
	}, ""), hex.EncodeToString(b))
}

func TestEncodeRefuses(t *testing.T) {
	deep := List{}
	for range maxDepth + 2 {
		deep = List{"in": deep}
	}
	for name, l := range map[string]List{
		"type": {"x": 1.5}, "NUL in a name": {"a\x00b": true}, "NUL in a string": {"a": "b\x00"},
		"NUL in strings": {"a": []string{"b\x00"}}, "depth": deep, "long name": {strings.Repeat("n", 1<<15): true},
	} {
		_, err := Encode(l)
		assert.Error(t, err, name)
	}
}

func TestDecodeRefuses(t *testing.T) {
	whole, err := Encode(all())
	require.NoError(t, err)
	for end := range whole {
		_, err := Decode(whole[:end])
		require.ErrorIs(t, err, ErrMalformed, "%d bytes of %d", end, len(whole))
	}
	xdr := append([]byte{1, 1, 0, 0}, whole[4:]...)
	_, err = Decode(xdr)
	require.ErrorIs(t, err, ErrMalformed)
}

func FuzzDecode(f *testing.F) {
	for _, l := range []List{all(), {}} {
		b, err := Encode(l)
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Decode(b)
		if err != nil {
			require.ErrorIs(t, err, ErrMalformed)
			return
		}
		again, err := Encode(l)
		if err != nil {
			return // it has values that are decoded only
		}
		back, err := Decode(again)
		require.NoError(t, err)
		require.Equal(t, l, back)
	})
}
