package zfs

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// objectRecords returns records of ZFS_IOC_DIFF: type, first, last.
func objectRecords(records ...[3]uint64) []byte {
	var b []byte
	for _, r := range records {
		for _, v := range r {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
	}
	return b
}

func TestReadObjects(t *testing.T) {
	set, err := readObjects(bytes.NewReader(objectRecords(
		[3]uint64{diffInUse, 1, 1}, [3]uint64{diffFree, 2, 9}, [3]uint64{diffInUse, 10, 12}, [3]uint64{diffInUse, 13, 13},
		[3]uint64{diffFree, 0, 1<<64 - 1}, [3]uint64{diffInUse, 20, 20},
	)))
	require.NoError(t, err)
	assert.Equal(t, objectSet{{1, 1}, {10, 13}, {20, 20}}, set)
	for object, want := range map[uint64]bool{0: false, 1: true, 2: false, 9: false, 10: true, 13: true, 14: false, 20: true, 21: false} {
		assert.Equal(t, want, set.has(object), object)
	}
	assert.False(t, objectSet(nil).has(1))
}

func TestReadObjectsMalformed(t *testing.T) {
	good := objectRecords([3]uint64{diffInUse, 1, 5})
	for name, more := range map[string][]byte{
		"cut off":        good[:23],
		"type":           objectRecords([3]uint64{7, 6, 6}),
		"out of order":   objectRecords([3]uint64{diffInUse, 5, 6}),
		"ends too early": objectRecords([3]uint64{diffInUse, 7, 6}),
	} {
		_, err := readObjects(bytes.NewReader(append(bytes.Clone(good), more...)))
		assert.Error(t, err, name)
	}
}

// FuzzReadObjects checks that readObjects returns sorted sets, and uses limited memory.
func FuzzReadObjects(f *testing.F) {
	f.Add(objectRecords([3]uint64{diffInUse, 1, 5}, [3]uint64{diffFree, 6, 9}, [3]uint64{diffInUse, 10, 11}))
	f.Add(objectRecords([3]uint64{diffFree, 0, 1<<64 - 1}, [3]uint64{diffInUse, 0, 1<<64 - 1}))
	f.Fuzz(func(t *testing.T, records []byte) {
		set, err := readObjects(bytes.NewReader(records))
		if err != nil {
			return
		}
		for i, r := range set {
			assert.LessOrEqual(t, r.first, r.last)
			assert.True(t, set.has(r.first) && set.has(r.last))
			if i > 0 {
				assert.Less(t, set[i-1].last+1, r.first)
			}
		}
	})
}
