package zfsctl

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestFaultOfBeginning(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		begin := func(version, fromGUID uint64) []byte {
			b := make([]byte, BeginSize)
			order.PutUint64(b[atMagic:], beginMagic)
			order.PutUint64(b[atVersion:], version)
			order.PutUint64(b[atFromGUID:], fromGUID)
			return b
		}
		const compressed = 1 << 24
		for name, test := range map[string]struct {
			begin  []byte
			origin string
			want   StreamFault
		}{
			"full":                       {begin(substream|compressed, 0), "", 0},
			"incremental":                {begin(substream|compressed, 7), "a@layer", 0},
			"none":                       {make([]byte, BeginSize), "", NoStream},
			"compound":                   {begin(2, 0), "", Compound},
			"incremental without origin": {begin(substream, 7), "", LacksOrigin},
			"full with origin":           {begin(substream, 0), "a@layer", NeedlessOrigin},
			"resumed":                    {begin(substream|resuming, 0), "", Resumed},
			"resumed incremental":        {begin(substream|resuming, 7), "a@layer", Resumed},
		} {
			assert.Equal(t, test.want, faultOfBeginning(test.begin, test.origin), "%s, %v", name, order)
		}
	}
}
